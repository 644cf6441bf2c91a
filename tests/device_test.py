import os
import pathlib
import signal
import stat
import struct
import subprocess
import sys
import wave
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.device import CodecError, SpeechCodec, codes_file, files
from export.device.codec import GumbelNoise
from export.exporter import export
from tests.processes import default_signals
from tfvq.models import gumbel_noise
from tfvq.models import speech_codec as keras_codec
from tfvq.release import load_released
from tfvq.tasks.stages import open_task

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def codec_folder(speech_run_folder, tmp_path_factory):
  """The exported codec of a tiny run."""
  folder = tmp_path_factory.mktemp("codec") / "out"
  export(open_task(speech_run_folder), folder, ("tflite",), ("none",))
  return folder / "tflite" / "none"


def speech(num_samples, rng):
  """Noise of varying loudness, float32 [num_samples]."""
  return (0.1 * np.abs(np.sin(np.arange(num_samples) / 3000)) * rng.normal(size=num_samples)).astype(np.float32)


def test_device_codec_matches_keras_codec(codec_folder, speech_run_folder, rng):
  codec = SpeechCodec(codec_folder)
  expected = keras_codec.SpeechCodec(open_task(speech_run_folder).autoencoder, frames_per_part=25, jit_compile=False)
  audio = speech(7777, rng)
  np.testing.assert_array_equal(codec.encode(audio), expected.encode(audio))
  np.testing.assert_allclose(codec.gain_of(audio), expected.gain_of(audio), rtol=1e-6)
  codes = rng.integers(0, 16, [120, 2])
  parts = iter(range(10))

  def noise(num_steps):
    return gumbel_noise(3, [200, 1, *codec.facts["noise_shape"]], next(parts)).numpy()[:num_steps, 0]

  stream = codec.decoder(codec.speakers[1], temperature=0.7, noise=noise)
  spoken = np.concatenate([stream.push(codes), stream.finish()])
  reference = expected.decode(codes[np.newaxis], [1], seed=3, temperature=0.7)[0]
  assert spoken.shape == reference.shape == (7680,)
  # Keras continues to the end of the part, which affects the last samples.
  np.testing.assert_allclose(spoken[:-64], reference[:-64], atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 63, 64, 65, 3200, 3201, 10_007])
