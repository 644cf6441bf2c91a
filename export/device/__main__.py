"""Encodes speech into a file of codes, and decodes it, on a device.

  tfvq-codec encode in.wav out.codes
  tfvq-codec decode out.codes out.wav [--speaker NAME]

In a checkout, `python -m export.device` is the same program. WAV files are 16 kHz, mono, 16 bits.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
import wave

import numpy as np

from . import codes_file
from .codec import SHIPPED, CodecError, SpeechCodec

_PART_SECONDS = 0.5  # after which the progress is told


def main(arguments=None) -> int:
  """Runs a command; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="tfvq-codec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True)
  encode = commands.add_parser("encode", help="a WAV file to a file of codes")
  decode = commands.add_parser("decode", help="a file of codes to a WAV file")
  for command in (encode, decode):
    command.add_argument("source", help="file to read")
    command.add_argument("target", help="file to write")
    command.add_argument("--model", default=str(SHIPPED), help="folder of an exported codec (default: the package's)")
  decode.add_argument("--speaker", default="", help="whose voice to speak with (default: the model's first)")
  decode.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
  flags = parser.parse_args(arguments)
  try:
    _check_target(flags.target)
    codec = SpeechCodec(flags.model)
    if flags.command == "encode":
      _encode(codec, flags.source, flags.target)
    else:
      _decode(codec, flags.source, flags.target, flags.speaker, flags.seed)
  except CodecError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _encode(codec, source, target):
  samples = _read_wav(source, codec.sample_rate_hz)
  gain = codec.gain_of(samples)
  stream, codes = codec.encoder(), []
  part = int(_PART_SECONDS * codec.sample_rate_hz)
  with _Progress("encode", len(samples) / codec.sample_rate_hz) as progress:
    for start in range(0, len(samples), part):
      codes.append(stream.push(gain * samples[start : start + part]))
      progress.advance(len(samples[start : start + part]) / codec.sample_rate_hz)
    codes = np.concatenate([*codes, stream.finish()])
  speech = codes_file.EncodedSpeech(codes, codec.model_id, gain, len(samples))
  content = codes_file.pack(speech, codec.num_embeddings, codec.hop_samples)
  _write(target, lambda path: path.write_bytes(content))
  kilobits = 8 * len(content) / 1000
  print(f"{target}: {len(content)} bytes, {kilobits / (len(samples) / codec.sample_rate_hz):.2f} kbit/s")


def _decode(codec, source, target, speaker, seed):
  try:
    content = pathlib.Path(source).read_bytes()
  except OSError as error:
    raise CodecError(f"{source} could not be read: {error.strerror}.") from error
  try:
    speech = codes_file.unpack(content, codec.model_id, codec.num_embeddings, codec.hop_samples, codec.frame_shape)
  except CodecError as error:
    raise CodecError(f"{source} cannot be decoded. {error}") from error
  stream, samples = codec.decoder(speaker, seed), []
  part = max(1, int(_PART_SECONDS * codec.sample_rate_hz) // codec.hop_samples)
  with _Progress("decode", speech.num_samples / codec.sample_rate_hz) as progress:
    for start in range(0, len(speech.codes), part):
      samples.append(stream.push(speech.codes[start : start + part]))
      progress.advance(len(speech.codes[start : start + part]) * codec.hop_samples / codec.sample_rate_hz)
    samples = np.concatenate([*samples, stream.finish()])[: speech.num_samples] / speech.gain
  _write(target, lambda path: _write_wav(path, samples, codec.sample_rate_hz))
  print(f"{target}: {len(samples) / codec.sample_rate_hz:.2f} s")


class _Progress:
  """A bar on the terminal, and how many times as fast as real time it went in the end."""

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

  def __exit__(self, *error):
    elapsed = time.monotonic() - self._began_at
    print(f", {self._done / elapsed:.2f} times real time", file=sys.stderr)


def _read_wav(path, sample_rate_hz):
  """Samples of a WAV file, float32 [T] in -1..1."""
  wanted = f"it must be a WAV file of {sample_rate_hz} Hz, mono, 16 bits, with one sample or more"
  try:
    with wave.open(str(path), "rb") as file:
      kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
      num_bytes = file.getnframes() * file.getnchannels() * file.getsampwidth()
      content = file.readframes(file.getnframes())
  except OSError as error:
    raise CodecError(f"{path} could not be read: {error.strerror}.") from error
  except (wave.Error, EOFError, RuntimeError) as error:  # the last where a chunk is said to be longer than the file
    raise CodecError(f"{path} cannot be encoded: {wanted} ({error or 'it breaks off'}).") from error
  if kind != (sample_rate_hz, 1, 2):
    raise CodecError(f"{path} has {kind[0]} Hz, {kind[1]} channels, {8 * kind[2]} bits: {wanted}.")
  if not content or len(content) < num_bytes:
    raise CodecError(f"{path} is empty or breaks off: {wanted}.")
  return np.frombuffer(content, "<i2").astype(np.float32) / 2**15


def _write_wav(path, samples, sample_rate_hz):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate_hz)
    file.writeframes(np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes())


def _check_target(path):
  """Refuses what cannot be written before anything is computed."""
  path = pathlib.Path(path)
  if not path.name or path.is_dir():
    raise CodecError(f"{path} is a folder: name a file in it.")
  if not path.parent.is_dir():
    raise CodecError(f"{path} could not be written: there is no folder {path.parent}.")


def _write(path, write):
  """Writes a file whole or not at all."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
  try:
    write(temporary)
    temporary.replace(path)
  except OSError as error:
    raise CodecError(f"{path} could not be written: {error.strerror}.") from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


if __name__ == "__main__":
  sys.exit(main())
