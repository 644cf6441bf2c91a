"""tensorflow-io as a backend; if it does not load, as with TensorFlow 2.18 and later, only the error is tested."""

import io
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.audio_cases import REFUSED, VALID, encoded, noise
from tests.sound import tone
from tfvq.data.audio_files import AudioReader
from tfvq.errors import UserError

try:
  import tensorflow_io

  tensorflow_io.audio.decode_wav(encoded(tone(0.1), format="WAV"), dtype=tf.int16)
  _LOADS = True
except (ImportError, NotImplementedError):
  _LOADS = False

# Reads all files of a pickle in one process, which invalid headers must not crash.
_PROGRAM = """
import io, pickle, sys
from tfvq.data.audio_files import AudioReader
from tfvq.errors import UserError
results = {}
for name, content in pickle.load(sys.stdin.buffer).items():
  try:
    results[name] = AudioReader(io.BytesIO(content), backend="tensorflow_io").read()
  except UserError as error:
    results[name] = str(error)
with open(sys.argv[1], "wb") as file:
  pickle.dump(results, file)
"""


def test_library_that_does_not_load_is_reported(monkeypatch):
  def decode_wav(content, dtype):
    raise NotImplementedError("unable to open file: libtensorflow_io.so")  # its error with an incompatible TensorFlow

  lazy = types.SimpleNamespace(audio=types.SimpleNamespace(decode_wav=decode_wav))
  for module in (None, lazy):
    monkeypatch.setitem(sys.modules, "tensorflow_io", module)
    with pytest.raises(UserError, match="backend tensorflow_io could not be loaded: .* or use the backend soundfile"):
      AudioReader(io.BytesIO(VALID["rf64"]), backend="tensorflow_io")


if _LOADS:

  @pytest.mark.parametrize(
    "settings",
    [
      *[{"format": "WAV", "subtype": subtype} for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT")],
      {"format": "FLAC"},
      {"format": "FLAC", "subtype": "PCM_24"},
      {"format": "OGG"},
      {"format": "MP3"},
      {"format": "MP3", "bitrate_mode": "VARIABLE"},
    ],
    ids=str,
  )
  @pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
  def test_backends_give_equal_audio(settings, rate_hz):
    file = encoded(noise(rate_hz), rate_hz, **settings)
    expected = AudioReader(io.BytesIO(file))
    reader = AudioReader(io.BytesIO(file), backend="tensorflow_io")
    assert reader.num_samples == expected.num_samples
    np.testing.assert_allclose(reader.read(), expected.read(), atol=1e-6)
    np.testing.assert_allclose(reader.read(5000, 9000), expected.read(5000, 9000), atol=1e-6)

  def test_remote_paths_are_read():
    for frequency_hz in (440, 1000):
      with tf.io.gfile.GFile(f"ram://{frequency_hz}.flac", "wb") as file:
        file.write(encoded(tone(0.5, frequency_hz=frequency_hz), format="FLAC"))
    readers = {hertz: AudioReader(f"ram://{hertz}.flac", backend="tensorflow_io") for hertz in (440, 1000)}
    for frequency_hz, reader in readers.items():
      np.testing.assert_allclose(reader.read(), tone(0.5, frequency_hz=frequency_hz), atol=1e-4)
    with pytest.raises(UserError, match="ram://nothing.wav is not a file that can be read"):
      AudioReader("ram://nothing.wav", backend="tensorflow_io")

  def test_unusual_files_are_read_or_rejected_without_crash(tmp_path):
    files = {**VALID, **{name: content for name, (content, _) in REFUSED.items()}}
    command = [sys.executable, "-c", _PROGRAM, tmp_path / "results"]
    subprocess.run(command, input=pickle.dumps(files), check=True, timeout=300)
    results = pickle.loads((tmp_path / "results").read_bytes())
    read = {name for name, result in results.items() if not isinstance(result, str)}
    for name in read:
      np.testing.assert_allclose(results[name], AudioReader(io.BytesIO(files[name])).read(), atol=1e-6)
    assert not read & set(REFUSED)
    for name in set(VALID) - read:
      assert "use the backend soundfile" in results[name], name
    # It does not support these at all.
    assert set(VALID) - read == {
      *("mu_law", "mu_law_extensible", "a_law_extensible", "double", "ima_adpcm", "big_endian", "big_endian_extensible")
    }
