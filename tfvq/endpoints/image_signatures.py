"""The signatures of a SavedModel of images: encode, decode and sample."""

import numpy as np
import tensorflow as tf

from tfvq.endpoints.endpoint import Signature
from tfvq.models.sampling import gumbel_noise, noise_shape, sample


def image_signatures(model, prior, source) -> dict[str, Signature]:
  """Signatures with open batch size.

  Args:
    model: A `tfvq.models.VQVAE`.
    prior: The `tfvq.models.PixelCNN` over its codes.
    source: Data set to take a request from, see `tfvq.data.image_sources`.
  """
  images = source.examples("held_out", 4).astype(np.float32)
  code_shape = [*model.encoder.output_shape[1:-1], *model.quantizer.code_shape]
  codes_range = {"codes": (0, int(np.max(model.quantizer.num_values)) - 1)}

  def encode(image):
    return {"codes": model.encode(image)}

  def decode(codes):
    return {"image": model.decode(codes)}

  def draw(num, seed, temperature, label=None):
    noise = gumbel_noise(seed, noise_shape(prior, tf.maximum(num, 1)))
    codes = sample(prior, noise, {"label": label}, temperature)
    return {"codes": codes[:num], "image": model.decode(codes)[:num]}

  def draw_labelled(label, seed, temperature):
    return draw(tf.shape(label)[0], seed, temperature, label)

  drawn = {"seed": tf.TensorSpec([], tf.int32, "seed"), "temperature": tf.TensorSpec([], tf.float32, "temperature")}
  request = {"seed": np.int32(0), "temperature": np.float32(1)}
  if "label" in prior.conditions:
    sampling = Signature(
      draw_labelled,
      {"label": tf.TensorSpec([None], tf.int32, "label"), **drawn},
      {"label": np.zeros([1], np.int32), **request},
      (model, prior),
      {"label": (0, prior.num_classes - 1)},
    )
  else:
    sampling = Signature(
      lambda num, seed, temperature: draw(num, seed, temperature),
      {"num": tf.TensorSpec([], tf.int32, "num"), **drawn},
      {"num": np.int32(1), **request},
      (model, prior),
    )
  return {
    "encode": Signature(
      encode,
      {"image": tf.TensorSpec([None, *source.image_shape], tf.float32, "image")},
      {"image": images},
      (model,),
    ),
    "decode": Signature(
      decode,
      {"codes": tf.TensorSpec([None, *code_shape], tf.int32, "codes")},
      {"codes": model.encode(images).numpy()},
      (model,),
      codes_range,
    ),
    "sample": sampling,
  }
