"""Decoders of autoencoders: the distribution of data given latents."""

import abc
import warnings

import keras
import tensorflow as tf

from tfvq.models.autoregressive import AutoregressiveModel, Condition
from tfvq.models.sampling import noise_shape, sample
from tfvq.models.serialization import deserialized_parts, serialized_parts
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import to_full_precision


class Decoder(keras.Model, abc.ABC):
  """The distribution p(x | z) of data x given latents z.

  Subclasses define `log_prob_and_mode`, `is_flagged` and `check_flagged` (see `LikelihoodModel`), and at least one of
  `mode` and `sample`.

  Args:
    **kwargs: As for `keras.Model`.
  """

  discrete: bool  # whether `log_prob` is of probabilities, from which bits can be told, not of densities
  has_mode: bool  # whether the data are 8-bit images, and `mode` gives the most probable one

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.built = True  # its parts are

  @property
  def conditions(self) -> dict[str, Condition]:
    """Conditions of the data in addition to the latents, by name."""
    return {}

  @abc.abstractmethod
  def log_prob_and_mode(self, x, z, condition=None, training=False) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`log_prob` and, where there is one, the mode, both from one pass through the network."""

  def log_prob(self, x, z, condition=None) -> tf.Tensor:
    """Log-likelihood in nats.

    Args:
      x: Data, [B, ...].
      z: Latents, float [B, ...].
      condition: A dict of the tensors named in `conditions`, or None.

    Returns:
      Float [B].
    """
    return self.log_prob_and_mode(x, z, condition)[0]

  def mode(self, z, condition=None) -> tf.Tensor:
    """The most probable data given latents, float [B, ...], mostly in 0..255, not rounded.

    Raises:
      ValueError: No mode is known.
    """
    raise ValueError(f"The mode of {self.name} is not known: give noise to draw a sample with, see `noise_shape`.")

  def sample(self, z, noise, condition=None, temperature=1.0) -> tf.Tensor:
    """Draws data given latents.

    Args:
      z: Latents, float [B, ...].
      noise: Gumbel noise, see `noise_shape`.
      condition: As for `log_prob`.
      temperature: As for `tfvq.models.sample`.

    Returns:
      Data, [B, ...].

    Raises:
      ValueError: The decoder draws no samples.
    """
    raise ValueError(f"{self.name} draws no samples: leave out the noise to get the mode.")

  @abc.abstractmethod
  def is_flagged(self, x, condition=None) -> tf.Tensor:
    """Marks the examples of a batch that `check_flagged` counts, boolean [B]."""

  @abc.abstractmethod
  def check_flagged(self, share: float) -> None:
    """Raises an error, or warns, depending on the fraction of marked examples."""


@keras.saving.register_keras_serializable("tfvq")
class ConvolutionalDecoder(Decoder):
  """A network from latents to the parameters of a distribution of 8-bit values, independent of each other.

  Reference: arXiv 1711.00937, section 4.1.

  Args:
    network: Keras model, z -> parameters, see `tfvq.models.image_decoder`.
    distribution: Output distribution, see `tfvq.models.output_distributions`.
    **kwargs: As for `keras.Model`.

  Example:
    >>> network = image_decoder((8, 8, 3), embedding_dim=4, num_parameters=2, hidden_units=8)
    >>> decoder = ConvolutionalDecoder(network, DiscretizedLogistic())
    >>> decoder.log_prob(np.zeros([2, 8, 8, 3]), np.zeros([2, 2, 2, 4])).shape
    TensorShape([2])
  """

  has_mode = True

  def __init__(self, network, distribution, **kwargs):
    super().__init__(**kwargs)
    self.network = network
    self.distribution = distribution
    self._warned = False

  @property
  def discrete(self):
    return self.distribution.discrete

  def log_prob_and_mode(self, x, z, condition=None, training=False):
    parameters = self._parameters(z, condition, training)
    log_prob = self.distribution.log_prob(parameters, tf.cast(x, parameters.dtype))
    log_prob = tf.reduce_sum(log_prob, axis=list(range(1, log_prob.shape.rank)))
    return log_prob, self.distribution.mode(parameters)

  def mode(self, z, condition=None):
    return self.distribution.mode(self._parameters(z, condition))

  def _parameters(self, z, condition, training=False):
    if condition:
      raise ValueError(f"{self.name} takes no condition, but was given {' and '.join(map(repr, condition))}.")
    return to_full_precision(for_any_batch(lambda z: self.network(z, training=training), z))

  def is_flagged(self, x, condition=None):
    return tf.reduce_max(x, axis=list(range(1, x.shape.rank))) > 1

  def check_flagged(self, share):
    if not share and not self._warned:
      self._warned = True
      warnings.warn(
        f"No value of the images for {self.name} is above 1: give values in 0..255, not 0..1.", stacklevel=2
      )

  def get_config(self):
    return {**super().get_config(), **serialized_parts(self, ("network", "distribution"))}

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, ("network", "distribution")))


@keras.saving.register_keras_serializable("tfvq")
class AutoregressiveDecoder(Decoder):
  """An autoregressive model of integers, conditioned on the output of a network of the latents.

  Reference: arXiv 1711.00937, sections 4.2 (a PixelCNN over codes) and 4.3 (a WaveNet); arXiv 1606.05328, section 2.4.

  Args:
    network: Keras model, z -> the model's "local" condition; for a PixelCNN a map [B, H, W, E], which
      `tfvq.models.image_decoder` with the image shape (H, W, E) gives.
    model: `tfvq.models.PixelCNN` or `tfvq.models.WaveNet` with `condition_dim` E.
    **kwargs: As for `keras.Model`.

  Raises:
    ValueError: The model has no "local" condition.

  Example:
    >>> network = image_decoder((8, 8, 16), embedding_dim=4, hidden_units=8)
    >>> pixelcnn = PixelCNN(512, (8, 8), filters=8, num_layers=2, condition_dim=16)
    >>> decoder, z = AutoregressiveDecoder(network, pixelcnn), np.zeros([2, 2, 2, 4])
    >>> codes = decoder.sample(z, gumbel_noise(0, decoder.noise_shape(2)))
    >>> codes.shape, decoder.log_prob(codes, z).shape
    (TensorShape([2, 8, 8]), TensorShape([2]))
  """

  discrete = True
  has_mode = False

  def __init__(self, network, model: AutoregressiveModel, **kwargs):
    super().__init__(**kwargs)
    if "local" not in model.conditions:
      raise ValueError(
        f"{model.name} has no local condition for the latents: set its condition_dim to the network's channels."
      )
    self.network = network
    self.model = model

  @property
  def conditions(self):
    return {name: condition for name, condition in self.model.conditions.items() if name != "local"}

  def log_prob_and_mode(self, x, z, condition=None, training=False):
    log_prob = lambda x, condition: self.model.log_prob(x, condition, training)
    return for_any_batch(log_prob, x, self._model_condition(z, condition, training)), None

  def noise_shape(self, batch_size: int, num_steps: int | None = None) -> tuple[int, ...]:
    """Shape of the noise that `sample` takes, see `tfvq.models.noise_shape`."""
    return noise_shape(self.model, batch_size, num_steps)

  def sample(self, z, noise, condition=None, temperature=1.0):
    return sample(self.model, noise, self._model_condition(z, condition), temperature)

  def _model_condition(self, z, condition, training=False):
    return {**(condition or {}), "local": for_any_batch(lambda z: self.network(z, training=training), z)}

  def is_flagged(self, x, condition=None):
    return self.model.is_flagged((x, condition))

  def check_flagged(self, share):
    self.model.check_flagged(share)

  def get_config(self):
    return {**super().get_config(), **serialized_parts(self, ("network", "model"))}

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, ("network", "model")))
