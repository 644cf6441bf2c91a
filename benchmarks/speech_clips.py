"""Writes held-out recordings and their reconstructions by a speech model, for benchmarks/speech_quality.py.

  python -m benchmarks.speech_clips --workdir=runs/speech --out=clips --language=en/
  python -m benchmarks.speech_clips --workdir=runs/speech --out=tuning --split=validation --temperature=0.7

The clips are 1.2 to 7 seconds long, by --speaker in --language. The folder --out gets the sub-folders original, tfvq,
tfvq_converted (the clips decoded as the speaker --target) and second (recordings of that speaker). With --codec, it
also gets device and device_converted, the reconstructions by an exported codec.
"""

import pathlib

import numpy as np
from absl import flags

from tfvq.errors import UserError, parse_flags, run_program

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a speech run, for its corpus.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_MODEL = flags.DEFINE_string("model", "", "A released model; default: the run's own.")
_CODEC = flags.DEFINE_string("codec", "", "Folder of an exported codec.")
_SPLIT = flags.DEFINE_string("split", "held_out", "Split of the corpus.")
_SPEAKER = flags.DEFINE_string("speaker", "", "Speaker of the clips; default: the first of the corpus.")
_TARGET = flags.DEFINE_string("target", "", "Speaker of the converted clips; default: the second of the corpus.")
_LANGUAGE = flags.DEFINE_string("language", "", "Prefix of the clips' names, such as en/ or nl/.")
_NUM = flags.DEFINE_integer("num", 20, "Number of clips.")
_TEMPERATURE = flags.DEFINE_list("temperature", [], "One value, or one for each band; default: the model's own.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")


def main(argv):
  from export.device import CodecError
  from export.device import SpeechCodec as DeviceCodec
  from tfvq.data.audio_files import write_wav
  from tfvq.models.speech_codec import SpeechCodec
  from tfvq.release import chosen_temperature, load_released
  from tfvq.tasks.stages import open_task

  del argv
  task = open_task(_WORKDIR.value)
  if _MODEL.value:
    model, facts = load_released(_MODEL.value)
  else:
    model, facts = task.autoencoder, task.config.samples
  rate_hz = model.sample_rate_hz
  if task.corpus.sample_rate_hz != rate_hz:
    raise UserError(
      f"The corpus of {_WORKDIR.value} has {task.corpus.sample_rate_hz} Hz, but {_MODEL.value} needs {rate_hz} Hz: "
      "choose another --model."
    )
  clips = [clip for clip in task.corpus.clips(_SPLIT.value) if 1.2 <= len(clip.audio) / rate_hz <= 7]
  speakers = task.corpus.speakers
  for name in (_SPEAKER.value, _TARGET.value):
    if name and name not in speakers:
      raise UserError(f"The corpus has no speaker {name!r}; choose one of {', '.join(speakers)}.")
  source = speakers.index(_SPEAKER.value or speakers[0])
  target = speakers.index(_TARGET.value or speakers[1 % len(speakers)])
  first = [clip for clip in clips if clip.speaker == source and clip.name.startswith(_LANGUAGE.value)][: _NUM.value]
  if not first:
    raise UserError(f"{speakers[source]} has no clip of 1.2 to 7 s whose name begins with {_LANGUAGE.value!r}.")
  out = pathlib.Path(_OUT.value)
  if out.exists() and any(out.iterdir()):
    raise UserError(f"{out} is not empty, and its files would be measured too: choose another --out.")
  num_samples = -(-max(len(clip.audio) for clip in first) // model.hop_samples) * model.hop_samples
  audio = np.stack([np.pad(clip.audio, [0, num_samples - len(clip.audio)]) for clip in first])
  codec = SpeechCodec(model)
  codes = codec.encode(audio)
  temperature = chosen_temperature(_TEMPERATURE.value, facts["temperature"], model.decoder.num_bands)
  voices = {"": source, "_converted": target} if _SPLIT.value == "held_out" else {"": source}
  for kind, speaker in voices.items():
    spoken = codec.decode(codes, np.full(len(first), speaker), _SEED.value, temperature)
    for clip, sound in zip(first, spoken, strict=True):
      write_wav(out / f"tfvq{kind}" / f"{_name(clip)}.wav", [sound[: len(clip.audio)]], rate_hz)
  if _CODEC.value:
    try:
      exported = DeviceCodec(_CODEC.value)
    except CodecError as error:
      raise UserError(str(error)) from error
    if exported.sample_rate_hz != rate_hz:
      raise UserError(f"{_CODEC.value} needs {exported.sample_rate_hz} Hz, not {rate_hz} Hz: choose another --codec.")
    for clip in first:
      own_codes = exported.encode(clip.audio)
      for kind, speaker in voices.items():
        sound = exported.decode(own_codes, speakers[speaker], _SEED.value, temperature)
        write_wav(out / f"device{kind}" / f"{_name(clip)}.wav", [sound[: len(clip.audio)]], rate_hz)
  second = [clip for clip in clips if clip.speaker == target][: _NUM.value]
  for folder, chosen in (("original", first), ("second", second)):
    for clip in chosen:
      write_wav(out / folder / f"{_name(clip)}.wav", [clip.audio], rate_hz)


def _name(clip):
  return clip.name.removeprefix(_LANGUAGE.value).replace("/", "-")


if __name__ == "__main__":
  _FLAGS = (_WORKDIR, _OUT, _MODEL, _CODEC, _SPLIT, _SPEAKER, _TARGET, _LANGUAGE, _NUM, _TEMPERATURE, _SEED)
  run_program(main, lambda argv: parse_flags(argv, __doc__, _FLAGS))
