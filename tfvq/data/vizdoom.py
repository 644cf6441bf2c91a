"""First-person frames with actions from ViZDoom, used in place of DeepMind Lab."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import tempfile
import threading

import numpy as np

from tfvq.errors import UserError
from tfvq.extras import extra

with extra("data"):
  from PIL import Image

# The policy's actions: (name, buttons held).
ACTIONS = (
  ("forward", ("MOVE_FORWARD",)),
  ("forward left", ("MOVE_FORWARD", "TURN_LEFT")),
  ("forward right", ("MOVE_FORWARD", "TURN_RIGHT")),
  ("left", ("TURN_LEFT",)),
  ("right", ("TURN_RIGHT",)),
)
_ACTION_PROBABILITIES = (0.5, 0.15, 0.15, 0.1, 0.1)
_TICS_PER_DECISION = 7  # a fifth of a second
_MEAN_DECISIONS_PER_ACTION = 4
_STUCK_UNITS = 8.0  # one decision of walking covers about 50 map units; much less means that a wall is in the way


def collect(
  scenario: str,
  *,
  num_episodes: int,
  frames_per_episode: int,
  tics_per_frame: int,
  image_size: int,
  seed: int,
  num_processes: int = 2,
  progress=lambda: None,
) -> dict[str, np.ndarray]:
  """Plays seeded episodes of a scenario with a random policy that mostly walks forward, and returns the frames.

  The same arguments give the same arrays, whatever the number of processes.

  Args:
    scenario: Name of a scenario that ViZDoom ships, such as "my_way_home".
    num_episodes: Episodes to play, each with a seed of its own.
    frames_per_episode: Frames kept of each episode; if the game ends early, it starts again.
    tics_per_frame: Game tics (1/35 s) between two frames, a multiple of 7.
    image_size: Height and width of a frame in pixels; the native 160x120 is resized by area.
    seed: Seed of the first episode; the others follow.
    num_processes: Number of episodes played in parallel.
    progress: Called after each episode.

  Returns:
    `image` uint8 [N, image_size, image_size, 3], `action` int32 [N] (index into ACTIONS: the action after
    the frame), `episode` int32 [N] and `tic` int32 [N], with N = num_episodes * frames_per_episode, in order of play.

  Raises:
    UserError: As for `check`.
  """
  check(scenario, tics_per_frame)
  jobs = [
    (scenario, episode, frames_per_episode, tics_per_frame, image_size, seed + episode)
    for episode in range(num_episodes)
  ]
  # A fresh interpreter per worker: forking a process that holds TensorFlow's threads can hang.
  context = multiprocessing.get_context("spawn")
  episodes = []
  with concurrent.futures.ProcessPoolExecutor(num_processes, context, _end_with_parent) as pool:
    for played in pool.map(_play_episode, jobs):
      episodes.append(played)
      progress()
  return {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}


def check(scenario: str, tics_per_frame: int) -> None:
  """Checks, without playing, that `collect` can play a scenario.

  Raises:
    UserError: The vizdoom package is missing, it has no such scenario, or `tics_per_frame` is not a multiple of 7.
  """
  _scenario_path(scenario)
  if tics_per_frame % _TICS_PER_DECISION:
    raise UserError(f"tics_per_frame is {tics_per_frame}; it must be a multiple of {_TICS_PER_DECISION}.")


def _end_with_parent():
  """Ends a worker process when its parent is killed; otherwise it would wait for work forever."""

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _scenario_path(scenario):
  with extra("data"):
    import vizdoom
  path = os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg")
  if not os.path.exists(path):
    names = sorted(name[:-4] for name in os.listdir(vizdoom.scenarios_path) if name.endswith(".cfg"))
    raise UserError(f"ViZDoom has no scenario {scenario!r}; choose one of {', '.join(names)}.")
  return path


def _play_episode(job):
  """Plays one episode in its own game."""
  scenario, episode, num_frames, tics_per_frame, image_size, seed = job
  import vizdoom

  path = _scenario_path(scenario)
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # ViZDoom writes into the current folder
    game = vizdoom.DoomGame()
    game.load_config(path)
    game.set_window_visible(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in ("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT")])
    game.set_available_game_variables([vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y])
    game.set_seed(seed)
    game.init()
    try:
      return _walk(game, episode, num_frames, tics_per_frame, image_size, seed)
    finally:
      game.close()


def _walk(game, episode, num_frames, tics_per_frame, image_size, seed):
  buttons = {"MOVE_FORWARD": 0, "TURN_LEFT": 1, "TURN_RIGHT": 2}
  rng = np.random.default_rng(seed)
  decisions_per_frame = tics_per_frame // _TICS_PER_DECISION
  images, actions, tics = [], [], []
  action, position = 0, None
  for decision in range(num_frames * decisions_per_frame):
    if game.is_episode_finished():
      game.new_episode()
      position = None
    state = game.get_state()
    moved = np.inf if position is None else np.hypot(*(state.game_variables - position))
    position = state.game_variables
    if action <= 2 and moved < _STUCK_UNITS:
      action = int(rng.choice([3, 4]))  # at a wall: turn away
    elif rng.random() < 1 / _MEAN_DECISIONS_PER_ACTION:
      action = int(rng.choice(len(ACTIONS), p=_ACTION_PROBABILITIES))
    if decision % decisions_per_frame == 0:
      frame = Image.fromarray(state.screen_buffer).resize((image_size, image_size), Image.Resampling.BOX)
      images.append(np.asarray(frame))
      actions.append(action)
      tics.append(decision * _TICS_PER_DECISION)
    held = [0, 0, 0]
    for name in ACTIONS[action][1]:
      held[buttons[name]] = 1
    game.make_action(held, _TICS_PER_DECISION)
  return {
    "image": np.stack(images),
    "action": np.asarray(actions, np.int32),
    "episode": np.full(len(images), episode, np.int32),
    "tic": np.asarray(tics, np.int32),
  }
