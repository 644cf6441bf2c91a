"""Measures the quality of speech codecs, and of Codec2, on clips of benchmarks/speech_clips.py; prints tables.

  pip install -r requirements-eval.txt    # in a separate environment; Codec2 is Debian's package codec2
  python benchmarks/speech_quality.py clips --transcripts=core-sounds-en.txt.gz --out=runs/speech/quality.json

To show the tables of --out in the report of the run, run its stage `evaluation` again.

All decoded clips are aligned in the same way. The metrics are ViSQOL (speech mode), PESQ (wide band), STOI, the word
error rates of pocketsphinx with a language model of the prompts and with its general one, hiss (the increase of the log
mel magnitudes, which are at least 1e-5, in the quietest tenth of the frames), and the fraction of converted clips whose
voice is closer to the target speaker than to the source. Transcripts have lines `name: text`.
"""

import argparse
import collections
import gzip
import json
import math
import pathlib
import re
import signal
import subprocess
import tempfile

import librosa
import numpy as np
import pesq
import pocketsphinx
import pystoi
import soundfile

RATE_HZ = 16_000
MAX_DELAY = 800  # largest delay of a codec in samples, positive or negative
PEER = "Codec2 2400"  # that the project's codecs are compared with
NUM_BOOTSTRAPS = 10_000


def main():
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends silently in `| head`
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("clips", type=pathlib.Path)
  parser.add_argument("--transcripts", type=pathlib.Path)
  parser.add_argument("--only", default="", help="comma-separated metrics, such as stoi,hiss (default: all)")
  parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the tables to")
  arguments = parser.parse_args()
  originals = read_folder(arguments.clips / "original")
  codecs = {"original": originals}
  for name in ("tfvq", "device"):
    if (arguments.clips / name).exists():
      codecs[name] = read_folder(arguments.clips / name)
  for mode in ("2400", "1200"):
    codecs[f"Codec2 {mode}"] = {name: codec2(audio, mode) for name, audio in originals.items()}
  figures = {"visqol": visqol(), "pesq": wide_band_pesq, "stoi": stoi, "hiss": hiss}
  if arguments.transcripts:
    texts = read_transcripts(arguments.transcripts)
    figures["wer_closed"], figures["wer_general"] = word_errors(texts, closed=True), word_errors(texts, closed=False)
  chosen = [name for name in figures if not arguments.only or name in arguments.only.split(",")]
  measured = {}
  for codec, clips in codecs.items():
    aligned = {name: align(original, clips[name]) for name, original in originals.items()}
    measured[codec] = {name: np.array(figures[name](originals, aligned), np.float64) for name in chosen}
  rows = [[codec, *(with_interval(measured[codec][name]) for name in chosen)] for codec in codecs]
  for codec in ("tfvq", "device"):
    if codec not in codecs:
      continue
    differences = (with_interval(measured[codec][name], measured[PEER][name]) for name in chosen)
    rows.append([f"{codec} - {PEER}", *differences])
  title = (
    f"Quality of {len(originals)} held-out clips, {sum(map(len, originals.values())) / RATE_HZ:.0f} s, with 95 % "
    "bootstrap intervals over the clips"
  )
  tables = [{"title": title, "columns": ["codec", *chosen], "rows": rows}]
  if (arguments.clips / "tfvq_converted").exists() and not arguments.only:
    word_error = figures.get("wer_closed")
    tables.append(conversion(arguments.clips, word_error, originals))
  for table in tables:
    print("\n" + table["title"])
    widths = [max(map(len, column)) for column in zip(table["columns"], *table["rows"], strict=True)]
    for row in (table["columns"], *table["rows"]):
      print("".join(cell.ljust(width + 2) for cell, width in zip(row, widths, strict=True)))
  if arguments.out:
    arguments.out.write_text(json.dumps({"tables": tables}, indent=2) + "\n")


