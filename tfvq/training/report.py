"""The report: one self-contained HTML page, and a short table for the terminal."""

import pathlib

from tfvq.evaluation.sections import curves_section
from tfvq.extras import extra
from tfvq.files import atomic_write, read_json
from tfvq.training.callbacks import read_curves

with extra("train"):
  import jinja2
  import rich.console
  import rich.table

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
  "bits_per_sample": "bits per sample",
  "kilobits_per_second": "kbit/s",
  "nats_per_sample": "nats per sample, given the codes",
  "gain_nats": "... more without codes",
  "gain_over_shuffled_nats": "... more with shuffled codes",
  "gain_of_speaker_nats": "... more with another speaker",
  "nats_of_dense": "... decoder trained on as long as the pruned one",
  "nats_of_pruned": "... decoder pruned",
  "decoder_weights_of_dense": "weights of the decoder",
  "decoder_weights_of_pruned": "... pruned",
}
_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")


def write_report(run) -> None:
  """Writes `report.html` of a run whose `metrics.json` is written."""
  metrics = read_json(run.workdir.path / "metrics.json")
  shown = run.task.report_sections(run)
  for stage in ("autoencoder", "prior"):
    if stage in run.task.stages:
      shown += _curves_of(stage, run.workdir.folder(stage))
  page = (
    jinja2.Environment(autoescape=True)
    .from_string(_TEMPLATE.read_text())
    .render(
      title=run.workdir.path.name,
      command=run.command,
      config=run.config.to_json(indent=2),
      figures=_table(metrics),
      columns=_columns(metrics),
      stages=[(stage, f"{value:,.0f}", _told_of(stage, run.workdir)) for stage, value in metrics["seconds"].items()],
      sections=shown,
    )
  )
  with atomic_write(run.workdir.path / "report.html") as temporary:
    temporary.write_text(page, encoding="utf-8")


def _told_of(stage, workdir):
  """What a stage noted down beside its seconds, in words."""
  facts = workdir.facts(stage) if workdir.is_done(stage) else {}

  def words(value):
    if isinstance(value, dict):
      return ", ".join(f"{key.replace('_', ' ')} {words(number)}" for key, number in value.items())
    return ", ".join(value) if isinstance(value, list) else f"{value:,.0f}"

  return "; ".join(
    f"{key.replace('_', ' ')}: {words(value)}" for key, value in facts.items() if key not in ("seconds", "figures")
  )


def _curves_of(stage, folder):
  """The curves of a stage's training, those of the parts that were trained before the whole first."""
  paths = sorted(folder.rglob("curves.csv"), key=lambda path: len(path.parts), reverse=True)
  parts = [path.parent.relative_to(folder).name for path in paths]
  titles = [f"Training of the {stage}" + (f", {part}" if part else "") for part in parts]
  return [curves_section(title, read_curves(path)) for title, path in zip(titles, paths, strict=True)]


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
  if isinstance(value, int):
    return f"{value:,}"
  return f"{100 * value:.1f} %" if key.endswith("fraction") else f"{value:.2f}"
