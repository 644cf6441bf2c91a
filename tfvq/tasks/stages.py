"""Runs the stages of a system in its workdir."""

import contextlib
import os
import pathlib

import keras
from ml_collections import ConfigDict

from tfvq.errors import UserError
from tfvq.files import read_json
from tfvq.startup import start_xla
from tfvq.tasks import find_task
from tfvq.tasks.task import Task
from tfvq.training.report import print_summary
from tfvq.training.workdir import Workdir


def make_task(config: ConfigDict, path, command: str = "") -> Task:
  """Makes the task that a config names, in the workdir `path`, which is created if it does not exist.

  Raises:
    UserError: There is no such task, or the workdir was made with another config.
  """
  return find_task(config.task)(config, Workdir(path, config.to_dict()), command)


def open_task(path) -> Task:
  """Makes the task of an existing workdir.

  Raises:
    UserError: It is not the folder of a run, or it was made by another version.
  """
  config_path = pathlib.Path(path) / "config.json"
  if not os.path.exists(config_path):  # unlike the method, never raises
    raise UserError(f"{path} is not the folder of a run: it has no config.json.")
  config = read_json(config_path)
  try:
    return make_task(ConfigDict(config), path)
  except UserError as error:
    if ":" in str(config.get("task")):
      raise
    raise UserError(f"{path} was made by another version of this package: train it again.") from error


def run_stages(task: Task, chosen: str) -> None:
  """Runs one stage, or all stages that are not optional and not done yet, in order.

  Every stage starts with the config's random seed and dtype policy, so that its results do not depend on the stages
  before it in the same process.

  Raises:
    UserError: The system has no such stage, its input is missing, or it failed in a way that the user can fix.
  """
  names = [stage.name for stage in task.stages]
  if chosen not in ("all", *names):
    raise UserError(f"This system has no stage {chosen!r}; choose one of all, {', '.join(names)}.")
  workdir = task.workdir
  stages = [stage for stage in task.stages if stage.name == chosen or (chosen == "all" and not stage.optional)]
  if any(stage.trains and not workdir.is_done(stage.name) for stage in stages):
    _ = task.strategy  # some strategies must be created before TensorFlow runs anything
  start_xla()
  with contextlib.ExitStack() as stack:
    for stage in stages:
      if workdir.is_done(stage.name):
        print(f"{stage.name}: done already, skipped (delete {workdir.folder(stage.name)} to do it again)")
        continue
      stack.enter_context(workdir.held())  # until the last stage, so that no other process runs stages in between
      _require_inputs(task, stage)
      _refuse_stale(task, stage)
      with _settings(task.config), workdir.running(stage.name) as facts:
        stage.run(facts)
  if workdir.is_done("evaluation"):
    print_summary(workdir, task.metrics)


@contextlib.contextmanager
def _settings(config):
  """Sets the random seed and Keras's dtype policy for the block."""
  keras.utils.set_random_seed(config.seed)
  policy = keras.config.dtype_policy()
  keras.config.set_dtype_policy(config.precision)
  try:
    yield
  finally:
    keras.config.set_dtype_policy(policy)


def _require_inputs(task, stage):
  """Checks that the stages whose output a stage reads are done; the error names the first one that is not."""
  needed = set(stage.reads)
  for earlier in reversed(task.stages):
    if earlier.name in needed:
      needed |= set(earlier.reads)
  for earlier in task.stages:
    if earlier.name in needed:
      task.workdir.require(earlier.name)


def _refuse_stale(task, stage):
  """Raises an error if a stage would run again although stages that read its earlier output are done."""
  dependent = {stage.name}
  for later in task.stages:
    if dependent & set(later.reads):
      dependent.add(later.name)
  dependent.remove(stage.name)
  stale = [later.name for later in task.stages if later.name in dependent and task.workdir.is_done(later.name)]
  if stale:
    raise UserError(
      f"{task.workdir.path} holds what was made of an earlier `{stage.name}`: delete {', '.join(stale)} there as well."
    )
