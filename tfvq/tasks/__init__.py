"""What differs between images, speech and video."""

from tfvq.tasks.images import ImageTask
from tfvq.tasks.speech import SpeechTask

# By the name that a config's field `task` holds.
TASKS = {"images": ImageTask, "speech": SpeechTask}
