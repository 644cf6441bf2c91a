import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import pytest

from tests.processes import default_signals
from tests.tiny import NAMES, tiny

ROOT = pathlib.Path(__file__).parent.parent


def run(*args):
  command = [sys.executable, "train_main.py", *args]
  process = subprocess.run(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
  )
  return process.returncode, process.stdout


FRAMES = "--config=tfvq/configs/frames.py"


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (
      (FRAMES, "--config.autoencoder.quantizer.num_embeddings=0"),
      "quantizer.num_embeddings is 0; it must be positive",
    ),
    ((FRAMES, "--config.autoencoder.num_embedings=5"), "has no field 'num_embedings'"),
    ((FRAMES, "--config.autoencoder.quantizer.num_embeddings=many"), "invalid literal for int"),
    (
      (FRAMES, "--config.autoencoder.quantizer.decay=1.5"),
      "quantizer.decay is 1.5; it must be less than 1",
    ),
    ((FRAMES, "--config.autoencoder.bottleneck=sieve"), "choose one of vq, gaussian, vimco"),
    ((FRAMES, "--config.prior.kernel_size=4"), "config.prior.kernel_size is 4; it must be odd"),
    ((FRAMES, "--config.data.image_size=83"), "config.data.image_size is 83, which the encoder's total stride of 4"),
    ((FRAMES, "--config.train.prior.optimizer=sgd"), "choose one of adam, muon"),
    ((FRAMES + ":tiny",), "no variant 'tiny' of this config; choose small or paper"),
    (("--config=frames:tiny",), "no variant 'tiny' of this config; choose small or paper"),
    (("--config=frame:small",), "The config could not be read"),
    ((FRAMES, "--stage=prior"), "no finished stage `data`"),
    ((FRAMES, "--stage=dessert"), "no stage 'dessert'; choose one of all, data"),
    (
      ("--config=tfvq/configs/nothing.py",),
      "The config could not be read: [Errno 2] No such file or directory: 'tfvq/configs/nothing.py'",
    ),
    ((FRAMES, "--bogus"), "bogus"),
    ((FRAMES, "leftover"), "leftover"),
    ((), "Both --config=FILE and --workdir=DIR are needed"),
  ],
)
def test_wrong_command_prints_one_line_and_exits_with_2(args, sentence, tmp_path):
  returncode, output = run(*args, f"--workdir={tmp_path}")
  assert returncode == 2
  assert sentence in output
  assert output.startswith("error: ") and output.count("\n") == 1, output


def test_unwritable_workdir_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  returncode, output = run(FRAMES, f"--workdir={tmp_path / 'file'}")
  assert returncode == 2 and "could not be written" in output and "Traceback" not in output


def test_help_lists_config_fields():
  returncode, output = run("--help")
  assert returncode == 0 and "--workdir" in output
  names = {path.stem for path in (ROOT / "tfvq" / "configs").glob("*.py")} - {"__init__", "common"}
  assert set(output.rstrip().rpartition("Configs of the package: ")[2].split(", ")) == names
  returncode, output = run(FRAMES, "--help")
  assert returncode == 0 and "--config.train.prior.steps=" in output


@pytest.mark.parametrize("config", [("--config=frames:paper",), ("-config", "frames:paper"), ("--config=frames",)])
def test_config_is_found_by_name(config):
  returncode, output = run(*config, "--help")
  episodes = 60 if config == ("--config=frames",) else 2000
  assert returncode == 0 and f"--config.data.num_train_episodes={episodes}\n" in output, output


@pytest.mark.parametrize(
  "command",
  [
    ("train_main.py",),
    ("train_main.py", FRAMES),
    ("-m", "tfvq.reconstruct"),
    ("-m", "tfvq.release"),
    ("-m", "export"),
    ("-m", "export.device"),
    ("-m", "benchmarks.export"),
    ("-m", "benchmarks.speech_clips"),
  ],
)
def test_help_into_closed_pipe_ends_silently(command):
  reader, writer = os.pipe()
  os.close(reader)
  command = [sys.executable, *command, "--help"]
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
  result = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)
  os.close(writer)
  assert (result.returncode, result.stderr) == (141, b"")


