"""Encodes speech to codes and decodes them with TFLite files, as a whole or as a stream."""

import ctypes
import hashlib
import json
import pathlib

import numpy as np

from .generation import GumbelNoise, StepLoop
from .quiet import delegate_line_dropped

SHIPPED = pathlib.Path(__file__).with_name("speech")
PARTS = ("encoder", "condition", "step", "synthesis")  # one file each

_SIGNATURE = "serving_default"
_LEVEL = 0.08  # root mean square of the speech that models are trained on, without silence
_FRAMES_PER_SECOND = 100  # power is measured in frames of 10 ms


class CodecError(ValueError):
  """An error that the user can fix: one sentence that says what is wrong, where, and what to do."""


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

  def encoder(self) -> "EncoderStream":
    """Starts a stream from samples to codes."""
    return EncoderStream(self.facts, self.model("encoder"))

  def decoder(self, speaker: str | int = 0, seed: int = 0, temperature=None, noise=None) -> "DecoderStream":
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
    samples = _checked_samples(samples).astype(np.float64)
    frame_samples = self.sample_rate_hz // _FRAMES_PER_SECOND
    frames = np.pad(samples, [0, -len(samples) % frame_samples]).reshape(-1, frame_samples)
    powers = np.mean(np.square(frames), axis=1)
    if not len(powers):
      return 1.0
    # Silence is ignored: frames 40 dB below the 95th percentile, or 50 dB below the loudest frame.
    loud = max(np.percentile(powers, 95), np.max(powers) / 10)
    sounding = powers[powers > max(1e-4 * loud, 1e-9)]
    return float(_LEVEL / np.sqrt(np.mean(sounding))) if len(sounding) else 1.0

  def model(self, name: str) -> "Model":
    """One of the codec's files, loaded: "encoder", "condition", "step" or "synthesis"."""
    return Model(self._contents[name])


