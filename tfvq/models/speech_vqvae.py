"""The VQ-VAE of speech: its decoder is a WaveNet."""

import keras
import tensorflow as tf

from tfvq.layers.replica_losses import keep_replica_losses
from tfvq.models.likelihood_model import LikelihoodModel
from tfvq.models.serialization import deserialized_parts, serialized_parts
from tfvq.models.spectral_vqvae import SpectralVQVAE
from tfvq.models.speech_networks import context_of
from tfvq.ops.distributed import num_replicas, replica_seed, sum_over_replicas


@keras.saving.register_keras_serializable("tfvq")
class SpeechVQVAE(LikelihoodModel):
  """Encoder, quantiser, and a WaveNet conditioned on codes and speaker, trained together.

  A decoder this strong can learn to ignore its codes. So that one sees whether it does, the codes of some training
  clips are replaced by one learned vector, the null condition; `gain_nats` is what the codes are worth beside it.

  Reference: arXiv 1711.00937, section 4.3.
  Deviation: the null condition, and a linear prediction of the log-mel spectra from the decoder's condition
  (`spectral`, a `SpectralVQVAE` of the same layers), which makes the codes useful before the decoder has learned to
  listen to them.

  Args:
    encoder: Keras model, audio float [B, T] -> z_e [B, T / hop, D], or [B, T / hop, G, D] with G latents a frame.
    quantizer: `tfvq.layers.Quantizer` of dimension D.
    decoder: `tfvq.models.WaveNetDecoder`: audio given z_q and the speaker; it says the samples per frame.
    null_rate: Share of training clips that get the null condition, 0 to less than 1.
    mel_weight: Weight of the prediction of the spectra, >= 0.
    seed: Seed of the choice of clips.
    sample_rate_hz: Sample rate of the audio.
    **kwargs: As for `keras.Model`.

  Input shape:
    {"audio": float [B, T] in -1..1, T a multiple of `hop_samples`, "speaker": integers [B]}.

  Output shape:
    Negative log-likelihood of each clip in nats per sample, float [B].

  Training behaviour:
    `compile(optimizer)` and `fit` minimise eq. 3 and the spectra's squared error. Metrics: `nats_per_sample` with
    codes, `gain_nats` where there is a `null_rate`, `mel_error`, `perplexity`, `codebook_usage`. Before training,
    `adapt` sets what depends on the data.

  Example:
    >>> wavenet = WaveNet(CategoricalHead(256, hidden_units=8), channels=8, dilation_rates=(1, 2), condition_dim=8,
    ...                   audio_values=AudioValues())
    >>> decoder = WaveNetDecoder(conditioner(embedding_dim=4, num_speakers=2, condition_dim=8), wavenet)
    >>> model = SpeechVQVAE(log_mel_encoder(embedding_dim=4, hidden_units=8), VectorQuantizer(16, 4), decoder)
    >>> model.encode(tf.zeros([2, 6400])).shape
    TensorShape([2, 100])
  """

  def __init__(
    self,
    encoder,
    quantizer,
    decoder,
    null_rate: float = 0.1,
    mel_weight: float = 1.0,
    seed: int = 0,
    sample_rate_hz: int = 16_000,
    **kwargs,
  ):
    super().__init__(**{**kwargs, "autocast": False})  # the audio stays as it is
    self.encoder = encoder
    self.quantizer = quantizer
    self.decoder = decoder
    self.null_rate = null_rate
    self.mel_weight = mel_weight
    self.seed = seed
    self.sample_rate_hz = sample_rate_hz
    self.spectral = SpectralVQVAE(
      encoder, quantizer, decoder.conditioner, self.hop_samples, sample_rate_hz, dtype=self.dtype_policy
    )
    self.encoder_context_frames = context_of(encoder)
    self.null = self.add_weight(shape=(quantizer.embedding_dim,), initializer="zeros", name="null")
    self._seeds = keras.random.SeedGenerator(seed)
    self._nats_per_sample = keras.metrics.Mean(name="nats_per_sample")
    self._null_nats = keras.metrics.Mean(name="null_nats")
    self._mel_error = keras.metrics.Mean(name="mel_error")
    self.built = True

  @property
  def hop_samples(self) -> int:
    """Samples per frame."""
    return self.decoder.hop_samples

  @property
  def frame_shape(self) -> tuple[int, ...]:
    """Shape of a frame's codes: (G,) if it has G latents, then the quantiser's `code_shape`."""
    return (*self.encoder.output_shape[2:-1], *self.quantizer.code_shape)

  @property
  def margin_frames(self) -> int:
    """Frames at either end of a training clip that are seen and not learned from."""
    return self.spectral.margin_frames

  def call(self, inputs, training=False):
    audio, speaker = inputs["audio"], inputs["speaker"]
    z_q = self.spectral.codebook_vectors(audio, training)
    chance = tf.random.stateless_uniform(tf.shape(speaker), replica_seed(self._seeds))
    is_null = chance < (self.null_rate if training else 0.0)
    is_null_everywhere = tf.reshape(is_null, [-1, *[1] * (len(z_q.shape) - 1)])
    z_q = tf.where(is_null_everywhere, tf.cast(self.null, z_q.dtype), z_q)
    local = self.decoder.local_condition(z_q, speaker, training)
    mel_error = self.spectral.mel_error(audio, local)
    heard = tf.cast(~is_null, mel_error.dtype)
    self._mel_error.update_state(mel_error, sample_weight=heard)
    with keep_replica_losses(self):
      (num_heard,) = sum_over_replicas(tf.reduce_sum(heard))
    # Added losses have as their mean over the replicas that of the global batch.
    mel_error = tf.math.divide_no_nan(tf.reduce_sum(mel_error * heard), num_heard / num_replicas())
    self.add_loss(self.mel_weight * mel_error)
    log_prob = self.decoder.log_prob_of_frames(audio, local, self.margin_frames)
    num_samples = tf.shape(audio)[1] - 2 * self.margin_frames * self.hop_samples
    nats_per_sample = -log_prob / tf.cast(num_samples, log_prob.dtype)
    self._nats_per_sample.update_state(nats_per_sample, sample_weight=heard)
    self._null_nats.update_state(nats_per_sample, sample_weight=1 - heard)
    return nats_per_sample

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each clip in nats per sample, float [B]."""
    del x, training
    return y_pred

  def is_flagged(self, x):
    return self.spectral.is_flagged(x)

  def check_flagged(self, share):
    self.spectral.check_flagged(share)

  def input_signature(self):
    return self.spectral.input_signature()

  def get_metrics_result(self):
    results = super().get_metrics_result()
    null_nats = results.pop("null_nats", None)
    # Inside a step it is not known whether there have been clips of both kinds.
    if null_nats is None or "nats_per_sample" not in results or not tf.executing_eagerly() or num_replicas() > 1:
      return results
    return {**results, "gain_nats": null_nats - results["nats_per_sample"]}

  def encode(self, audio) -> tf.Tensor:
    """Codes of audio, float [B, T] -> int32 [B, T / hop_samples, *frame_shape]."""
    return self.quantizer.encode(self.encoder(audio))

  def nats_per_sample(self, audio, speaker, z_q=None) -> tf.Tensor:
    """Negative log-likelihood of whole clips in nats per sample.

    Silence precedes and follows a clip for the encoder; for the decoder its first and last codes are repeated.

    Args:
      audio: Float [B, T], T a multiple of `hop_samples`.
      speaker: Integers [B].
      z_q: Codebook vectors in place of the audio's own, [B, T / hop_samples, D] or [B, T / hop_samples, G, D].

    Returns:
      Float [B].
    """
    if z_q is None:
      z_q = self.quantizer.decode(self.encode_in_silence(audio))
    log_prob = self.decoder.log_prob(audio, z_q, {"speaker": speaker})
    return -log_prob / tf.cast(tf.shape(audio)[1], log_prob.dtype)

  def encode_inside(self, audio) -> tf.Tensor:
    """Codes of audio without the context at its ends, float [B, (F + 2 C) hop_samples], C `encoder_context_frames`."""
    return self.encode(audio)[:, self.encoder_context_frames : -self.encoder_context_frames or None]

  def encode_in_silence(self, audio) -> tf.Tensor:
    """Codes of audio with silence before and after it, shapes as for `encode`."""
    return self.encode_inside(tf.pad(audio, [[0, 0], [self.encoder_context_frames * self.hop_samples] * 2]))

  def adapt(self, audio) -> None:
    """Fits the quantiser to the encoder's output, by k-means if it has a codebook, and the levels of the bands."""
    self.decoder.audio_values.adapt(audio)
    self.quantizer.adapt(self.encoder(audio))

  def with_decoder(self, decoder) -> "SpeechVQVAE":
    """A copy of the model with another decoder that has the same conditioner."""
    settings = {name: value for name, value in self.get_config().items() if name in _SETTINGS}
    model = SpeechVQVAE(self.encoder, self.quantizer, decoder, **settings)
    model.null.assign(self.null)
    model.spectral.mel_prediction.set_weights(self.spectral.mel_prediction.get_weights())
    return model

  def get_config(self):
    settings = {name: getattr(self, name) for name in _SETTINGS}
    return {**super().get_config(), **serialized_parts(self, _PARTS), **settings}

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, _PARTS))


_SETTINGS = ("null_rate", "mel_weight", "seed", "sample_rate_hz")
_PARTS = ("encoder", "quantizer", "decoder")