def with_interval(values, others=None):
  """A metric and its interval as text, from the sums and the counts of each clip, [clips, 2].

  With `others`, the values of a second codec for the same clips, it is the difference between the two codecs.
  """
  samples = np.random.default_rng(0).integers(0, len(values), [NUM_BOOTSTRAPS, len(values)])

  def figure(clips):
    totals = [each[clips].sum(axis=-2) for each in (values, others) if each is not None]
    figures = [total[..., 0] / np.maximum(total[..., 1], 1) for total in totals]
    return figures[0] - figures[1] if others is not None else figures[0]

  low, high = np.percentile(figure(samples), [2.5, 97.5])
  sign = "+" if others is not None else ""
  return f"{figure(np.arange(len(values))):{sign}.3f} ({low:{sign}.3f}..{high:{sign}.3f})"


def read_folder(folder):
  """The clips of a folder by name, resampled to 16 kHz, which the metrics need."""
  clips = {path.stem: soundfile.read(path, dtype="float32") for path in sorted(folder.glob("*.wav"))}
  return {name: librosa.resample(audio, orig_sr=rate_hz, target_sr=RATE_HZ) for name, (audio, rate_hz) in clips.items()}


def read_transcripts(path):
  texts = {}
  with gzip.open(path, "rt") as file:
    for line in file:
      name, _, text = line.partition(":")
      if text and not line.startswith(";"):
        texts[name.strip().replace("/", "-")] = re.sub(r"[^a-z' ]", " ", text.lower()).split()
  return texts


def codec2(audio, mode):
  """Encodes and decodes audio with Codec2, which works at 8 kHz."""
  with tempfile.TemporaryDirectory() as folder:
    raw, bits, out = (pathlib.Path(folder) / name for name in ("a.raw", "a.bit", "b.raw"))
    narrow = librosa.resample(audio, orig_sr=RATE_HZ, target_sr=8000)
    raw.write_bytes((np.clip(narrow, -1, 1) * 32767).astype("<i2").tobytes() + bytes(2 * 640))
    subprocess.run(["c2enc", mode, raw, bits], check=True, capture_output=True)
    subprocess.run(["c2dec", mode, bits, out], check=True, capture_output=True)
    decoded = np.frombuffer(out.read_bytes(), "<i2").astype(np.float32) / 32768
  return librosa.resample(decoded, orig_sr=8000, target_sr=RATE_HZ)


def align(original, decoded):
  """Shifts the decoded clip so that its envelope matches the original's best, and cuts it to the same length."""
  padded = np.pad(decoded, [MAX_DELAY, MAX_DELAY + max(0, len(original) - len(decoded))])
  envelope = lambda audio: np.sqrt(np.convolve(audio**2, np.ones(80) / 80, mode="same"))
  reference, candidate = envelope(original), envelope(padded)
  scores = [np.dot(reference, candidate[delay : delay + len(original)]) for delay in range(0, 2 * MAX_DELAY, 8)]
  delay = 8 * int(np.argmax(scores))
  return padded[delay : delay + len(original)]


def visqol():
  from visqol import VisqolApi

  api = VisqolApi()
  api.create(mode="speech")
  measure = lambda original, decoded: (
    api.measure_from_arrays(original.astype(np.float64), decoded.astype(np.float64), RATE_HZ).moslqo
  )
  return lambda originals, decoded: [(measure(originals[name], decoded[name]), 1) for name in originals]


def wide_band_pesq(originals, decoded):
  return [(pesq.pesq(RATE_HZ, originals[name], decoded[name], "wb"), 1) for name in originals]


def stoi(originals, decoded):
  return [(pystoi.stoi(originals[name], decoded[name], RATE_HZ), 1) for name in originals]


def hiss(originals, decoded):
  excess = []
  for name in originals:
    original, output = log_mel(originals[name]), log_mel(decoded[name])
    loudness = original.mean(axis=0)
    quiet = loudness <= np.quantile(loudness, 0.1)
    excess.append(((output[:, quiet] - original[:, quiet]).mean(), 1))
  return excess


def log_mel(audio):
  mel = librosa.feature.melspectrogram(y=audio, sr=RATE_HZ, n_fft=512, win_length=400, hop_length=160, power=1.0)
  return np.log(np.maximum(mel, 1e-5))


