"""Encodes speech to 250 codes of 9 bits per second with the model in this package, and decodes them.

  tfvq-reconstruct in.wav out.wav
  tfvq-reconstruct in.mp3 out.wav --speaker=fr
  tfvq-reconstruct - - <in.flac | aplay

The input is a WAV, FLAC, MP3 or Ogg Vorbis file; the output is a WAV file, mono, 16 bits, at the sample rate of the
model: 16 kHz for the one in the package. A file named - is standard input or output. The model can decode to a few
speakers; --speaker selects one. The model card is tfvq/released/README.md.
"""

import io
import sys
import time

from absl import flags

from tfvq.errors import UserError, parse_flags, run_program
from tfvq.files import check_writable, file_path, is_same_file, is_standard_output, is_stream
from tfvq.startup import import_tensorflow, start_xla

_MODEL = flags.DEFINE_string("model", "", "A file written by `python -m tfvq.release`; default: the package's model.")
_SPEAKER = flags.DEFINE_string("speaker", "", "Speaker of the output; default: the model's first speaker.")
_SEED = flags.DEFINE_integer(
  "seed",
  0,
  "Seed of the noise, 0 to 2147483647; the same seed gives the same output.",
  lower_bound=0,
  upper_bound=2**31 - 1,
)
_TEMPERATURE = flags.DEFINE_list(
  "temperature", [], "Temperature of the decoder, one value or one for each band; default: the model's own."
)


def main(argv):
  """Reads, encodes, decodes and writes."""
  if len(argv) != 3:
    raise UserError("Give an input and an output file: tfvq-reconstruct in.wav out.wav")
  source, target = argv[1], "/dev/stdout" if argv[2] == "-" else argv[2]
  _check_target(source, target)
  import_tensorflow()

  import numpy as np
  import tqdm

  from tfvq.data.audio_files import AudioReader, write_wav
  from tfvq.models.speech_codec import SpeechCodec
  from tfvq.ops.loudness import frame_powers, gain_to_level
  from tfvq.release import chosen_temperature, load_released

  if source == "-" or is_stream(source):
    reader = AudioReader(_content(source), name="standard input" if source == "-" else source)
  else:
    reader = AudioReader(source)
  model, facts = load_released(_MODEL.value)  # after the input, because it takes longer
  rate_hz = reader.sample_rate_hz = model.sample_rate_hz
  speaker = _SPEAKER.value or facts["speakers"][0]
  if speaker not in facts["speakers"]:
    raise UserError(f"The model has no speaker {speaker!r}; choose one of {', '.join(facts['speakers'])}.")
  temperature = chosen_temperature(_TEMPERATURE.value, facts["temperature"], model.decoder.num_bands)
  began_at = time.monotonic()
  start_xla()
  codec = SpeechCodec(model, facts["speakers"], temperature)
  gain = gain_to_level(np.concatenate([frame_powers(part, rate_hz) for part in reader.parts()]))
  encoder = codec.encoder()
  codes = np.concatenate([*(encoder.push(gain * part) for part in reader.parts()), encoder.finish()])
  decoder = codec.decoder(speaker, _SEED.value)
  with tqdm.tqdm(total=reader.num_samples / rate_hz, desc="speech", unit="s", dynamic_ncols=True) as bar:

    def speech():
      for start in range(0, len(codes), codec.frames_per_part):
        yield decoder.push(codes[start : start + codec.frames_per_part])
      yield decoder.finish()

    def parts():
      samples_left = reader.num_samples
      for part in speech():
        part = part[:samples_left]
        samples_left -= len(part)
        bar.update(round(len(part) / rate_hz, 3))
        yield part / gain

    write_wav(target, parts(), rate_hz)
  seconds, elapsed = reader.num_samples / rate_hz, time.monotonic() - began_at
  kilobits = len(codes) * np.prod(model.encoder.output_shape[2:-1]) * model.quantizer.bits / 1000
  print(
    f"{target}: {seconds:.2f} s of speech in {kilobits:.2f} kbit ({kilobits / seconds:.2f} kbit/s), speaker {speaker}; "
    f"took {elapsed:.1f} s, {seconds / elapsed:.2f} times real time",
    file=sys.stderr if is_standard_output(target) else sys.stdout,
  )


def _check_target(source, target):
  """Checks that the output can be written and is not the input, before anything is computed."""
  if not is_stream(target) and file_path(target).suffix.lower() != ".wav":
    raise UserError(f"{target} must be a WAV file: give it a name that ends in .wav.")
  if is_same_file("/dev/stdin" if source == "-" else source, target):
    raise UserError(f"{target} is the input file: give another output file.")
  check_writable(target)


def _content(source):
  """Reads all of standard input, a pipe or a device, as a seekable file."""
  try:
    with open(0 if source == "-" else source, "rb", closefd=source != "-") as file:
      return io.BytesIO(file.read())
  except OSError as error:
    raise UserError(f"{source} could not be read ({error.strerror}).") from error


def run() -> None:
  """Runs the program on the command line's flags."""
  run_program(main, lambda argv: parse_flags(argv, __doc__, (_SPEAKER, _MODEL, _SEED, _TEMPERATURE)))


if __name__ == "__main__":
  run()
