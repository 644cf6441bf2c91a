"""Codes as files: TFRecord shards, and a manifest that describes them and holds their checksums."""

import pathlib

import numpy as np
import tensorflow as tf

from tfvq.data.arrays import ArraySource, check_range
from tfvq.data.shards import check_shards, write_shard
from tfvq.errors import UserError
from tfvq.files import read_json, write_json

_VERSION = 1
_EXAMPLES_PER_SHARD = 4096
_MAX_EMBEDDINGS = 2**16  # a code is stored in 16 bits


def write_codes(folder, splits, *, num_embeddings: int, num_classes: int, autoencoder_sha256: str) -> None:
  """Writes codes with their labels.

  Args:
    folder: Folder to write into; the manifest is written last.
    splits: For each split, {"codes": integers [N, ...] in 0..K-1, "label": int32 [N] in 0..num_classes-1} ("label" may
      be left out).
    num_embeddings: K, at most 65,536.
    num_classes: Number of label values; 0 if there are none.
    autoencoder_sha256: Checksum of the model that made the codes.

  Raises:
    UserError: A code or a label is out of range or no integer, or the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  if num_embeddings > _MAX_EMBEDDINGS:
    raise UserError(f"num_embeddings is {num_embeddings}; it must be {_MAX_EMBEDDINGS} or less.")
  for split, arrays in splits.items():
    check_range(arrays["codes"], num_embeddings, f"The codes of the split {split!r}")
    if num_classes and "label" in arrays:
      check_range(arrays["label"], num_classes, f"The labels of the split {split!r}")
  shards = []
  for split, arrays in splits.items():
    for index, start in enumerate(range(0, len(arrays["codes"]), _EXAMPLES_PER_SHARD)):
      part = {key: value[start : start + _EXAMPLES_PER_SHARD] for key, value in arrays.items()}
      examples = ({key: value[row] for key, value in part.items()} for row in range(len(part["codes"])))
      written = write_shard(folder / f"{split}-{index:05d}.tfrecord", [_serialize(example) for example in examples])
      shards.append({"split": split, **written})
  code_shape = list(next(iter(splits.values()))["codes"].shape[1:])
  manifest = {
    "version": _VERSION,
    "num_embeddings": num_embeddings,
    "num_classes": num_classes,
    "code_shape": code_shape,
    "bits_per_example": float(np.prod(code_shape) * np.log2(num_embeddings)),
    "autoencoder_sha256": autoencoder_sha256,
    "shards": shards,
  }
  write_json(folder / "manifest.json", manifest)


def read_manifest(folder, autoencoder_sha256: str | None = None) -> dict:
  """Reads the manifest of a folder of codes.

  Args:
    folder: The folder.
    autoencoder_sha256: Checksum of the model that must have made the codes; None accepts codes of any model.

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


def read_codes(folder, manifest: dict) -> ArraySource:
  """Reads the codes that a manifest lists.

  Returns:
    A source whose splits hold "codes", int32 [N, ...], and "label", int32 [N], if there are labels.

  Raises:
    UserError: A shard is missing, truncated or altered, or a code or a label is out of range.
  """
  folder = pathlib.Path(folder)
  check_shards(folder, manifest["shards"], "codes")
  parts = {}
  for shard in manifest["shards"]:
    path = folder / shard["file"]
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    examples = [_parse(record, manifest["code_shape"]) for record in records]
    part = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    advice = f"delete {folder} and run the stage `codes` again"
    check_range(part["codes"], manifest["num_embeddings"], f"The codes in {path}", advice)
    if manifest["num_classes"] and "label" in part:
      check_range(part["label"], manifest["num_classes"], f"The labels in {path}", advice)
    parts.setdefault(shard["split"], []).append(part)
  splits = {
    split: {key: np.concatenate([part[key] for part in found]) for key in found[0]} for split, found in parts.items()
  }
  return ArraySource(splits, manifest["num_classes"])


def _serialize(example):
  feature = {"codes": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example["codes"].astype("<u2").tobytes()]))}
  if "label" in example:
    feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(example["label"])]))
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _parse(record, code_shape):
  feature = tf.train.Example.FromString(record).features.feature
  codes = np.frombuffer(feature["codes"].bytes_list.value[0], "<u2").reshape(code_shape).astype(np.int32)
  example = {"codes": codes}
  if "label" in feature:
    example["label"] = np.int32(feature["label"].int64_list.value[0])
  return example
