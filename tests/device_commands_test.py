import os
import pathlib
import signal
import stat
import subprocess
import sys
import wave

import pytest

from export.device import CodecError, SpeechCodec, codes_file, files
from tests.device_codes_test import encoded
from tests.processes import default_signals
from tests.sound import modulated_noise

ROOT = pathlib.Path(__file__).parent.parent

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
  write_wav(tmp_path / "in.wav", modulated_noise(5000, rng))
  code, out, messages = device("encode", tmp_path / "in.wav", tmp_path / "a.codes", f"--model={codec_folder}")
  assert code == 0 and "kbit/s" in out and "times real time" in messages, messages
  code, out, messages = device(
    "decode", tmp_path / "a.codes", tmp_path / "out.wav", f"--model={codec_folder}", "--speaker=en-us+f2"
  )
  assert code == 0 and "times real time" in messages, messages
  with wave.open(str(tmp_path / "out.wav")) as file:
    assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (16_000, 1, 2, 5000)
  assert {path.name for path in tmp_path.iterdir()} == {"in.wav", "a.codes", "out.wav"}


def test_wrong_input_prints_one_line(codec_folder, tmp_path, rng):
  audio, model = modulated_noise(2000, rng), f"--model={codec_folder}"
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
    (("encode", "good.wav", "missing/out"), "/missing does not exist"),
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
    code, out, messages = device(command, tmp_path / source, tmp_path / target, model, *flags)
    assert code == 2 and sentence in messages and "Traceback" not in messages, (source, target, messages)
    assert messages.splitlines()[-1].startswith("error: ") and not out
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_commands_read_and_write_pipes(codec_folder, tmp_path, rng):
  """Standard output has only the bytes of the file; messages go to standard error."""
  model = f"--model={codec_folder}"
  write_wav(tmp_path / "in.wav", modulated_noise(5000, rng))
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
  write_wav(tmp_path / "in.wav", modulated_noise(5000, rng))
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
  write_wav(tmp_path / "in.wav", modulated_noise(16_000 * 600, rng))
  command = [sys.executable, "-m", "export.device", "encode", str(tmp_path / "in.wav"), str(tmp_path / "out")]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
  process = subprocess.Popen(command, cwd=ROOT, preexec_fn=default_signals, **pipes)
  assert process.stderr.read(1)  # the progress bar
  process.send_signal(number)
  out, messages = process.communicate()
  assert process.returncode == code and messages.endswith(b"\nstopped\n") and not out, messages
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
  write_wav(tmp_path / "in.wav", modulated_noise(8000, rng))
  assert device("encode", tmp_path / "in.wav", tmp_path / "a.codes")[0] == 0
  assert device("decode", tmp_path / "a.codes", tmp_path / "out.wav", "--speaker=it")[0] == 0
  with wave.open(str(tmp_path / "out.wav")) as file:
    assert file.getnframes() == 8000
  shipped = [*(ROOT / "export" / "device" / "speech").iterdir(), *(ROOT / "tfvq" / "released").iterdir()]
  assert sum(path.stat().st_size for path in shipped) < 6e6