WAITING = """if True:
  import sys, time
  from absl import flags
  from tfvq.errors import run_program
  from tfvq.files import atomic_write
  def main(argv):
    with atomic_write(argv[1]) as temporary:
      temporary.write_text("half")
      print("started", flush=True)
      time.sleep(60)
  run_program(main, flags.FLAGS)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopped_program_leaves_no_file(number, code, tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", WAITING, str(tmp_path / "out")],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=default_signals,
  )
  assert process.stdout.readline() == "started\n" and len(list(tmp_path.iterdir())) == 1
  process.send_signal(number)
  assert process.communicate()[1] == "stopped\n" and process.returncode == code
  assert not list(tmp_path.iterdir())


def test_program_under_nohup_ignores_sighup():
  code = """if True:
    import os, signal
    from absl import flags
    from tfvq.errors import run_program
    run_program(lambda argv: os.kill(os.getpid(), signal.SIGHUP) or print("alive"), flags.FLAGS)
  """
  command = ["nohup", sys.executable, "-c", code]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert process.stdout == "alive\n" and process.returncode == 0


TRAINING = """if True:
  import sys, pathlib
  from absl import flags
  from tests.training_test import fit, settings
  from tfvq.errors import run_program
  def main(argv):
    fit(pathlib.Path(argv[1]), settings(steps=10_000_000, checkpoint_seconds=float(argv[2])))
  run_program(main, flags.FLAGS)
"""


def test_terminated_training_saves_last_step(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", TRAINING, str(tmp_path), "1000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  while process.poll() is None and not (tmp_path / "curves.csv").exists():
    time.sleep(0.01)
  process.terminate()
  message = process.communicate()[1].splitlines()[-1]
  assert process.returncode == 143, message
  step = int(
    re.fullmatch(r"error: Stopped at step (\d+) of 10000000: give the same command again to continue.", message)[1]
  )
  with zipfile.ZipFile(tmp_path / "checkpoint.keras") as file:
    assert file.testzip() is None
    with h5py.File(io.BytesIO(file.read("model.weights.h5"))) as weights:
      assert int(weights["optimizer/vars/0"][()]) == step
  assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.keras", "curves.csv"}


def flags_of(config):
  """Flags that turn the `small` config into this one."""
  from tfvq.configs.rules import fields

  def text(value):
    return repr(tuple(value)) if isinstance(value, (tuple, list)) else value

  return [f"--config.{name}={text(value)}" for name, value in fields(config)]


STAGES = ("data", "autoencoder", "codes", "prior", "samples", "evaluation")


def wait_and_kill(command, log, sign):
  """Starts a run, kills it as soon as the file `sign` exists, and returns what it printed."""
  with open(log, "w") as file:
    process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None and not sign.exists():
      time.sleep(0.005)
    process.kill()
    process.wait()
  return log.read_text()


@pytest.mark.slow
def test_run_killed_in_every_stage_resumes(tmp_path):
  config = tiny("frames")
  for settings in config.train.values():
    settings.steps = 200
    settings.checkpoint_seconds = 1.0
  workdir = tmp_path / "run"
  arguments = [f"{FRAMES}:small", f"--workdir={workdir}", *flags_of(config)]
  # Training is killed after its first checkpoint, other stages when they start to write.
  signs = {
    "autoencoder": "autoencoder/checkpoint.keras",
    "prior": "prior/checkpoint.keras",
    "evaluation": "metrics.json",
  }
  for number, stage in enumerate(STAGES):
    sign = workdir / signs.get(stage, stage)
    output = wait_and_kill([sys.executable, "train_main.py", *arguments], tmp_path / "log", sign)
    assert sign.exists(), output
    assert not (workdir / stage / "done.json").exists(), f"{stage} had finished before it was killed"
    for earlier in STAGES[:number]:
      assert (workdir / earlier / "done.json").exists()
      assert not re.search(rf"{earlier}: +0%\|[^|]*\| 0/200 ", output), f"{earlier} started again from the beginning"
  returncode, output = run(*arguments)
  assert returncode == 0, output
  assert output.count("done already") == 5 and (workdir / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_small_config_is_valid(name, tmp_path):
  returncode, output = run(f"--config=tfvq/configs/{name}.py", f"--workdir={tmp_path}", "--stage=dessert")
  assert returncode == 2 and "no stage 'dessert'" in output


def test_cores_strategy_uses_every_core(frames_run, tmp_path):
  """Runs in a new process, because the devices of a process cannot change."""
  num_cores = len(os.sched_getaffinity(0))
  shutil.copytree(frames_run.workdir.path, tmp_path / "run")
  for stage in ("prior", "samples", "evaluation"):
    shutil.rmtree(tmp_path / "run" / stage)
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["strategy"] = "cores"
  config["train"]["prior"]["batch_size"] = 2 * num_cores
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  code = """if True:
    import sys, tensorflow as tf
    from tfvq.tasks.stages import open_task, run_stages
    run = open_task(sys.argv[1])
    print(run.strategy.num_replicas_in_sync, tf.config.threading.get_intra_op_parallelism_threads())
    run_stages(run, "prior")
  """
  command = [sys.executable, "-c", code, str(tmp_path / "run")]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert process.returncode == 0, process.stderr
  assert process.stdout.split("\n")[0] == f"{num_cores} 1"
  assert (tmp_path / "run" / "prior" / "done.json").exists()
