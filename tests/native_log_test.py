"""Programs write only their own lines to stderr, and none of native libraries."""

import functools
import io
import os
import pathlib
import re
import subprocess
import sys
import threading
import wave

import numpy as np
import pytest

from export.device.quiet import delegate_line_dropped
from tests.audio_cases import encoded, mp3_frame_positions, noise
from tfvq.data.audio_files import AudioReader
from tfvq.startup import stderr_only_on_error, stderr_without

ROOT = pathlib.Path(__file__).parent.parent


def stderr_of(*arguments):
  """The stderr of a Python process, which must succeed."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
  command = [sys.executable, *map(str, arguments)]
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return result.stderr


def foreign_lines(text, own):
  """The lines of a text that do not begin with `own`; lines of progress bars end with a carriage return."""
  return [line for line in re.split(r"[\r\n]+", text) if line and not line.startswith(own)]


def test_compilation_and_conversion_print_nothing():
  code = """if True:
    from tfvq.startup import import_tensorflow, start_xla
    import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf
    from export import onnx, tflite
    from tfvq.endpoints.endpoint import Endpoint, floats
    start_xla()
    assert tf.function(lambda x: 3 * x, jit_compile=True)(tf.constant(2)) == 6
    layer = keras.layers.Dense(8)
    layer.build([None, 8])
    examples = lambda split: ({"x": np.ones([1, 8], np.float32)} for _ in range(3))
    endpoint = Endpoint("dense", lambda x: {"y": layer(layer(x))}, {"x": floats(1, 8)}, layer, examples)
    x = np.ones([1, 8], np.float32)
    for runner in (tflite.Runner(tflite.write(endpoint, "int8")), onnx.Runner(onnx.convert(endpoint))):
      assert runner(x=x)["y"].shape == (1, 8)
  """
  assert stderr_of("-c", code) == ""


def test_export_prints_only_progress(frames_run, tmp_path):
  flags = (f"--workdir={frames_run.workdir.path}", f"--out={tmp_path / 'out'}", "--quantize=int8")
  stderr = stderr_of("-m", "export.export_main", *flags)
  assert "100%" in stderr and not foreign_lines(stderr, "export:")


def test_device_codec_prints_only_progress(tmp_path, rng):
  with wave.open(str(tmp_path / "in.wav"), "wb") as file:
    file.setparams((1, 2, 16_000, 0, "NONE", ""))
    file.writeframes(rng.integers(-3000, 3000, 4000).astype("<i2").tobytes())
  for command, source, target in (("encode", "in.wav", "a.codes"), ("decode", "a.codes", "out.wav")):
    stderr = stderr_of("-m", "export.device", command, tmp_path / source, tmp_path / target)
    assert "times real time" in stderr and not foreign_lines(stderr, command)


def test_delegate_line_dropped_keeps_other_lines(capfd):
  with pytest.raises(RuntimeError), delegate_line_dropped():
    os.write(2, b"first\nINFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nlast\n")
    raise RuntimeError
  assert capfd.readouterr().err == "first\nlast\n"


def test_damaged_mp3_frames_print_nothing(capfd):
  mp3 = bytearray(encoded(noise(), format="MP3"))
  for position in mp3_frame_positions(mp3)[5:50]:
    mp3[position + 6 : position + 40] = bytes([255]) * 34
  reader = AudioReader(io.BytesIO(mp3))
  assert len(reader.read()) == reader.num_samples
  assert capfd.readouterr().err == ""


def test_stderr_without_drops_matching_lines_only(capfd):
  with pytest.raises(RuntimeError), stderr_without(rb"noise: .*\n"):
    os.write(2, b"first\nnoise: one\nlast\n")
    raise RuntimeError
  assert capfd.readouterr().err == "first\nlast\n"


def test_stderr_only_on_error_shows_output_only_with_an_exception(capfd):
  with stderr_only_on_error():
    os.write(2, b"of no interest\n")
  with pytest.raises(RuntimeError), stderr_only_on_error():
    os.write(2, b"the cause\n")
    raise RuntimeError
  assert capfd.readouterr().err == "the cause\n"


@pytest.mark.parametrize(
  "quiet", [delegate_line_dropped, stderr_only_on_error, functools.partial(stderr_without, b"noise")]
)
def test_stderr_is_restored_after_use_in_threads(quiet, capfd):
  before = np.array(os.fstat(2))

  def work():
    for _ in range(50):
      with quiet():
        pass

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert np.array_equal(np.array(os.fstat(2))[:3], before[:3])
  os.write(2, b"here\n")
  assert capfd.readouterr().err == "here\n"


def test_closed_stderr_stays_closed():
  code = "from export.device import SpeechCodec; SpeechCodec().encoder()"
  command = [sys.executable, "-c", f"import os; os.close(2); {code}; os.write(1, b'done')"]
  assert subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout == b"done"
