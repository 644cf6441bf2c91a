"""Streams from samples to codes and from codes to speech, in windows of the sizes that the TFLite files have."""

import numpy as np

from .errors import CodecError
from .generation import StepLoop


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
    samples = checked_samples(samples)
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


def checked_samples(samples):
  """Converts samples to float32 [T]; raises a CodecError if they are not one channel of finite numbers."""
  with np.errstate(over="ignore"):
    samples = np.asarray(samples, np.float32)
  if samples.ndim != 1:
    raise CodecError(f"Samples have shape {list(samples.shape)}; give one channel, [samples].")
  if not np.isfinite(samples).all():
    raise CodecError("Samples must be finite, but some are NaN or infinite.")
  return samples
