"""What is exported of a VQ-VAE of images."""

import tensorflow as tf

from .endpoint import LOOK_UP, Endpoint, floats, integers

# The first convolution of either network: in static int8 it costs more than all others together.
_FIRST = ".*stem.*"


def image_endpoints(run) -> list[Endpoint]:
  """Encoder and decoder.

  Args:
    run: `tfvq.training.stages.Run`.
  """
  model, source = run.autoencoder, run.task.source

  def images(split):
    for batch in source.batches(split, 1):
      yield {"image": tf.cast(batch["image"], tf.float32).numpy()}

  def encode(image):
    z_e = model.encoder(image)
    return {"codes": model.quantizer.encode(z_e, exact=False), "z_e": z_e}

  def codes(split):
    for example in images(split):
      yield {"codes": model.encode(example["image"]).numpy()}

  return [
    Endpoint("encoder", encode, {"image": floats(1, *source.image_shape)}, model, images, (_FIRST, *LOOK_UP)),
    Endpoint(
      "decoder",
      lambda codes: {"image": model.decode(codes)},
      {"codes": integers(1, *model.encoder.output_shape[1:-1])},
      model,
      codes,
      (_FIRST,),
    ),
  ]
