"""What differs between images, speech and WaveNets."""

from tfvq.tasks.images import ImageTask
from tfvq.tasks.speech import SpeechTask
from tfvq.tasks.wavenet import WaveNetTask

# By the name that a config's field `task` holds.
TASKS = {"images": ImageTask, "speech": SpeechTask, "wavenet": WaveNetTask}
