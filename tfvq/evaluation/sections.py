"""Sections of a report: images, plots, tables and audio players, embedded in the HTML page."""

import base64
import dataclasses
import io

import numpy as np

from tfvq.data.audio_files import write_wav_to
from tfvq.extras import extra
from tfvq.files import atomic_write

with extra("train"):
  import matplotlib
  from PIL import Image

  matplotlib.use("Agg")  # needs no display
  import matplotlib.pyplot as plt


@dataclasses.dataclass
class Section:
  """A titled part of a report."""

  title: str
  image: str = ""  # data URL
  columns: list[str] = dataclasses.field(default_factory=list)  # titles of a table's columns
  rows: list[list] = dataclasses.field(default_factory=list)  # of a table; a cell is text or a `Player`


@dataclasses.dataclass
class Player:
  """Audio with its spectrogram, for a cell of a table."""

  audio: str  # data URL
  spectrogram: str  # data URL


def image_grid(images: np.ndarray, num_columns: int) -> np.ndarray:
  """Tiles images with white borders, uint8 [N, H, W, C] -> uint8 [rows (H + 2), columns (W + 2), C]."""
  num_rows = -(-len(images) // num_columns)
  _, height, width, channels = images.shape
  grid = np.full((num_rows * num_columns, height + 2, width + 2, channels), 255, np.uint8)
  grid[: len(images), 1:-1, 1:-1] = images
  grid = grid.reshape(num_rows, num_columns, height + 2, width + 2, channels).transpose(0, 2, 1, 3, 4)
  return grid.reshape(num_rows * (height + 2), num_columns * (width + 2), channels)


def save_image_grid(path, images: np.ndarray, num_columns: int) -> None:
  """Writes the result of `image_grid` to a PNG file, atomically."""
  with atomic_write(path) as temporary:
    _to_image(image_grid(images, num_columns)).save(temporary)


def image_section(title: str, images: np.ndarray, num_columns: int) -> Section:
  """A section with a grid of images, uint8 [N, H, W, C], at twice their size."""
  image = _to_image(image_grid(images, num_columns))
  image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
  return Section(title, image=_data_url("image/png", lambda file: image.save(file, format="PNG")))


def usage_section(codes: np.ndarray, num_values: int) -> Section:
  """A section with a bar chart of how often each code is used, from codes [N, ...] in 0..num_values-1."""
  counts = np.bincount(codes.ravel(), minlength=num_values)
  figure, axes = plt.subplots(figsize=(8, 2.5), layout="constrained")
  axes.bar(np.arange(len(counts)), np.sort(counts)[::-1] / counts.sum(), width=1.0)
  axes.set(xlabel="codes, most used first", ylabel="fraction of positions", yscale="log")
  return Section("Codebook usage on held-out data", image=_figure_url(figure))


def curves_section(title: str, rows: list[dict[str, float]]) -> Section:
  """A section with a plot of each metric over the training steps; rows as in `tfvq.training.callbacks.Curves`."""
  names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "seconds")]
  figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), layout="constrained", squeeze=False)
  for axes, name in zip(panels[0], names, strict=True):
    known = [row for row in rows if name in row]
    axes.plot([row["step"] for row in known], [row[name] for row in known])
    axes.set(xlabel="step", title=name.replace("_", " "))
    if name == "loss" and min(row[name] for row in known) > 0:
      axes.set_yscale("log")
    axes.grid(alpha=0.3)
  return Section(title, image=_figure_url(figure))


def player(audio: np.ndarray, sample_rate_hz: int) -> Player:
  """A player for audio, float [T] in -1..1, with its spectrogram."""
  window = 32 * sample_rate_hz // 1000
  length = max(window, len(audio))
  figure, axes = plt.subplots(figsize=(3.6, 1.8), layout="constrained")
  axes.specgram(
    np.pad(audio, [0, length - len(audio)]) + 1e-6 * np.random.default_rng(0).normal(size=length),
    NFFT=window,
    noverlap=3 * window // 4,
    Fs=sample_rate_hz,
    vmin=-140,
    vmax=-30,
    cmap="magma",
  )
  quarter = sample_rate_hz / 4
  axes.set(yticks=[0, quarter, 2 * quarter], yticklabels=["0", f"{quarter / 1000:g}", f"{quarter / 500:g} kHz"])
  axes.tick_params(labelsize=7)
  return Player(
    audio=_data_url("audio/wav", lambda file: write_wav_to(file, [audio], sample_rate_hz)),
    spectrogram=_figure_url(figure),
  )


def _to_image(array):
  return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _data_url(kind, write):
  file = io.BytesIO()
  write(file)
  return f"data:{kind};base64," + base64.b64encode(file.getvalue()).decode()


def _figure_url(figure):
  url = _data_url("image/png", lambda file: figure.savefig(file, format="png", dpi=110))
  plt.close(figure)
  return url