def test_stream_matches_whole(num_samples, codec_folder, rng):
  codec = SpeechCodec(codec_folder)
  audio = speech(num_samples, rng)
  codes = codec.encode(audio)
  assert codes.shape == (-(-num_samples // 64), 2) and codes.dtype == np.int32
  spoken = codec.decode(codes, seed=4)
  assert spoken.shape == (64 * len(codes),) and spoken.dtype == np.float32
  encoder, decoder = codec.encoder(), codec.decoder(seed=4)
  some_codes, some_speech = [], []
  for start in range(0, num_samples, 997):
    some_codes.append(encoder.push(audio[start : start + 997]))
  some_codes = np.concatenate([*some_codes, encoder.finish()])
  np.testing.assert_array_equal(some_codes, codes)
  for start in range(0, len(codes), 13):
    some_speech.append(decoder.push(codes[start : start + 13]))
  np.testing.assert_array_equal(np.concatenate([*some_speech, decoder.finish()]), spoken)


def test_speaker_seed_and_temperature_change_output(codec_folder, rng):
  codec, codes = SpeechCodec(codec_folder), rng.integers(0, 16, [200, 2])
  first = codec.decode(codes)
  np.testing.assert_array_equal(first, codec.decode(codes, codec.speakers[0], seed=0))
  for other in (
    codec.decode(codes, codec.speakers[1]),
    codec.decode(codes, seed=1),
    codec.decode(codes, temperature=1.2),
  ):
    assert np.abs(other - first).max() > 1e-3


def test_shipped_codec_belongs_to_released_model(speech_run_folder, rng):
  codec, (model, facts) = SpeechCodec(), load_released()
  assert codec.speakers == facts["speakers"] and codec.num_embeddings == model.quantizer.num_embeddings
  spoken = np.concatenate([clip.audio for clip in open_task(speech_run_folder).corpus.clips("held_out")])
  for audio, least in ((speech(16_000, rng), 0.85), (spoken, 0.95)):
    codes, expected = codec.encode(audio), keras_codec.SpeechCodec(model).encode(audio)
    assert len(codes) >= 125 and np.mean(codes == expected) > least
  assert np.isfinite(codec.decode(codes[:50], speaker="it")).all()


def test_noise_is_standard_gumbel():
  noise = GumbelNoise(0, [4, 50])(5000)
  assert noise.shape == (5000, 4, 50) and noise.dtype == np.float32
  np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=5e-3)
  np.testing.assert_allclose(noise.var(), np.pi**2 / 6, atol=2e-2)
  probabilities = np.array([0.5, 0.3, 0.15, 0.05])
  draws = np.argmax(np.log(probabilities) + noise.reshape(-1, 4), axis=-1)
  np.testing.assert_allclose(np.bincount(draws) / len(draws), probabilities, atol=5e-3)


@pytest.mark.parametrize(
  ("codes", "arguments", "sentence"),
  [
    ([[16, 0]], {}, "Codes must be 0..15"),
    ([[0, -1]], {}, "Codes must be 0..15"),
    ([0, 1], {}, r"Codes have shape \[2\]; this model needs \[frames, 2\]"),
    ([[0, 0]], {"speaker": "nobody"}, "The model has no speaker 'nobody'"),
    ([[0, 0]], {"temperature": [1, 1]}, "temperature has shape"),
    ([[0, 0]], {"seed": -1}, "The seed is -1; give zero or a positive number"),
  ],
)
def test_invalid_arguments_are_rejected(codes, arguments, sentence, codec_folder):
  with pytest.raises(CodecError, match=sentence):
    SpeechCodec(codec_folder).decode(codes, **arguments)


def test_damaged_folder_is_rejected(codec_folder, tmp_path):
  with pytest.raises(CodecError, match="does not contain a complete codec"):
    SpeechCodec(tmp_path)
  for path in codec_folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  facts = (tmp_path / "codec.json").read_text()
  for wrong in ("[]", "null", "{", '{"files": 3}', '{"files": {}}'):
    (tmp_path / "codec.json").write_text(wrong)
    with pytest.raises(CodecError, match="does not contain a complete codec"):
      SpeechCodec(tmp_path)
  (tmp_path / "codec.json").write_text(facts)
  content = bytearray((tmp_path / "step.tflite").read_bytes())
  content[1000] ^= 1
  (tmp_path / "step.tflite").write_bytes(bytes(content))
  with pytest.raises(CodecError, match="step.tflite has changed since it was written"):
    SpeechCodec(tmp_path)


MODEL = b"12345678"


def encoded(codes, hop_samples=64, less=0, frame_shape=()):
  codes = np.array(codes, np.int32).reshape(-1, *frame_shape)
  return codes_file.EncodedSpeech(codes, MODEL, 1.5, len(codes) * hop_samples - less)


@given(st.integers(1, 5000), st.sampled_from([(), (1,), (2,), (3,)]), st.data())
def test_packed_codes_are_unpacked(num_embeddings, frame_shape, data):
  per_frame, num_frames = int(np.prod(frame_shape)), data.draw(st.integers(0, 20))
  size = per_frame * num_frames
  codes = data.draw(st.lists(st.integers(0, num_embeddings - 1), min_size=size, max_size=size))
  written = encoded(codes, less=data.draw(st.integers(0, 63)) if codes else 0, frame_shape=frame_shape)
  content = codes_file.pack(written, num_embeddings, 64)
  read = codes_file.unpack(content, MODEL, num_embeddings, 64, frame_shape)
  np.testing.assert_array_equal(read.codes, written.codes)
  assert read[1:] == written[1:]
  assert len(content) == 30 + -(-len(codes) * codes_file.bits_per_code(num_embeddings) // 8)


@settings(max_examples=500)
@given(st.sampled_from([(), (2,)]), st.data())
def test_damaged_file_is_rejected(frame_shape, data):
  """Any change is detected; with a corrected checksum it is rejected or gives codes that are in range."""
  written = codes_file.pack(encoded(range(100, 140), frame_shape=frame_shape), 500, 64)
  content = bytearray(written)
  kind = data.draw(st.sampled_from(["cut", "change", "mend", "garbage"]))
  if kind == "cut":
    content = content[: data.draw(st.integers(0, len(content) - 1))]
  elif kind == "garbage":
    content = bytearray(data.draw(st.binary(max_size=80)))
  else:
    for _ in range(data.draw(st.integers(1, 5))):
      content[data.draw(st.integers(0, len(content) - 5))] ^= data.draw(st.integers(1, 255))
    if kind == "mend":
      content[-4:] = struct.pack("<I", zlib.crc32(content[:-4]))
  try:
    read = codes_file.unpack(bytes(content), MODEL, 500, 64, frame_shape)
  except CodecError:
    return
  assert kind == "mend" or bytes(content) == written
  assert not len(read.codes) or (read.codes.min() >= 0 and read.codes.max() < 500)


_NEVER = """
import runpy, sys
sys.argv = ["device", *sys.argv[1:]]
try:
  runpy.run_module("export.device", run_name="__main__")
except SystemExit as end:
  code = end.code
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"tensorflow", "keras", "tfvq", "absl", "tqdm"}, sorted(loaded)
sys.exit(code)
"""


def device(*arguments):
  command = [sys.executable, "-c", _NEVER, *map(str, arguments)]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
  return result.returncode, result.stdout, result.stderr


def write_wav(path, audio, rate_hz=16_000, channels=1, width=2):
  with wave.open(str(path), "wb") as file:
    file.setframerate(rate_hz)
    file.setnchannels(channels)
    file.setsampwidth(width)
    file.writeframes((audio * 2**15).astype("<i2").tobytes())


def test_commands_work_without_tensorflow(codec_folder, tmp_path, rng):
  write_wav(tmp_path / "in.wav", speech(5000, rng))
  code, out, told = device("encode", tmp_path / "in.wav", tmp_path / "a.codes", f"--model={codec_folder}")
  assert code == 0 and "kbit/s" in out and "times real time" in told, told
  code, out, told = device(
    "decode", tmp_path / "a.codes", tmp_path / "out.wav", f"--model={codec_folder}", "--speaker=en-us+f2"
  )
  assert code == 0 and "times real time" in told, told
  with wave.open(str(tmp_path / "out.wav")) as file:
    assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (16_000, 1, 2, 5000)
  assert {path.name for path in tmp_path.iterdir()} == {"in.wav", "a.codes", "out.wav"}


def test_wrong_input_prints_one_line(codec_folder, tmp_path, rng):
  audio, model = speech(2000, rng), f"--model={codec_folder}"
  write_wav(tmp_path / "44.wav", audio, rate_hz=44_100)
  (tmp_path / "text.wav").write_text("hello")
  (tmp_path / "text.codes").write_text("hello")
  write_wav(tmp_path / "good.wav", audio)
  (tmp_path / "link").symlink_to("good.wav")
  codes = encoded([1, 2, 3, 4], frame_shape=(2,))
  (tmp_path / "other.codes").write_bytes(codes_file.pack(codes, 16, 64))
  (tmp_path / "larger.codes").write_bytes(codes_file.pack(codes._replace(num_samples=256), 512, 128))
  own = codes._replace(model_id=SpeechCodec(codec_folder).model_id)
  (tmp_path / "own.codes").write_bytes(codes_file.pack(own, 16, 64))
  (tmp_path / "cut.codes").write_bytes(codes_file.pack(own, 16, 64)[:-1])
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  seeds = [("decode", "own.codes", "out", f"--seed={seed}") for seed in (-1, 2**31, 5_000_000_000, 10**30)]
  cases = [
    (("encode", "44.wav", "out"), "44.wav cannot be encoded because it has 44100 Hz, 1 channel, 16 bits"),
    (("encode", "text.wav", "out"), "text.wav cannot be encoded because it is not a WAV file"),
    (("encode", "nothing.wav", "out"), "nothing.wav could not be read"),
    (("encode", ".", "out"), "could not be read: Is a directory"),
    (("decode", "text.codes", "out"), "text.codes cannot be decoded. It is not a file of codes"),
    (("decode", "other.codes", "out"), "was made with another model"),
    (("decode", "larger.codes", "out"), "was made with another model"),
    (("decode", "cut.codes", "out"), "cut.codes cannot be decoded. It is truncated or altered"),
    (("decode", "nothing.codes", "out"), "nothing.codes could not be read"),
    (("decode", "own.codes", "out", "--speaker=nobody"), "The model has no speaker 'nobody'"),
    *((seed, "give a whole number from 0 to 2147483647") for seed in seeds),
    (("encode", "good.wav", "."), "is a folder: name a file in it"),
    (("encode", "good.wav", "missing/out"), "there is no folder"),
    (("encode", "good.wav", "good.wav/out"), "could not be written: Not a directory"),
    (("encode", "good.wav", "n" * 256), "could not be written: File name too long"),
    (("decode", "own.codes", "n" * 256), "could not be written: File name too long"),
    (("decode", "own.codes", "/proc/out.wav"), "/proc/out.wav could not be written"),
    (("encode", "good.wav", "good.wav"), "good.wav is the input file: give another output file"),
    (("encode", "good.wav", "link"), "link is the input file: give another output file"),
    (("encode", "link", "good.wav"), "good.wav is the input file: give another output file"),
    (("decode", "own.codes", "own.codes"), "own.codes is the input file: give another output file"),
  ]
  for (command, source, target, *flags), sentence in cases:
    code, out, told = device(command, tmp_path / source, tmp_path / target, model, *flags)
    assert code == 2 and sentence in told and "Traceback" not in told, (source, target, told)
    assert told.splitlines()[-1].startswith("error: ") and not out
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_commands_read_and_write_pipes(codec_folder, tmp_path, rng):
  """Standard output has only the bytes of the file; messages go to standard error."""
  model = f"--model={codec_folder}"
  write_wav(tmp_path / "in.wav", speech(5000, rng))
  assert device("encode", tmp_path / "in.wav", tmp_path / "a.codes", model)[0] == 0
  assert device("decode", tmp_path / "a.codes", tmp_path / "out.wav", model)[0] == 0

  def piped(command, content, *arguments, **options):
    command = [sys.executable, "-m", "export.device", command, *arguments, model]
    result = subprocess.run(command, cwd=ROOT, input=content, stderr=subprocess.PIPE, check=False, **options)
    assert result.returncode == 0 and b"times real time" in result.stderr, result.stderr
    return result

  codes = piped("encode", (tmp_path / "in.wav").read_bytes(), "-", "-", stdout=subprocess.PIPE)
  assert codes.stdout == (tmp_path / "a.codes").read_bytes() and b"kbit/s" in codes.stderr
  wav = piped("decode", codes.stdout, "-", "/dev/stdout", stdout=subprocess.PIPE)
  assert wav.stdout == (tmp_path / "out.wav").read_bytes()
  os.mkfifo(tmp_path / "pipe")
  with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
    piped("encode", (tmp_path / "in.wav").read_bytes(), "/dev/stdin", str(tmp_path / "pipe"), stdout=subprocess.PIPE)
    assert reader.stdout.read() == codes.stdout
  with open(tmp_path / "redirected", "wb") as file:
    piped("decode", codes.stdout, "-", "-", stdout=file)
  assert (tmp_path / "redirected").read_bytes() == wav.stdout


def test_recording_on_standard_input_is_not_overwritten(tmp_path, rng):
  write_wav(tmp_path / "in.wav", speech(5000, rng))
  content = (tmp_path / "in.wav").read_bytes()
  command = [sys.executable, "-m", "export.device", "encode", "-", str(tmp_path / "in.wav")]
  with open(tmp_path / "in.wav", "rb") as file:
    result = subprocess.run(command, cwd=ROOT, stdin=file, capture_output=True, text=True, check=False)
  assert result.returncode == 2 and "in.wav is the input file: give another output file" in result.stderr
  assert (tmp_path / "in.wav").read_bytes() == content


def test_write_keeps_links_modes_and_devices(tmp_path):
  target, link = tmp_path / "target", tmp_path / "link"
  target.write_bytes(b"old")
  target.chmod(0o600)
  link.symlink_to(target)
  longest = "n" * 255
  for path in (link, tmp_path / longest, pathlib.Path("/dev/null")):
    files.check_target("nothing", str(path))
    files.write(str(path), b"new")
  assert link.is_symlink() and target.read_bytes() == b"new" and stat.S_IMODE(target.stat().st_mode) == 0o600
  assert stat.S_ISCHR(pathlib.Path("/dev/null").stat().st_mode)
  assert {path.name for path in tmp_path.iterdir()} == {"target", "link", longest}
  with pytest.raises(CodecError, match="/dev/full could not be written: No space left on device"):
    files.write("/dev/full", b"new")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_command_leaves_no_file(number, code, tmp_path, rng):
  write_wav(tmp_path / "in.wav", speech(16_000 * 600, rng))
  command = [sys.executable, "-m", "export.device", "encode", str(tmp_path / "in.wav"), str(tmp_path / "out")]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
  process = subprocess.Popen(command, cwd=ROOT, preexec_fn=default_signals, **pipes)
  assert process.stderr.read(1)  # the progress bar
  process.send_signal(number)
  out, told = process.communicate()
  assert process.returncode == code and told.endswith(b"\nstopped\n") and not out, told
  assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_command_stopped_while_writing_leaves_no_file(tmp_path):
  code = """if True:
    import os, pathlib, signal, sys
    import export.device.__main__ as program
    from export.device import files
    replace = pathlib.Path.replace
    pathlib.Path.replace = lambda *paths: print(os.listdir(sys.argv[1])) or os.kill(os.getpid(), signal.SIGTERM)
    program._encode = lambda codec, source, target: files.write(target, b"content")
    sys.exit(program.main(["encode", "nothing", sys.argv[1] + "/out"]))
  """
  command = [sys.executable, "-c", code, str(tmp_path)]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert result.returncode == 143 and result.stderr == "stopped\n" and ".partial-" in result.stdout, result
  assert not list(tmp_path.iterdir())


def test_shipped_codec_works(tmp_path, rng):
  write_wav(tmp_path / "in.wav", speech(8000, rng))
  assert device("encode", tmp_path / "in.wav", tmp_path / "a.codes")[0] == 0
  assert device("decode", tmp_path / "a.codes", tmp_path / "out.wav", "--speaker=it")[0] == 0
  with wave.open(str(tmp_path / "out.wav")) as file:
    assert file.getnframes() == 8000
  shipped = [*(ROOT / "export" / "device" / "speech").iterdir(), *(ROOT / "tfvq" / "released").iterdir()]
  assert sum(path.stat().st_size for path in shipped) < 6e6
