"""The report: one self-contained HTML page, and a short table for the terminal."""

import base64
import io
import pathlib

import jinja2
import matplotlib
import numpy as np
import rich.console
import rich.table
from PIL import Image

from tfvq.files import read_json, written_whole
from tfvq.training.callbacks import read_curves
from tfvq.training.evaluation import to_uint8

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt  # noqa: E402  after the choice of the backend

_TITLES = {
  "reconstruction_psnr_db": "reconstruction, PSNR in dB",
  "autoencoder_bits_per_dim": "autoencoder, bound in bits/dim",
  "codes_used_fraction": "codes in use",
  "perplexity": "perplexity of the codes",
  "uniform_bits_per_code": "bits per code, uniform",
  "order0_bits_per_code": "bits per code, order 0",
  "xz_bits_per_code": "bits per code, xz -9",
  "prior_bits_per_code": "bits per code, prior",
  "bits_per_dim": "bits/dim",
}
_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")


def image_grid(images: np.ndarray, num_columns: int) -> np.ndarray:
  """Images side by side, uint8 [N, H, W, C] -> uint8 [rows (H + 2), columns (W + 2), C], white between them."""
  num_rows = -(-len(images) // num_columns)
  _, height, width, channels = images.shape
  grid = np.full((num_rows * num_columns, height + 2, width + 2, channels), 255, np.uint8)
  grid[: len(images), 1:-1, 1:-1] = images
  grid = grid.reshape(num_rows, num_columns, height + 2, width + 2, channels).transpose(0, 2, 1, 3, 4)
  return grid.reshape(num_rows * (height + 2), num_columns * (width + 2), channels)


def save_image_grid(path, images: np.ndarray, num_columns: int) -> None:
  """Writes `image_grid` as PNG."""
  with written_whole(path) as temporary:
    _to_image(image_grid(images, num_columns)).save(temporary)


def write_report(run) -> None:
  """Writes `report.html` of a run whose `metrics.json` is written."""
  metrics = read_json(run.workdir.path / "metrics.json")
  source = run.task.source
  pictures = []
  if "autoencoder" in run.task.stages:
    for split in source.split_names:
      if split != "train":
        pictures.append(_reconstructions(run, split))
  if "prior" in run.task.stages:
    with np.load(run.workdir.folder("samples") / "samples.npz") as samples:
      pictures.append(
        {
          "title": f"Samples from the prior, temperature {run.config.samples.temperature}",
          "image": _data_url(_to_image(image_grid(samples["images"], 8)), scale=2),
        }
      )
  if run.has_codes:
    pictures.append({"title": "Use of the codebook on held-out data", "image": _usage_plot(run)})
  for stage in ("autoencoder", "prior"):
    if stage in run.task.stages:
      rows = read_curves(run.workdir.folder(stage) / "curves.csv")
      pictures.append({"title": f"Training of the {stage}", "image": _curve_plot(rows)})
  page = (
    jinja2.Environment(autoescape=True)
    .from_string(_TEMPLATE.read_text())
    .render(
      title=run.workdir.path.name,
      command=run.command,
      config=run.config.to_json(indent=2),
      figures=_table(metrics),
      columns=_columns(metrics),
      seconds=metrics["seconds"],
      pictures=pictures,
    )
  )
  with written_whole(run.workdir.path / "report.html") as temporary:
    temporary.write_text(page)


def print_summary(workdir) -> None:
  """Prints the figures of a finished run as a table, and where the report is."""
  metrics = read_json(workdir.path / "metrics.json")
  table = rich.table.Table("figure", *(column.replace("_", " ") for column in _columns(metrics)))
  for title, values in _table(metrics):
    table.add_row(title, *values)
  seconds = metrics["seconds"]
  console = rich.console.Console()
  console.print(table)
  console.print("seconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()), highlight=False)
  print(f"report: {workdir.path / 'report.html'}")


def _columns(metrics):
  return ["held_out", *(key for key, value in metrics.items() if isinstance(value, dict) and key != "seconds")]


def _table(metrics):
  """Rows (title, one formatted value per column)."""
  splits = [metrics, *(metrics[column] for column in _columns(metrics)[1:])]
  return [(title, [_format(key, split[key]) for split in splits]) for key, title in _TITLES.items() if key in metrics]


def _format(key, value):
  return f"{100 * value:.1f} %" if key.endswith("fraction") else f"{value:.2f}"


def _reconstructions(run, split):
  images = run.task.source.examples(split, run.config.report.num_images)
  reconstructions = to_uint8(run.autoencoder.reconstruct(images))
  return {
    "title": f"Originals (above) and reconstructions (below), {split.replace('_', ' ')}",
    "image": _data_url(_to_image(image_grid(np.concatenate([images, reconstructions]), len(images))), scale=2),
  }


def _usage_plot(run):
  codes = run.values.splits["held_out"]["codes"]
  counts = np.bincount(codes.ravel(), minlength=run.manifest["num_embeddings"])
  figure, axes = plt.subplots(figsize=(8, 2.5), layout="constrained")
  axes.bar(np.arange(len(counts)), np.sort(counts)[::-1] / counts.sum(), width=1.0)
  axes.set(xlabel="codes, most used first", ylabel="share of positions", yscale="log")
  return _figure_url(figure)


def _curve_plot(rows):
  names = [name for name in rows[0] if name not in ("step", "seconds")]
  figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), layout="constrained", squeeze=False)
  for axes, name in zip(panels[0], names, strict=True):
    axes.plot([row["step"] for row in rows], [row[name] for row in rows])
    axes.set(xlabel="step", title=name.replace("_", " "))
    if name == "loss" and min(row[name] for row in rows) > 0:
      axes.set_yscale("log")
    axes.grid(alpha=0.3)
  return _figure_url(figure)


def _to_image(array):
  return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _data_url(image, scale=1):
  file = io.BytesIO()
  image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(file, format="PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _figure_url(figure):
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=110)
  plt.close(figure)
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