class EncoderStream:
  """A stream from samples to codes; made by `SpeechCodec.encoder`."""

  def __init__(self, facts, model):
    self._model = model
    self._hop = facts["hop_samples"]
    self._no_codes = np.zeros([0, *facts["frame_shape"]], np.int32)
    self._frames = facts["encoder_frames"]
    context = facts["encoder_context_frames"] * self._hop
    self._window = self._frames * self._hop + 2 * context
    # Silence precedes the first sample and follows the last one.
    self._pending = np.zeros(context, np.float32)
    self._num_samples = self._num_frames = 0

  def push(self, samples) -> np.ndarray:
    """Takes the next samples, float [T] in -1..1; returns the codes that they complete, int32 [F, *frame_shape].

    Raises:
      CodecError: The samples are not finite, or have more than one dimension; the stream is unchanged.
    """
    samples = _checked_samples(samples)
    self._num_samples += len(samples)
    self._pending = np.concatenate([self._pending, samples])
    return self._completed()

  def finish(self) -> np.ndarray:
    """Ends the stream; returns the remaining codes, int32 [F, *frame_shape]."""
    num_frames = -(-self._num_samples // self._hop)
    self._pending = np.concatenate([self._pending, np.zeros(self._window, np.float32)])
    return self._completed(limit=num_frames - self._num_frames)

  def _completed(self, limit=None):
    """Codes of all whole windows of pending samples, at most `limit` frames, int32 [F, *frame_shape]."""
    codes, step = [self._no_codes], self._frames * self._hop
    start = num_frames = 0
    while start + self._window <= len(self._pending) and (limit is None or num_frames < limit):
      codes.append(self._model(audio=self._pending[np.newaxis, start : start + self._window])["codes"][0])
      start, num_frames = start + step, num_frames + self._frames
    self._pending = self._pending[start:]
    self._num_frames += num_frames
    return np.concatenate(codes)[:limit]


class DecoderStream:
  """A stream from codes to speech; made by `SpeechCodec.decoder`."""

  def __init__(self, facts, models, speaker, temperature, noise):
    self._facts, self._models, self._noise = facts, models, noise
    self._speaker = np.array([speaker], np.int32)
    self._temperature = np.ascontiguousarray(temperature, np.float32)
    self._pending = np.zeros([0, *facts["frame_shape"]], np.int32)
    self._num_frames = self._num_frames_done = 0
    self._loop = StepLoop(models["step"], facts)
    # Before the first step there are no values.
    self._values = np.full([facts["synthesis_context"], facts["num_bands"]], -1, np.int32)

  def push(self, codes) -> np.ndarray:
    """Takes the next codes, integers [F, *frame_shape]; returns the speech that they complete, float32 [T] in -1..1.

    Raises:
      CodecError: The codes have another shape, are not integers, or not in 0..K-1; the stream is unchanged.
    """
    codes = np.asarray(codes)
    if not codes.ndim or codes.shape[1:] != self._pending.shape[1:]:
      wanted = ", ".join(["frames", *map(str, self._pending.shape[1:])])
      raise CodecError(f"Codes have shape {list(codes.shape)}; this model needs [{wanted}].")
    if codes.size and not np.issubdtype(codes.dtype, np.integer):
      raise CodecError(f"Codes must be integers, but are of type {codes.dtype}.")
    if codes.size and (codes.min() < 0 or codes.max() >= self._facts["num_values"]):
      raise CodecError(
        f"Codes must be in 0..{self._facts['num_values'] - 1}, but they are in {codes.min()}..{codes.max()}."
      )
    codes = codes.astype(np.int32)
    if not self._num_frames and len(codes):
      # The context before the first frame is a repetition of it.
      self._pending = np.repeat(codes[:1], self._facts["conditioner_context_frames"], axis=0)
    self._num_frames += len(codes)
    self._pending = np.concatenate([self._pending, codes])
    return self._completed()

  def finish(self) -> np.ndarray:
    """Ends the stream; returns the remaining speech, float32 [T]."""
    if not self._num_frames:
      return np.zeros(0, np.float32)
    num_samples = (self._num_frames - self._num_frames_done) * self._facts["hop_samples"] + self._delay_samples
    window = self._facts["condition_frames"] + 2 * self._facts["conditioner_context_frames"]
    self._pending = np.concatenate([self._pending, np.repeat(self._pending[-1:], window, axis=0)])
    completed = self._completed(self._num_frames - self._num_frames_done)
    # After the last step there are no values.
    self._values = np.concatenate(
      [self._values, np.full([self._synthesis_window, self._facts["num_bands"]], -1, np.int32)]
    )
    return np.concatenate([completed, self._synthesize()])[:num_samples]

  @property
  def _synthesis_window(self):
    return self._facts["synthesis_steps"] + 2 * self._facts["synthesis_context"]

  @property
  def _delay_samples(self):
    """Number of samples that need the values of later steps."""
    return (len(self._values) - self._facts["synthesis_context"]) * self._facts["num_bands"]

  def _completed(self, num_frames_left=None):
    """Speech of all whole windows of pending codes, at most `num_frames_left` frames, float32 [T]."""
    frames, context = self._facts["condition_frames"], self._facts["conditioner_context_frames"]
    speech, start = [np.zeros(0, np.float32)], 0
    while start + frames + 2 * context <= len(self._pending) and num_frames_left != 0:
      window = self._pending[np.newaxis, start : start + frames + 2 * context]
      projected = self._models["condition"](codes=window, speaker=self._speaker)["share"]
      if num_frames_left is not None:
        projected = projected[:num_frames_left]
        num_frames_left -= len(projected)
      noise = self._noise(len(projected) * self._facts["steps_per_frame"])
      self._values = np.concatenate([self._values, self._loop.run(projected, noise, self._temperature)])
      start, self._num_frames_done = start + len(projected), self._num_frames_done + len(projected)
      speech.append(self._synthesize())
    self._pending = self._pending[start:]
    return np.concatenate(speech)

  def _synthesize(self):
    speech, steps = [np.zeros(0, np.float32)], self._facts["synthesis_steps"]
    while len(self._values) >= self._synthesis_window:
      speech.append(self._models["synthesis"](values=self._values[np.newaxis, : self._synthesis_window])["audio"][0])
      self._values = self._values[steps:]
    return np.concatenate(speech)


def _checked_samples(samples):
  """Converts samples to float32 [T]; raises a CodecError if they are not one channel of finite numbers."""
  with np.errstate(over="ignore"):
    samples = np.asarray(samples, np.float32)
  if samples.ndim != 1:
    raise CodecError(f"Samples have shape {list(samples.shape)}; give one channel, [samples].")
  if not np.isfinite(samples).all():
    raise CodecError("Samples must be finite, but some are NaN or infinite.")
  return samples


class Model:
  """A TFLite file that runs on one thread; inputs and outputs are arrays by name.

  Raises:
    CodecError: LiteRT is not installed.
  """

  def __init__(self, content):
    try:
      from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
      raise CodecError("LiteRT is not installed: run `pip install ai-edge-litert`.") from error
    interpreter = Interpreter(model_content=content, num_threads=1)
    with delegate_line_dropped():
      interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(_SIGNATURE)
    self._inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
    self._outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
    self._interpreter = interpreter

  def __call__(self, **inputs) -> dict[str, np.ndarray]:
    for name, value in inputs.items():
      self.set(name, value)
    self.invoke()
    return {name: self.get(name) for name in self._outputs}

  def set(self, name: str, value) -> None:
    """Sets an input, until it is set again."""
    self._interpreter.set_tensor(self._inputs[name], value)

  def view(self, name: str) -> np.ndarray:
    """A view of the memory of an input or output, valid as long as this object exists."""
    array = self._interpreter.tensor({**self._inputs, **self._outputs}[name])()
    # The interpreter does not run while arrays that it returned are referenced. Allocated tensors do not move.
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)

  def invoke(self) -> None:
    """Runs the file."""
    self._interpreter.invoke()

  def get(self, name: str) -> np.ndarray:
    """An output of the last run."""
    return self._interpreter.get_tensor(self._outputs[name])
