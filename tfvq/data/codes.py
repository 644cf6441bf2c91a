"""Codes as files: TFRecord shards, and a manifest that describes their features and holds their checksums.

An example has the feature "codes" and any number of named conditions, such as "label", "speaker" or "action". Examples
are of one shape, or clips: features whose first dimension is time and differs from example to example.
"""

import pathlib

import numpy as np
import tensorflow as tf

from tfvq.data.arrays import ArraySource, ClipSource, check_range
from tfvq.data.shards import check_shards, write_shard
from tfvq.errors import UserError
from tfvq.files import read_json, write_json

_VERSION = 2
_EXAMPLES_PER_SHARD = 4096
MAX_NUM_VALUES = 2**16  # a code is stored in 16 bits


def write_codes(folder, splits, *, num_values: dict, autoencoder_sha256: str) -> None:
  """Writes codes with their conditions.

  Args:
    folder: Folder to write into; the manifest is written last.
    splits: For each split its features, {"codes": integers [N, ...], name of a condition: array [N, ...], ...}. A
      feature of clips is a list of N arrays that differ in their first dimension only.
    num_values: For "codes" K, and for each condition that is an index its number of values: an integer, or an array of
      integers that broadcasts to the shape of the feature. K is 65,536 at most.
    autoencoder_sha256: Checksum of the model that made the codes.

  Raises:
    UserError: A value is out of its range or not an integer, or the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  if np.max(num_values["codes"]) > MAX_NUM_VALUES:
    raise UserError(f"The codes have {np.max(num_values['codes'])} values; at most {MAX_NUM_VALUES} can be stored.")
  for split, features in splits.items():
    for name, values in features.items():
      for part in values if isinstance(values, list) else [values]:
        if name in num_values:
          check_range(part, num_values[name], f"The values of {name!r} in the split {split!r}")
  described = _describe(next(iter(splits.values())), num_values)
  shards = []
  for split, features in splits.items():
    for index, start in enumerate(range(0, len(features["codes"]), _EXAMPLES_PER_SHARD)):
      rows = range(start, min(start + _EXAMPLES_PER_SHARD, len(features["codes"])))
      records = [_serialize({name: features[name][row] for name in features}, described) for row in rows]
      shards.append({"split": split, **write_shard(folder / f"{split}-{index:05d}.tfrecord", records)})
  manifest = {
    "version": _VERSION,
    "features": described,
    "autoencoder_sha256": autoencoder_sha256,
    "shards": shards,
  }
  write_json(folder / "manifest.json", manifest)


def read_manifest(folder, autoencoder_sha256: str | None = None) -> dict:
  """Reads the manifest of a folder of codes.

  Args:
    folder: The folder.
    autoencoder_sha256: Checksum of the model that must have made the codes; None accepts codes of any model.

  Returns:
    The manifest. Its "features" contain for each feature its "dtype", the "shape" of an example (None stands for the
    length of a clip), and "num_values" if the values are indices.

  Raises:
    UserError: There is no manifest, it has another version, or another model made the codes.
  """
  path = pathlib.Path(folder) / "manifest.json"
  if not path.exists():
    raise UserError(f"There are no codes in {folder}: run the stage `codes` first.")
  manifest = read_json(path)
  if manifest.get("version") != _VERSION:
    raise UserError(
      f"{path} has version {manifest.get('version')}, this program reads {_VERSION}: delete {folder} and run the stage "
      "`codes` again."
    )
  if autoencoder_sha256 not in (None, manifest["autoencoder_sha256"]):
    raise UserError(
      f"The codes in {folder} were made by another autoencoder: delete the folder and run the stage `codes` again."
    )
  return manifest


def read_codes(folder, manifest: dict) -> ArraySource | ClipSource:
  """Reads the codes that a manifest lists.

  Returns:
    A source whose examples hold the features of the manifest; integers are int32. A `ClipSource` if they are clips.

  Raises:
    UserError: A shard is missing, truncated or altered, or a value is out of its range.
  """
  folder = pathlib.Path(folder)
  check_shards(folder, manifest["shards"], "codes")
  described = manifest["features"]
  splits = {}
  for shard in manifest["shards"]:
    path = folder / shard["file"]
    examples = [_parse(record, described) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    for name, feature in described.items():
      if "num_values" in feature:
        join = np.concatenate if None in feature["shape"] else np.stack
        values = join([example[name] for example in examples])
        advice = f"delete {folder} and run the stage `codes` again"
        check_range(values, feature["num_values"], f"The values of {name!r} in {path}", advice)
    splits.setdefault(shard["split"], []).extend(examples)
  if any(None in feature["shape"] for feature in described.values()):
    return ClipSource(splits, [name for name, feature in described.items() if None in feature["shape"]])
  stacked = {
    split: {name: np.stack([example[name] for example in examples]) for name in described}
    for split, examples in splits.items()
  }
  return ArraySource(stacked)


def _describe(features, num_values):
  """The description of each feature in the manifest."""
  described = {}
  for name, values in features.items():
    first = np.asarray(values[0])
    dtype = np.dtype("<u2") if name == "codes" else first.dtype.newbyteorder("<")
    shape = [None, *first.shape[1:]] if isinstance(values, list) else list(first.shape)
    described[name] = {"dtype": dtype.str, "shape": shape}
    if name in num_values:
      described[name]["num_values"] = np.asarray(num_values[name]).tolist()
  return described


def _serialize(example, described):
  features = {}
  for name, value in example.items():
    content = np.asarray(value).astype(described[name]["dtype"]).tobytes()
    features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _parse(record, described):
  found = tf.train.Example.FromString(record).features.feature
  example = {}
  for name, feature in described.items():
    shape = [-1 if size is None else size for size in feature["shape"]]
    value = np.frombuffer(found[name].bytes_list.value[0], feature["dtype"]).reshape(shape)
    example[name] = value.astype(np.int32 if value.dtype.kind in "iu" else value.dtype.newbyteorder("="))
  return example
