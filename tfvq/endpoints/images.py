"""The endpoints of a VQ-VAE of images."""

import numpy as np
import tensorflow as tf

from tfvq.endpoints.endpoint import LOOK_UP, Endpoint, floats, integers

# The first convolution of either network: its rounding in static int8 costs more than that of all others together.
_FIRST = ".*stem.*"
_EXAMPLES_PER_BATCH = 50


def image_endpoints(model, source) -> list[Endpoint]:
  """Encoder and decoder.

  Args:
    model: A `tfvq.models.VQVAE`.
    source: Data set to take examples from, see `tfvq.data.image_sources`.
  """

  def batches(split):
    for batch in source.batches(split, _EXAMPLES_PER_BATCH):
      yield tf.cast(batch["image"], tf.float32)

  def images(split):
    for batch in batches(split):
      yield from ({"image": image} for image in np.split(batch, len(batch)))

  def encode(image):
    z_e = model.encoder(image)
    return {"codes": model.quantizer.encode(z_e, exact=False), "z_e": z_e}

  def codes(split):
    for batch in batches(split):
      yield from ({"codes": codes} for codes in np.split(model.encode(batch), len(batch)))

  return [
    Endpoint(
      "encoder",
      encode,
      {"image": floats(1, *source.image_shape)},
      model,
      images,
      kept_in_float=(_FIRST, *LOOK_UP),
    ),
    Endpoint(
      "decoder",
      lambda codes: {"image": model.decode(codes)},
      {"codes": integers(1, *model.encoder.output_shape[1:-1], *model.quantizer.code_shape)},
      model,
      codes,
      ranges={"codes": (0, int(np.max(model.quantizer.num_values)) - 1)},
      kept_in_float=(_FIRST,),
    ),
  ]
