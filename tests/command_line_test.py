import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.tiny import NAMES, tiny

ROOT = pathlib.Path(__file__).parent.parent


def start(*args, **options):
  return subprocess.Popen(
    [sys.executable, "train_main.py", *args],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def run(*args):
  process = start(*args)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


FRAMES = "--config=tfvq/configs/frames.py"


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    ((FRAMES, "--config.autoencoder.num_embeddings=0"), "config.autoencoder.num_embeddings is 0; it must be positive"),
    ((FRAMES, "--config.autoencoder.num_embedings=5"), "has no field 'num_embedings'"),
    ((FRAMES, "--config.autoencoder.num_embeddings=many"), "invalid literal for int"),
    ((FRAMES, "--config.autoencoder.decay=1.5"), "config.autoencoder.decay is 1.5; it must be less than 1"),
    ((FRAMES, "--config.autoencoder.bottleneck=sieve"), "choose one of vq, gaussian, vimco"),
    ((FRAMES, "--config.prior.kernel_size=4"), "config.prior.kernel_size is 4; it must be odd"),
    ((FRAMES, "--config.data.image_size=83"), "config.data.image_size is 83, which the encoder's total stride of 4"),
    ((FRAMES, "--config.train.prior.optimizer=sgd"), "choose one of adam, muon"),
    ((FRAMES + ":tiny",), "no variant 'tiny' of this config; choose small or paper"),
    ((FRAMES, "--stage=prior"), "no finished stage `autoencoder`"),
    ((FRAMES, "--stage=dessert"), "no stage 'dessert'; choose one of all, data"),
    (("--config=tfvq/configs/nothing.py",), "nothing.py"),
    ((FRAMES, "--bogus"), "bogus"),
    ((FRAMES, "leftover"), "leftover"),
    ((), "Both --config=FILE and --workdir=DIR are needed"),
  ],
)
def test_a_wrong_command_gets_one_sentence_and_exit_code_2(args, sentence, tmp_path):
  returncode, output = run(*args, f"--workdir={tmp_path}")
  assert returncode == 2
  assert sentence in output
  assert output.startswith("error: ") and output.count("\n") == 1, output


def test_a_workdir_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / "file").write_text("")
  returncode, output = run(FRAMES, f"--workdir={tmp_path / 'file'}")
  assert returncode == 2 and "could not be written" in output and "Traceback" not in output


def test_help_lists_the_fields_of_the_config():
  returncode, output = run("--help")
  assert returncode == 0 and "frames.py" in output and "--workdir" in output
  returncode, output = run(FRAMES, "--help")
  assert returncode == 0 and "--config.train.prior.steps=" in output


def flags_of(config):
  """Flags that make the `small` config into this one."""
  from tfvq.training.validation import fields

  def text(value):
    return repr(tuple(value)) if isinstance(value, (tuple, list)) else value

  return [f"--config.{name}={text(value)}" for name, value in fields(config)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["data", "autoencoder", "codes", "prior", "samples", "evaluation"])
def test_a_run_killed_in_any_stage_goes_on(stage, tmp_path):
  config = tiny("frames")
  for settings in config.train.values():
    settings.steps = 60
  command = ["--config=tfvq/configs/frames.py:small", f"--workdir={tmp_path}", *flags_of(config)]
  for earlier in ("data", "autoencoder", "codes", "prior", "samples", "evaluation"):
    if earlier == stage:
      break
    assert run(*command, f"--stage={earlier}")[0] == 0
  process = start(*command, start_new_session=True)
  trained = tmp_path / stage / "checkpoint.keras"
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    begun = trained.exists() if stage in ("autoencoder", "prior") else (tmp_path / stage).exists()
    if begun or (stage == "evaluation" and (tmp_path / "metrics.json").exists()):
      break
    time.sleep(0.01)
  assert process.poll() is None, process.communicate()[0]
  process.send_signal(signal.SIGKILL)
  process.wait()
  returncode, output = run(*command)
  assert returncode == 0, output
  assert "report.html" in output and (tmp_path / "report.html").exists()
  if trained.exists():
    assert "| 0/60" not in output, "training began from the start"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_small_config_is_valid(name, tmp_path):
  returncode, output = run(f"--config=tfvq/configs/{name}.py", f"--workdir={tmp_path}", "--stage=dessert")
  assert returncode == 2 and "no stage 'dessert'" in output
