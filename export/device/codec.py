"""Encodes speech to codes and decodes them with TFLite files, as a whole or as a stream."""

import hashlib
import json
import pathlib

import numpy as np

from .errors import CodecError
from .generation import GumbelNoise
from .model import Model
from .streams import DecoderStream, EncoderStream, checked_samples

SHIPPED = pathlib.Path(__file__).with_name("speech")
PARTS = ("encoder", "condition", "step", "synthesis")  # one file each

_LEVEL = 0.08  # root mean square of the speech that models are trained on, without silence
_FRAMES_PER_SECOND = 100  # power is measured in frames of 10 ms


class SpeechCodec:
  """Encodes speech to codes, and decodes codes to speech.

  It has the interface of the codec of Keras models, `tfvq.models.speech_codec.SpeechCodec`.

  Args:
    folder: A folder of TFLite files that `tfvq-export` wrote; default: the model of this package.

  Raises:
    CodecError: A file is missing, damaged, or from another export than the others.
  """

  def __init__(self, folder=SHIPPED):
    folder = pathlib.Path(folder)
    try:
      self.facts = json.loads((folder / "codec.json").read_text())
      checksums = {name: self.facts["files"][f"{name}.tflite"] for name in PARTS}
      self._contents = {name: (folder / f"{name}.tflite").read_bytes() for name in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise CodecError(f"{folder} does not contain a complete codec ({error}): export it again.") from error
    for name, content in self._contents.items():
      if hashlib.sha256(content).hexdigest() != checksums[name]:
        raise CodecError(f"{folder / name}.tflite has changed since it was written: export the codec again.")

  @property
  def sample_rate_hz(self) -> int:
    """Sample rate of the audio."""
    return self.facts["sample_rate_hz"]

  @property
  def hop_samples(self) -> int:
    """Samples per frame."""
    return self.facts["hop_samples"]

  @property
  def frame_shape(self) -> tuple[int, ...]:
    """Shape of a frame's codes: (G,), or () if there is one."""
    return tuple(self.facts["frame_shape"])

  @property
  def num_values(self) -> int:
    """K: codes are 0..K-1."""
    return self.facts["num_values"]

  @property
  def speakers(self) -> list[str]:
    """Names of the speakers."""
    return self.facts["speakers"]

  @property
  def model_id(self) -> bytes:
    """Eight bytes that identify the model, the same for every quantisation."""
    return bytes.fromhex(self.facts["autoencoder_sha256"])[:8]

  def encode(self, samples) -> np.ndarray:
    """Codes of speech.

    Silence precedes and follows a recording. Codes are best at the level that the model was trained on: multiply the
    samples by `gain_of` first.

    Args:
      samples: Float [T] in -1..1, or a batch [B, T].

    Returns:
      int32 [F, *frame_shape] or [B, F, *frame_shape], F = ceil(T / hop_samples).

    Raises:
      CodecError: The samples are not finite, or have another number of dimensions.
    """
    if np.ndim(samples) == 2:
      return np.stack([self.encode(recording) for recording in samples])
    stream = self.encoder()
    return np.concatenate([stream.push(samples), stream.finish()])

  def decode(self, codes, speaker=0, seed: int = 0, temperature=None) -> np.ndarray:
    """Speech from codes.

    Args:
      codes: Integers [F, *frame_shape], or a batch [B, F, *frame_shape] with a sequence of B speakers.
      speaker: As for `decoder`.
      seed: As for `decoder`. All recordings of a batch have the same noise.
      temperature: As for `decoder`.

    Returns:
      Float32 [F * hop_samples] or [B, F * hop_samples].

    Raises:
      CodecError: As for `decoder`, and for `DecoderStream.push`.
    """
    if np.ndim(speaker):
      if len(codes) != len(speaker):
        raise CodecError(f"There are {len(codes)} recordings and {len(speaker)} speakers; give one for each.")
      return np.stack([self.decode(*pair, seed, temperature) for pair in zip(codes, speaker, strict=True)])
    stream = self.decoder(speaker, seed, temperature)
    return np.concatenate([stream.push(codes), stream.finish()])

  def encoder(self) -> EncoderStream:
    """Starts a stream from samples to codes."""
    return EncoderStream(self.facts, self.model("encoder"))

  def decoder(self, speaker: str | int = 0, seed: int = 0, temperature=None, noise=None) -> DecoderStream:
    """Starts a stream from codes to speech.

    Args:
      speaker: Name or number of the speaker.
      seed: Seed of the noise, zero or more; the same seed gives the same speech.
      temperature: One number, or one for each band, zero or more; the model's own by default.
      noise: Replaces the noise of the seed: a function of a number of steps that returns Gumbel noise for the next
        ones, float32 [steps, *noise_shape].

    Raises:
      CodecError: The speaker is unknown, the seed is negative, or the temperature has a wrong shape or value.
    """
    number = self.speakers.index(speaker) if speaker in self.speakers else speaker
    if isinstance(number, str) or not 0 <= number < len(self.speakers):
      raise CodecError(f"The model has no speaker {speaker!r}; choose one of {', '.join(self.speakers)}.")
    if seed < 0:
      raise CodecError(f"The seed is {seed}; give zero or a positive number.")
    num_bands = self.facts["num_bands"]
    temperature = np.asarray(self.facts["temperature"] if temperature is None else temperature, np.float32)
    if temperature.shape not in ((), (1,), (num_bands,)):
      raise CodecError(
        f"temperature has shape {temperature.shape}; give one number, or one for each of {num_bands} bands."
      )
    if not np.all((temperature >= 0) & (temperature < np.inf)):
      raise CodecError(f"The temperature must be zero or more and finite, but is {temperature.tolist()}.")
    return DecoderStream(
      self.facts,
      {name: self.model(name) for name in ("condition", "step", "synthesis")},
      number,
      np.broadcast_to(temperature, [num_bands]),
      noise or GumbelNoise(seed, self.facts["noise_shape"]),
    )

  def gain_of(self, samples) -> float:
    """The factor that brings speech, float [T], to the level that the model was trained on; 1 for silence.

    Raises:
      CodecError: The samples are not finite, or have more than one dimension.
    """
    samples = checked_samples(samples).astype(np.float64)
    frame_samples = self.sample_rate_hz // _FRAMES_PER_SECOND
    frames = np.pad(samples, [0, -len(samples) % frame_samples]).reshape(-1, frame_samples)
    powers = np.mean(np.square(frames), axis=1)
    if not len(powers):
      return 1.0
    # Silence is ignored: frames 40 dB below the 95th percentile, or 50 dB below the loudest frame.
    loud = max(np.percentile(powers, 95), np.max(powers) / 10)
    sounding = powers[powers > max(1e-4 * loud, 1e-9)]
    return float(_LEVEL / np.sqrt(np.mean(sounding))) if len(sounding) else 1.0

  def model(self, name: str) -> Model:
    """One of the codec's files, loaded: "encoder", "condition", "step" or "synthesis"."""
    return Model(self._contents[name])
