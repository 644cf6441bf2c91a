"""The report: one self-contained HTML page, and a short table for the terminal."""

import pathlib

from tfvq.evaluation.metrics import Metric
from tfvq.evaluation.sections import Section
from tfvq.extras import extra
from tfvq.files import atomic_write, read_json
from tfvq.training.workdir import Workdir

with extra("train"):
  import jinja2
  import rich.console
  import rich.table

_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")


def write_report(
  workdir: Workdir, metrics: tuple[Metric, ...], sections: list[Section], *, command: str, config: str
) -> None:
  """Writes `report.html` of a workdir that has `metrics.json`.

  Args:
    workdir: The workdir.
    metrics: Titles and units of the metrics.
    sections: Pictures, plots and tables, in order.
    command: The command that made the run.
    config: The config as text.
  """
  measured = read_json(workdir.path / "metrics.json")
  page = (
    jinja2.Environment(autoescape=True)
    .from_string(_TEMPLATE.read_text())
    .render(
      title=workdir.path.name,
      command=command,
      config=config,
      metrics=_table(measured, metrics),
      columns=_columns(measured),
      stages=[(stage, f"{value:,.0f}", _describe(stage, workdir)) for stage, value in measured["seconds"].items()],
      sections=sections,
    )
  )
  with atomic_write(workdir.path / "report.html") as temporary:
    temporary.write_text(page, encoding="utf-8")


def print_summary(workdir: Workdir, metrics: tuple[Metric, ...]) -> None:
  """Prints the metrics of a finished run as a table, and where the report is."""
  measured = read_json(workdir.path / "metrics.json")
  table = rich.table.Table("metric", *(column.replace("_", " ") for column in _columns(measured)))
  for title, values in _table(measured, metrics):
    table.add_row(title, *values)
  console = rich.console.Console()
  console.print(table)
  seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in measured["seconds"].items())
  console.print(f"seconds: {seconds}", highlight=False)
  print(f"report: {workdir.path / 'report.html'}")


def _describe(stage, workdir):
  """The facts of a stage, without its seconds, as text."""
  facts = workdir.facts(stage) if workdir.is_done(stage) else {}

  def words(value):
    if isinstance(value, dict):
      return ", ".join(f"{key.replace('_', ' ')} {words(number)}" for key, number in value.items())
    return ", ".join(value) if isinstance(value, list) else f"{value:,.0f}"

  return "; ".join(
    f"{key.replace('_', ' ')}: {words(value)}" for key, value in facts.items() if key not in ("seconds", "metrics")
  )


def _columns(measured):
  """Names of the splits that were measured."""
  return ["held_out", *(key for key, value in measured.items() if isinstance(value, dict) and key != "seconds")]


def _table(measured, metrics):
  """Rows (title, one formatted value per column); metrics without a title come last, under their names."""
  splits = [measured, *(measured[column] for column in _columns(measured)[1:])]
  known = {metric.name for metric in metrics}
  others = [Metric(key, key) for key, value in measured.items() if key not in known and not isinstance(value, dict)]
  return [
    (metric.title, [metric.format(split[metric.name]) if metric.name in split else "" for split in splits])
    for metric in (*metrics, *others)
    if metric.name in measured
  ]