def word_errors(texts, closed):
  """Returns the metric word error rate, over the clips whose words are all in the recogniser's dictionary."""
  with tempfile.TemporaryDirectory() as folder:
    settings = {"samprate": RATE_HZ, "loglevel": "FATAL"}
    if closed:
      path = pathlib.Path(folder) / "prompts.arpa"
      path.write_text(bigrams(texts.values()))
      settings["lm"] = str(path)
    decoder = pocketsphinx.Decoder(**settings)
    known = pocketsphinx.Decoder(samprate=RATE_HZ, loglevel="FATAL")

  def measure(originals, decoded):
    errors = []
    for name in originals:
      text = texts.get(name)
      if not text or any(known.lookup_word(word) is None for word in text):
        errors.append((0, 0))
        continue
      decoder.start_utt()
      decoder.process_raw((np.clip(decoded[name], -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
      decoder.end_utt()
      hypothesis = decoder.hyp()
      recognised = re.sub(r"\(\d+\)", "", hypothesis.hypstr).split() if hypothesis else []
      errors.append((edit_distance(text, recognised), len(text)))
    return errors

  return measure


def bigrams(sentences):
  """A back-off bigram language model with absolute discounting, in the ARPA format."""
  pairs, singles = collections.Counter(), collections.Counter()
  for sentence in sentences:
    marked = ["<s>", *sentence, "</s>"]
    singles.update(marked[1:])
    pairs.update(zip(marked, marked[1:], strict=False))
  followers = collections.Counter(first for first, _ in pairs)
  totals = collections.Counter()
  for (first, _), count in pairs.items():
    totals[first] += count
  lines = ["\\data\\", f"ngram 1={len(singles) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
  for word in ["<s>", *sorted(singles)]:
    probability = math.log10(singles[word] / sum(singles.values())) if singles[word] else -99
    back_off = math.log10(0.5 * followers[word] / totals[word]) if totals[word] else 0
    lines.append(f"{probability:.4f} {word} {back_off:.4f}")
  lines += ["", "\\2-grams:"]
  for (first, second), count in sorted(pairs.items()):
    lines.append(f"{math.log10((count - 0.5) / totals[first]):.4f} {first} {second}")
  return "\n".join([*lines, "", "\\end\\", ""])


def edit_distance(reference, hypothesis):
  row = list(range(len(hypothesis) + 1))
  for i, word in enumerate(reference, 1):
    previous, row[0] = row[0], i
    for j, other in enumerate(hypothesis, 1):
      previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
  return row[-1]


def conversion(clips, word_error, originals):
  """Measures whether converted clips sound like the target, by cosines to both speakers' mean voice embeddings."""
  from resemblyzer import VoiceEncoder

  encoder = VoiceEncoder("cpu", verbose=False)
  embed = lambda audio: encoder.embed_utterance(0.056 * audio / max(np.sqrt(np.mean(audio**2)), 1e-6))
  sounds = {name: read_folder(clips / name) for name in _VOICES if (clips / name).exists()}
  voices = {name: [embed(audio) for audio in recordings.values()] for name, recordings in sounds.items()}
  mean = {name: np.mean(found, axis=0) / np.linalg.norm(np.mean(found, axis=0)) for name, found in voices.items()}
  rows = []
  for name in voices:
    to_source, to_target = (
      np.array([voice @ mean[other] for voice in voices[name]]) for other in ("original", "second")
    )
    row = [name, f"{to_source.mean():.3f}", f"{to_target.mean():.3f}", f"{np.mean(to_target > to_source):.0%}"]
    has_same_text = word_error and name != "second"
    errors, words = np.sum(word_error(originals, sounds[name]), axis=0) if has_same_text else (0, 0)
    rows.append([*row, f"{errors / words:.1%}" if words else ""])
  columns = ["similarity of", "to the source", "to the target", "nearer target", "word error rate"]
  return {
    "title": "Voices: cosine similarity of their embeddings to the mean of each speaker",
    "columns": columns,
    "rows": rows,
  }


_VOICES = ("original", "second", "tfvq", "tfvq_converted", "device", "device_converted")

if __name__ == "__main__":
  main()
