"""Writes a trained speech model to a small file, like the one in the package, and loads such files.

  python -m tfvq.release --workdir=runs/speech --out=tfvq/released/speech.keras

The file is an ordinary Keras file without the optimiser. The decoder's weights are rounded to eight bits, all others to
eleven; biases and counts are not rounded. A JSON file beside it lists the speakers and the temperature.
"""

import io
import json
import pathlib
import re
import zipfile

import numpy as np
from absl import flags

from tfvq.errors import UserError, parse_flags, run_program
from tfvq.files import atomic_write, check_writable, read_json, write_json
from tfvq.startup import import_tensorflow

RELEASED = pathlib.Path(__file__).with_name("released") / "speech.keras"


def load_released(path=""):
  """Loads a released model and its facts.

  Args:
    path: Its `.keras` file; default: the package's own.

  Returns:
    `(SpeechVQVAE, {"speakers": list of names, "temperature": list with one value per band})`.

  Raises:
    UserError: There is no such file, it is damaged, or it is not a released model.
  """
  from tfvq.models import SpeechVQVAE
  from tfvq.training.loading import load_model

  path = pathlib.Path(path or RELEASED)
  model, facts = load_model(path), read_json(path.with_suffix(".json"))
  if not isinstance(model, SpeechVQVAE) or not isinstance(facts, dict) or not {"speakers", "temperature"} <= set(facts):
    raise UserError(f"{path} is not a released speech model: name a file written by `python -m tfvq.release`.")
  return model, facts


def chosen_temperature(given: list[str], own, num_bands: int) -> list[float]:
  """The decoder's temperature: the value of --temperature, or the model's own if the flag is empty.

  Raises:
    UserError: It is neither a non-negative number nor a list of them, one for each band.
  """
  try:
    temperature = [float(value) for value in given] or list(own)
    if not all(0 <= value < np.inf for value in temperature):
      raise ValueError
  except ValueError as error:
    raise UserError(
      f"--temperature={','.join(given)} is not a non-negative number or a comma-separated list of them."
    ) from error
  if len(temperature) not in (1, num_bands):
    raise UserError(f"--temperature has {len(temperature)} values; give one, or one for each of {num_bands} bands.")
  return temperature


def write_released(task, path) -> None:
  """Writes the trained autoencoder of a `tfvq.tasks.speech.SpeechTask`.

  Raises:
    UserError: The run is not a speech run or is not trained yet, or the file's name does not end in .keras, or it
      cannot be written.
  """
  from tfvq.tasks.speech import SpeechTask

  path = pathlib.Path(path)
  if path.suffix != ".keras":
    raise UserError(f"{path} must be a Keras file: give it a name that ends in .keras.")
  if not isinstance(task, SpeechTask):
    raise UserError(f"{task.workdir.path} does not contain a speech system: only speech models can be released.")
  for written in (path, path.with_suffix(".json")):
    check_writable(written)
  facts = {"speakers": task.corpus.speakers, "temperature": list(task.config.samples.temperature)}
  with atomic_write(path) as temporary:
    task.autoencoder.save(temporary)
    whole = io.BytesIO(temporary.read_bytes())
    # Dates and memory addresses are removed, so that the same weights give the same bytes.
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(temporary, "w") as target:
      for name in source.namelist():
        content = source.read(name)
        if name.endswith(".weights.h5"):
          content = _rounded(content)
        elif name == "metadata.json":
          content = json.dumps({**json.loads(content), "date_saved": ""})
        elif name == "config.json":
          content = _with_stable_ids(content.decode())
        target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)
  write_json(path.with_suffix(".json"), facts)


def _with_stable_ids(config):
  """Renumbers the shared objects in a Keras config, whose ids are memory addresses, in order of appearance."""
  order = {}
  return re.sub(r'(?<="shared_object_id": )\d+', lambda match: str(order.setdefault(match[0], len(order))), config)


def _rounded(content):
  """Rounds every float32 array of two or more dimensions in the bytes of an HDF5 file, see `round_weights`."""
  import h5py

  source, target = h5py.File(io.BytesIO(content)), io.BytesIO()
  with h5py.File(target, "w") as file:

    def copy(name, item):
      if isinstance(item, h5py.Dataset):
        value = item[()]
        if value.dtype == "float32" and value.ndim > 1:
          # Errors accumulate over the convolutions of the conditioner, and errors of the encoder change codes.
          is_wavenet = name.startswith("decoder/") and not name.startswith("decoder/conditioner/")
          value = round_weights(value, 8 if is_wavenet else 11)
        file.create_dataset(name, data=value)
      else:
        file.require_group(name)
      for key, value in item.attrs.items():
        file[name].attrs[key] = value

    source.visititems(copy)
    for key, value in source.attrs.items():
      file.attrs[key] = value
  return target.getvalue()


def round_weights(weights, num_bits: int) -> np.ndarray:
  """Rounds weights to 1 to 11 bits, float [..., outputs] -> float16, or float32 if float16 would overflow.

  Each output has its own step: the smallest power of two for which its largest weight fits into the bits.
  """
  limit = 2 ** (num_bits - 1) - 1
  largest = np.max(np.abs(weights), axis=tuple(range(weights.ndim - 1)), keepdims=True)
  # 2^-24 is float16's smallest number.
  step = np.exp2(np.ceil(np.log2(np.maximum(largest / limit, 2.0**-24))))
  rounded = (np.round(weights / step) * step).astype(np.float32)
  return rounded if np.max(np.abs(rounded), initial=0) > np.finfo(np.float16).max else rounded.astype(np.float16)


def main(argv):
  """Writes the model of a run."""
  import_tensorflow()
  from tfvq.tasks.stages import open_task

  del argv
  write_released(open_task(flags.FLAGS.workdir), flags.FLAGS.out)
  print(f"{flags.FLAGS.out}: {pathlib.Path(flags.FLAGS.out).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
  _FLAGS = (
    flags.DEFINE_string("workdir", None, "Folder of a speech run.", required=True),
    flags.DEFINE_string("out", str(RELEASED), "The .keras file to write."),
  )
  run_program(main, lambda argv: parse_flags(argv, __doc__, _FLAGS))
