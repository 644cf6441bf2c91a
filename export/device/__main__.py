"""Encodes speech to a file of codes, and decodes such files, without TensorFlow.

  tfvq-codec encode in.wav out.codes
  tfvq-codec decode out.codes out.wav [--speaker NAME]

In a checkout, `python -m export.device` is the same program. WAV files must be mono, of 16 bits, and have the sample
rate of the model: 16 kHz for the one in the package. A file named - is standard input or output.
"""

import argparse
import os
import signal
import sys
import time

import numpy as np

from . import codes_file, files, wav_file
from .codec import SHIPPED, SpeechCodec
from .errors import CodecError

_PART_SECONDS = 0.5  # between two updates of the progress bar
_LARGEST_SEED = 2**31 - 1


def main(arguments=None) -> int:
  """Runs a command; returns the exit code.

  It is 141, and nothing is printed, if the reader of a pipe that the program prints to has closed it, as `head` does.
  """
  try:
    try:
      return _run(arguments)
    finally:
      if sys.stdout is not None:
        sys.stdout.flush()  # otherwise Python would flush it at exit, and print the error
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes at exit
    return 128 + 13  # 13 is SIGPIPE, which ends programs that are not written in Python


def _run(arguments):
  parser = argparse.ArgumentParser(
    prog="tfvq-codec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True)
  encode = commands.add_parser("encode", help="encode a WAV file to a file of codes")
  decode = commands.add_parser("decode", help="decode a file of codes to a WAV file")
  for command in (encode, decode):
    command.add_argument("source", help="file to read; - for standard input")
    command.add_argument("target", help="file to write; - for standard output")
    command.add_argument("--model", default=str(SHIPPED), help="folder of an exported codec (default: the package's)")
  decode.add_argument("--speaker", default="", help="speaker of the output (default: the model's first)")
  decode.add_argument("--seed", type=int, default=0, help=f"seed of the noise, 0 to {_LARGEST_SEED} (default: 0)")
  flags = parser.parse_args(arguments)
  for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
      signal.signal(number, _terminate)
  try:
    if flags.command == "decode" and not 0 <= flags.seed <= _LARGEST_SEED:
      raise CodecError(f"The seed is {flags.seed}; give a whole number from 0 to {_LARGEST_SEED}.")
    files.check_target(flags.source, flags.target)
    codec = SpeechCodec(flags.model)
    if flags.command == "encode":
      message = _encode(codec, flags.source, flags.target)
    else:
      message = _decode(codec, flags.source, flags.target, flags.speaker, flags.seed)
  except CodecError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as error:
    print("stopped", file=sys.stderr)
    return 128 + (error.args[0] if error.args else signal.SIGINT)
  print(message, file=sys.stderr if files.is_standard_output(flags.target) else sys.stdout)
  return 0


def _terminate(signal_number, frame):
  """Ends the program like Ctrl-C, so that no partial file is left."""
  del frame
  signal.signal(signal_number, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
  raise KeyboardInterrupt(signal_number)


def _encode(codec, source, target):
  """Encodes a file; returns the message about it."""
  with files.open_source(source) as file:
    samples = wav_file.read_wav(file, source, codec.sample_rate_hz)
  gain = codec.gain_of(samples)
  stream, codes = codec.encoder(), []
  part = int(_PART_SECONDS * codec.sample_rate_hz)
  with _Progress("encode", len(samples) / codec.sample_rate_hz) as progress:
    for start in range(0, len(samples), part):
      codes.append(stream.push(gain * samples[start : start + part]))
      progress.advance(len(samples[start : start + part]) / codec.sample_rate_hz)
    codes = np.concatenate([*codes, stream.finish()])
  speech = codes_file.EncodedSpeech(codes, codec.model_id, gain, len(samples))
  content = codes_file.pack(speech, codec.num_values, codec.hop_samples)
  files.write(target, content)
  kilobits = 8 * len(content) / 1000
  return f"{target}: {len(content)} bytes, {kilobits / (len(samples) / codec.sample_rate_hz):.2f} kbit/s"


def _decode(codec, source, target, speaker, seed):
  """Decodes a file; returns the message about it."""
  with files.open_source(source) as file:
    content = file.read()
  try:
    speech = codes_file.unpack(content, codec.model_id, codec.num_values, codec.hop_samples, codec.frame_shape)
  except CodecError as error:
    raise CodecError(f"{source} cannot be decoded. {error}") from error
  stream, samples = codec.decoder(speaker or 0, seed), []
  part = max(1, int(_PART_SECONDS * codec.sample_rate_hz) // codec.hop_samples)
  with _Progress("decode", speech.num_samples / codec.sample_rate_hz) as progress:
    for start in range(0, len(speech.codes), part):
      samples.append(stream.push(speech.codes[start : start + part]))
      progress.advance(len(speech.codes[start : start + part]) * codec.hop_samples / codec.sample_rate_hz)
    samples = np.concatenate([*samples, stream.finish()])[: speech.num_samples] / speech.gain
  files.write(target, wav_file.wav_bytes(samples, codec.sample_rate_hz))
  return f"{target}: {len(samples) / codec.sample_rate_hz:.2f} s"


class _Progress:
  """A progress bar on the terminal that ends with the speed, as a multiple of real time."""

  def __init__(self, title, seconds):
    self._title, self._seconds, self._done = title, seconds, 0.0

  def __enter__(self):
    self._began_at = time.monotonic()
    return self

  def advance(self, seconds):
    self._done = min(self._seconds, self._done + seconds)
    filled = int(30 * self._done / max(self._seconds, 1e-9))
    bar = "#" * filled + "." * (30 - filled)
    print(f"\r{self._title} [{bar}] {self._done:.1f}/{self._seconds:.1f} s", end="", file=sys.stderr, flush=True)

  def __exit__(self, error_type, error, traceback):
    elapsed = time.monotonic() - self._began_at
    print("" if error_type else f", {self._done / elapsed:.2f} times real time", file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main())
