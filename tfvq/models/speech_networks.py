"""The networks around the quantiser of speech: encoders, and the conditioner for the decoder."""

import keras
import tensorflow as tf

from tfvq.layers.log_mel import LogMel
from tfvq.layers.voice_perturbation import VoicePerturbation
from tfvq.ops.empty_batch import for_any_batch


def context_of(network: keras.Model) -> int:
  """Number of outputs on either side of an output that its receptive field reaches, for a chain of convolutions."""
  field, stride = 1, 1
  for layer in network.layers:
    if isinstance(layer, LogMel):
      field += (layer.window_samples - 1) * stride
      stride *= layer.hop_samples
    elif isinstance(layer, keras.layers.Conv1D):
      field += (layer.kernel_size[0] - 1) * layer.dilation_rate[0] * stride
      stride *= layer.strides[0]
  return -(-(field - 1) // (2 * stride))


def num_speakers_of(conditioner: keras.Model) -> int:
  """Number of speakers of a conditioner, or the largest int32 if it has no layer `speaker_embedding`."""
  sizes = [layer.input_dim for layer in conditioner.layers if layer.name == "speaker_embedding"]
  return sizes[0] if sizes else 2**31 - 1


def local_condition(conditioner: keras.Model, z, speaker, training: bool = False) -> tf.Tensor:
  """Runs a conditioner on a batch, which may be empty: z as it takes it and speakers, integers [B] -> [B, F, E]."""
  return for_any_batch(lambda z, speaker: conditioner((z, speaker), training=training), z, speaker)


def check_unknown_speakers(share: float, num_speakers: int, name: str) -> None:
  """Raises a `ValueError` if a fraction of the clips for the model `name` has a speaker outside 0..num_speakers-1."""
  if share:
    raise ValueError(f"{share:.1%} of the clips for {name} have a speaker outside 0..{num_speakers - 1}.")


def waveform_encoder(
  embedding_dim: int, strides: tuple[int, ...] = (2,) * 6, hidden_units: int = 256, latents_per_position: int = 1
) -> keras.Model:
  """An encoder of raw audio: strided convolutions with kernels of size 2 * stride.

  Reference: arXiv 1711.00937, section 4.3: six convolutions with stride 2 and kernel size 4, 64 samples per code.
  Deviation: one more convolution, with kernel size 3, after them.

  Args:
    embedding_dim: D, dimension of the codebook.
    strides: Stride of each convolution; their product is `hop`, the number of samples per frame.
    hidden_units: Channels of the convolutions.
    latents_per_position: G, number of latents per frame.

  Returns:
    A model, audio float [B, T] in -1..1 -> z_e [B, T / hop, D]; [B, T / hop, G, D] if G > 1.
  """
  audio = keras.Input((None,), name="audio")
  x = keras.layers.Reshape((-1, 1))(audio)
  for stride in strides:
    x = keras.layers.Conv1D(hidden_units, 2 * stride, stride, padding="same", activation="relu")(x)
  x = keras.layers.Conv1D(hidden_units, 3, padding="same", activation="relu")(x)
  return keras.Model(audio, _latents(x, embedding_dim, latents_per_position), name="encoder")


def log_mel_encoder(
  embedding_dim: int,
  hop_samples: int = 64,
  hidden_units: int = 128,
  num_mel_bands: int = 80,
  dilation_rates: tuple[int, ...] = (),
  latents_per_position: int = 1,
  voice_perturbation: float = 0.0,
  sample_rate_hz: int = 16_000,
) -> keras.Model:
  """An encoder of log-mel spectrograms: two convolutions over five frames, then residual blocks.

  Deviation: the input of the encoder in arXiv 1711.00937 is the raw waveform; this one trains in less time.

  Args:
    embedding_dim: D, dimension of the codebook.
    hop_samples: Samples per frame.
    hidden_units: Channels of the convolutions.
    num_mel_bands: Number of mel bands.
    dilation_rates: Dilation rates of the residual blocks, one for each.
    latents_per_position: G, number of latents per frame.
    voice_perturbation: `scale` of `tfvq.layers.VoicePerturbation`, which changes the voices in training; 0 for none.
    sample_rate_hz: Sample rate of the audio.

  Returns:
    A model, audio float [B, T] in -1..1 -> z_e [B, T / hop_samples, D]; [B, T / hop_samples, G, D] if G > 1.
  """
  audio = keras.Input((None,), name="audio")
  x = LogMel(num_mel_bands, hop_samples, sample_rate_hz=sample_rate_hz)(audio)
  if voice_perturbation:
    x = VoicePerturbation(voice_perturbation, sample_rate_hz=sample_rate_hz)(x)
  x = keras.layers.Conv1D(hidden_units, 5, padding="same", activation="elu", name="stem")(x)
  x = keras.layers.Conv1D(hidden_units, 5, padding="same", activation="elu")(x)
  for rate in dilation_rates:
    x = _dilated_residual(x, rate)
  return keras.Model(audio, _latents(x, embedding_dim, latents_per_position), name="encoder")


def conditioner(
  embedding_dim: int,
  num_speakers: int,
  condition_dim: int = 128,
  dilation_rates: tuple[int, ...] = (),
  latents_per_position: int = 1,
) -> keras.Model:
  """A network from codebook vectors and the speaker to the decoder's local condition: convolutions, residual blocks.

  Args:
    embedding_dim: D, dimension of the codebook.
    num_speakers: Number of speakers.
    condition_dim: E, channels of all convolutions and of the output.
    dilation_rates: Dilation rates of the residual blocks, one for each.
    latents_per_position: G, number of latents per frame.

  Returns:
    A model, (z_q float [B, F, D] or, if G > 1, [B, F, G, D]; speaker integers [B]) -> float [B, F, E].
  """
  several = latents_per_position > 1
  z_q = keras.Input((None, latents_per_position, embedding_dim) if several else (None, embedding_dim), name="z_q")
  speaker = keras.Input((), dtype="int32", name="speaker")
  embedded = keras.layers.Embedding(num_speakers, condition_dim, name="speaker_embedding")(speaker)
  embedded = keras.layers.Reshape((1, condition_dim))(embedded)
  x = keras.layers.Reshape((-1, latents_per_position * embedding_dim))(z_q) if several else z_q
  x = keras.layers.Conv1D(condition_dim, 3, padding="same")(x)
  x = keras.layers.ELU()(x + embedded)
  for _ in range(2):
    x = x + keras.layers.Conv1D(condition_dim, 3, padding="same", activation="elu")(x)
  for rate in dilation_rates:
    x = _dilated_residual(x, rate)
  return keras.Model([z_q, speaker], x, name="conditioner")


def _latents(x, embedding_dim, latents_per_position):
  """Projects the features of frames to latents, [B, F, C] -> [B, F, D], or [B, F, G, D] if G > 1."""
  x = keras.layers.Conv1D(latents_per_position * embedding_dim, 1)(x)
  return keras.layers.Reshape((-1, latents_per_position, embedding_dim))(x) if latents_per_position > 1 else x


def _dilated_residual(x, dilation_rate):
  """A residual block of a dilated and a pointwise convolution, initialised as the identity.

  The activations, here and in the networks, are ELUs because ReLUs die: with Muon, nearly all are zero for every input
  after some hundred steps.
  """
  channels = x.shape[-1]
  inner = keras.layers.Conv1D(channels, 3, padding="same", dilation_rate=dilation_rate, activation="elu")(x)
  return x + keras.layers.Conv1D(channels, 1, kernel_initializer="zeros")(inner)
