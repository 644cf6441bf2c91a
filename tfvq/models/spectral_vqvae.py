"""The speech VQ-VAE without its decoder, trained to predict spectrograms."""

import keras
import tensorflow as tf

from tfvq.layers.log_mel import LogMel
from tfvq.models.likelihood_model import LikelihoodModel
from tfvq.models.serialization import deserialized_parts, serialized_parts
from tfvq.models.speech_networks import check_unknown_speakers, context_of, local_condition, num_speakers_of
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import full_precision
from tfvq.ops.values import outside


@keras.saving.register_keras_serializable("tfvq")
class SpectralVQVAE(LikelihoodModel):
  """Encoder, quantiser and conditioner, whose output a linear layer maps to the log-mel spectrogram.

  A training step takes a fiftieth of the time of one with a WaveNet. It is used to learn the codes before the decoder.

  Deviation: arXiv 1711.00937 trains encoder and quantiser only together with the WaveNet.

  Args:
    encoder: Keras model, audio float [B, T] -> z_e [B, T / hop, D], or [B, T / hop, G, D] with G latents per frame.
    quantizer: `tfvq.layers.Quantizer` of dimension D.
    conditioner: Keras model, (z_q, speaker) -> the decoder's local condition, float [B, T / hop, E].
    hop_samples: Samples per frame.
    sample_rate_hz: Sample rate of the audio.
    **kwargs: As for `keras.Model`.

  Input shape:
    {"audio": float [B, T] in -1..1, T a multiple of `hop_samples`, "speaker": integers [B]}.

  Output shape:
    Mean squared error of each clip's predicted spectrogram, float [B].

  Training behaviour:
    `compile(optimizer)` and `fit` minimise this error and the quantiser's losses. Metrics: `mel_error`, `perplexity`,
    `codebook_usage`. While `quantizing` is False, the conditioner gets z_e itself and the quantiser is not trainable.

  Example:
    >>> model = SpectralVQVAE(log_mel_encoder(embedding_dim=4, hidden_units=8), VectorQuantizer(16, 4),
    ...                       conditioner(embedding_dim=4, num_speakers=2, condition_dim=8))
    >>> model({"audio": tf.zeros([2, 6400]), "speaker": tf.constant([0, 1])}).shape
    TensorShape([2])
  """

  def __init__(self, encoder, quantizer, conditioner, hop_samples: int = 64, sample_rate_hz: int = 16_000, **kwargs):
    super().__init__(**{**kwargs, "autocast": False})
    self.encoder = encoder
    self.quantizer = quantizer
    self.conditioner = conditioner
    self.hop_samples = hop_samples
    self.sample_rate_hz = sample_rate_hz
    self.num_speakers = num_speakers_of(conditioner)
    self._quantizing = True
    # Training clips are cut out of recordings. Frames whose receptive field extends past the clip are not trained on.
    self.margin_frames = context_of(encoder) + context_of(conditioner)
    self.log_mel = LogMel(
      hop_samples=hop_samples, sample_rate_hz=sample_rate_hz, dtype=full_precision(self.variable_dtype)
    )
    self.mel_prediction = keras.layers.Dense(self.log_mel.num_bands, dtype=self.dtype_policy, name="mel_prediction")
    self.mel_prediction.build((None, None, conditioner.output_shape[-1]))
    self._mel_error = keras.metrics.Mean(name="mel_error")
    self.built = True

  @property
  def quantizing(self) -> bool:
    """Whether z_e is quantised. Compile the model after a change."""
    return self._quantizing

  @quantizing.setter
  def quantizing(self, quantizing: bool):
    self._quantizing = quantizing
    # A quantiser that the loss does not depend on has no gradients.
    self.quantizer.trainable = quantizing

  def call(self, inputs, training=False):
    z_q = self.codebook_vectors(inputs["audio"], training)
    return self.mel_error(inputs["audio"], local_condition(self.conditioner, z_q, inputs["speaker"], training))

  def codebook_vectors(self, audio, training=False) -> tf.Tensor:
    """Audio, float [B, T] -> z_q, of the shape of z_e; z_e itself if `quantizing` is False."""
    z_e = for_any_batch(lambda audio: self.encoder(audio, training=training), audio)
    return self.quantizer(z_e, training=training) if self.quantizing else z_e

  def mel_error(self, audio, condition) -> tf.Tensor:
    """Mean squared error of the spectrogram that is predicted from a condition.

    Args:
      audio: Float [B, T].
      condition: Output of the conditioner for this audio, float [B, F, E].

    Returns:
      Float [B].

    Raises:
      ValueError: The audio is so short that no frame is `margin_frames` away from both ends.
    """
    if condition.shape[1] is not None and condition.shape[1] <= 2 * self.margin_frames:
      raise ValueError(
        f"Clips of {condition.shape[1]} frames ({audio.shape[1]} samples) are shorter than the receptive field of the "
        f"networks: give at least {2 * self.margin_frames + 1} frames."
      )
    inside = slice(self.margin_frames, -self.margin_frames or None)
    log_mel = tf.stop_gradient(self.log_mel(audio))[:, inside]
    predicted = tf.cast(self.mel_prediction(condition[:, inside]), log_mel.dtype)
    return tf.reduce_mean(tf.math.squared_difference(predicted, log_mel), axis=[1, 2])

  def example_losses(self, x, y_pred, training):
    """Mean squared error of each clip's predicted spectrogram, float [B]."""
    del x, training
    self._mel_error.update_state(y_pred)
    return y_pred

  def is_flagged(self, x):
    return outside(x["speaker"], self.num_speakers)

  def check_flagged(self, share):
    check_unknown_speakers(share, self.num_speakers, self.name)

  def input_signature(self):
    audio, speaker = keras.InputSpec(shape=(None, None), dtype="float32"), keras.InputSpec(shape=(None,), dtype="int32")
    return [{"audio": audio, "speaker": speaker}]

  def get_config(self):
    return {
      **super().get_config(),
      **serialized_parts(self, _PARTS),
      "hop_samples": self.hop_samples,
      "sample_rate_hz": self.sample_rate_hz,
    }

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, _PARTS))


_PARTS = ("encoder", "quantizer", "conditioner")
