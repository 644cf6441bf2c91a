"""Piano music: scores from music21's corpus, played on a sampled piano; needs optional packages.

The scores are Bach's chorales and others in the public domain; the sound font comes with pretty_midi.
"""

import importlib.util
import pathlib

import numpy as np

from tfvq.errors import UserError

_SECONDS_PER_QUARTER = 0.6
_RELEASE_SECONDS = 1.0  # after the end of the last note
_VELOCITY = 80


def find_scores(composers: tuple[str, ...]) -> list[pathlib.Path]:
  """Lists the scores of composers, given as folder names of the corpus, such as "bach".

  Raises:
    UserError: A package is missing, or a composer has no score.
  """
  for package in ("music21", "pretty_midi", "tinysoundfont"):
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f"The source `piano` needs the package {package}: pip install --no-deps -r requirements-piano.txt."
      )
  from music21 import corpus

  scores = []
  for composer in composers:
    paths = sorted(pathlib.Path(path) for path in corpus.getComposer(composer))
    # Some scores exist in several formats: each is listed once. Roman numeral analyses are not scores.
    found = {path.stem: path for path in paths if path.suffix != ".rntxt"}
    if not found:
      raise UserError(f"music21's corpus has no score of {composer!r}.")
    scores += found.values()
  return scores


def play(score: pathlib.Path, sample_rate_hz: int, max_seconds: float = 60.0) -> np.ndarray:
  """Plays the first `max_seconds` of a score, float32 [T] in -1..1.

  Raises:
    UserError: The score cannot be read.
  """
  import tinysoundfont
  from music21 import converter

  try:
    notes = converter.parse(score).flatten().notes
  except Exception as error:  # music21 raises many kinds of exceptions
    raise UserError(f"{score} could not be read as a score.") from error
  to_samples = lambda quarters: int(float(quarters) * _SECONDS_PER_QUARTER * sample_rate_hz)
  events = []  # (sample, 1 for a start or 0 for an end, key): at the same sample, ends sort before starts
  for note in notes:
    begin, end = to_samples(note.offset), to_samples(note.offset + note.duration.quarterLength)
    if begin < max_seconds * sample_rate_hz and end > begin:
      events += [(begin, 1, pitch.midi) for pitch in note.pitches] + [(end, 0, pitch.midi) for pitch in note.pitches]
  if not events:
    raise UserError(f"{score} has no notes.")
  synth = tinysoundfont.Synth(gain=-6, samplerate=sample_rate_hz)
  sound_font = pathlib.Path(importlib.util.find_spec("pretty_midi").origin).with_name("TimGM6mb.sf2")
  synth.program_select(0, synth.sfload(str(sound_font)), 0, 0)
  parts, now = [], 0
  for sample, begins, key in sorted(events):
    if sample > now:
      parts.append(_generate(synth, sample - now))
      now = sample
    if begins:
      synth.noteon(0, key, _VELOCITY)
    else:
      synth.noteoff(0, key)
  parts.append(_generate(synth, int(_RELEASE_SECONDS * sample_rate_hz)))
  audio = np.concatenate(parts)[: int(max_seconds * sample_rate_hz)]
  return audio / max(1.0, np.abs(audio).max())


def _generate(synth, num_samples):
  stereo = np.frombuffer(synth.generate(num_samples), np.float32).reshape(-1, 2)
  return stereo.mean(axis=1)
