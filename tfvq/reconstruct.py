"""Sends speech through the codes of the model in this package: 250 codes of 9 bits a second, and back.

  tfvq-reconstruct in.wav out.wav
  tfvq-reconstruct in.mp3 out.wav --speaker=fr

Any WAV, FLAC, MP3 or Ogg Vorbis file will do; the output is 16 kHz, mono, 16 bits. The model has heard few voices: it
speaks with the one that --speaker names. Its card is tfvq/released/README.md.
"""

import time

from absl import flags

from tfvq.errors import UserError, parse_flags, run_program
from tfvq.startup import import_tensorflow

_MODEL = flags.DEFINE_string("model", "", "A file written by `python -m tfvq.release`; the package's own if empty.")
_SPEAKER = flags.DEFINE_string("speaker", "", "Whose voice to speak with; the model's first if empty.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise; the same one gives the same output.")
_TEMPERATURE = flags.DEFINE_list("temperature", [], "Of the decoder, one value or one for each band; the model's own.")


def main(argv):
  """Reads, encodes, decodes and writes."""
  import_tensorflow()
  import numpy as np
  import tqdm

  from tfvq.data.audio_files import SAMPLE_RATE_HZ, AudioReader, write_wav
  from tfvq.files import file_path
  from tfvq.models.speech_codec import SpeechCodec
  from tfvq.release import chosen_temperature, load_released

  if len(argv) != 3:
    raise UserError("Give two files, one to read and one to write: tfvq-reconstruct in.wav out.wav")
  if file_path(argv[2]).suffix.lower() != ".wav":
    raise UserError(f"{argv[2]} is to be a WAV file: give it a name that ends in .wav.")
  reader = AudioReader(argv[1])
  model, facts = load_released(_MODEL.value)
  speaker = _SPEAKER.value or facts["speakers"][0]
  if speaker not in facts["speakers"]:
    raise UserError(f"The model has no speaker {speaker!r}; choose one of {', '.join(facts['speakers'])}.")
  temperature = chosen_temperature(_TEMPERATURE.value, facts["temperature"], model.audio_values.num_bands)
  began_at = time.monotonic()
  codec = SpeechCodec(model)
  gain = codec.gain_of(reader)
  codes = codec.encode(reader, gain)
  with tqdm.tqdm(total=reader.num_samples / SAMPLE_RATE_HZ, desc="speech", unit="s", dynamic_ncols=True) as bar:

    def parts():
      samples_left = reader.num_samples
      id_ = facts["speakers"].index(speaker)
      for part in codec.decode_parts(codes[np.newaxis], [id_], _SEED.value, temperature):
        bar.update(round(min(samples_left, part.shape[1]) / SAMPLE_RATE_HZ, 3))
        yield part[0, :samples_left] / gain
        samples_left -= part.shape[1]

    write_wav(argv[2], parts())
  seconds, elapsed = reader.num_samples / SAMPLE_RATE_HZ, time.monotonic() - began_at
  kilobits = codes.size * np.log2(model.quantizer.num_embeddings) / 1000
  print(
    f"{argv[2]}: {seconds:.2f} s through {kilobits:.2f} kbit ({kilobits / seconds:.2f} kbit/s) as {speaker}, "
    f"{elapsed:.1f} s, {seconds / elapsed:.2f} times real time"
  )


def run() -> None:
  """Runs the program on the command line's flags."""
  run_program(main, lambda argv: parse_flags(argv, __doc__, (_SPEAKER, _MODEL, _SEED, _TEMPERATURE)))


if __name__ == "__main__":
  run()
