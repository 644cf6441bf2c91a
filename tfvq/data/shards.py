"""TFRecord shards: written atomically, listed with their checksums in a manifest, and checked when they are read."""

import pathlib

import tensorflow as tf

from tfvq.errors import UserError
from tfvq.files import atomic_write, sha256


def write_shard(path: pathlib.Path, records: list[bytes]) -> dict:
  """Writes a shard; returns its entry for a manifest.

  Raises:
    UserError: The file cannot be written.
  """
  try:
    with atomic_write(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
      for record in records:
        writer.write(record)
  except tf.errors.OpError as error:
    raise UserError(f"{path} could not be written: {' '.join(error.message.split())}.") from error
  return {"file": path.name, "num_records": len(records), "sha256": sha256(path)}


def check_shards(folder: pathlib.Path, shards: list[dict], stage: str) -> None:
  """Checks that shards have not changed since they were written.

  Args:
    folder: Where they are.
    shards: Their entries, as `write_shard` returned them.
    stage: Name of the stage that writes them, for the error.

  Raises:
    UserError: A shard is missing, truncated or altered.
  """
  for shard in shards:
    path = folder / shard["file"]
    if not path.exists() or sha256(path) != shard["sha256"]:
      state = "has changed since it was written" if path.exists() else "is missing"
      raise UserError(f"{path} {state}: delete {folder} and run the stage `{stage}` again.")
