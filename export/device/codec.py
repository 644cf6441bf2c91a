"""Speech to codes and back with TFLite files, in one piece or as it comes in."""

import ctypes
import hashlib
import json
import pathlib

import numpy as np

SHIPPED = pathlib.Path(__file__).with_name("speech")
PARTS = ("encoder", "condition", "step", "synthesis")  # a file each

_SIGNATURE = "serving_default"
_LEVEL = 0.08  # root mean square of the sounding parts of the speech that models are trained on
_POWER_FRAME = 160  # samples over which power is measured


class CodecError(Exception):
  """Something the user can mend: one sentence saying what was wrong, where, and what to do."""


class SpeechCodec:
  """Codes of speech, and speech from codes.

  Args:
    folder: What `export.export_main` wrote for one kind of quantisation; the model of this package by default.

  Raises:
    CodecError: A file is missing, damaged, or not the one that the others belong to.
  """

  def __init__(self, folder=SHIPPED):
    folder = pathlib.Path(folder)
    try:
      self.facts = json.loads((folder / "codec.json").read_text())
      checksums = {name: self.facts["files"][f"{name}.tflite"] for name in PARTS}
      self._contents = {name: (folder / f"{name}.tflite").read_bytes() for name in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise CodecError(f"{folder} does not hold a whole codec ({error}): export it again.") from error
    for name, content in self._contents.items():
      if hashlib.sha256(content).hexdigest() != checksums[name]:
        raise CodecError(f"{folder / name}.tflite is not the file that was written: export the codec again.")

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
  def num_embeddings(self) -> int:
    """K: codes are 0..K-1."""
    return self.facts["num_embeddings"]

  @property
  def speakers(self) -> list[str]:
    """Names of the speakers."""
    return self.facts["speakers"]

  @property
  def model_id(self) -> bytes:
    """Eight bytes that tell models apart, however they are quantised."""
    return bytes.fromhex(self.facts["autoencoder_sha256"])[:8]

  def encode(self, samples) -> np.ndarray:
    """Codes of speech, float [T] in -1..1 -> int32 [F, *frame_shape], F = ceil(T / hop_samples).

    Speech is understood best at the level that the model was trained on: multiply it by `gain_of` first.
    """
    stream = self.encoder()
    return np.concatenate([stream.push(samples), stream.finish()])

  def decode(self, codes, speaker: str = "", seed: int = 0, temperature=None) -> np.ndarray:
    """Speech from codes, integers [F, *frame_shape] -> float32 [F * hop_samples]; see `decoder`."""
    stream = self.decoder(speaker, seed, temperature)
    return np.concatenate([stream.push(codes), stream.finish()])

  def encoder(self) -> "Encoder":
    """Encodes speech as it comes in."""
    return Encoder(self.facts, self.model("encoder"))

  def decoder(self, speaker: str = "", seed: int = 0, temperature=None, noise=None) -> "Decoder":
    """Decodes codes as they come in.

    Args:
      speaker: Whose voice to speak with; the first by default.
      seed: Seed of the noise; the same one gives the same speech.
      temperature: One number, or one for each band; the model's own by default.
      noise: In place of noise of that seed: called with a number of steps, gives Gumbel noise for the next ones.

    Raises:
      CodecError: There is no such speaker, the seed is negative, or the temperature does not suit.
    """
    speaker = speaker or self.speakers[0]
    if speaker not in self.speakers:
      raise CodecError(f"The model has no speaker {speaker!r}; choose one of {', '.join(self.speakers)}.")
    if seed < 0:
      raise CodecError(f"The seed is {seed}; give one of zero or more.")
    num_bands = self.facts["num_bands"]
    temperature = np.asarray(self.facts["temperature"] if temperature is None else temperature, np.float32)
    if temperature.shape not in ((), (1,), (num_bands,)):
      raise CodecError(
        f"temperature has shape {temperature.shape}; give one number, or one for each of {num_bands} bands."
      )
    return Decoder(
      self.facts,
      {name: self.model(name) for name in ("condition", "step", "synthesis")},
      self.speakers.index(speaker),
      np.broadcast_to(temperature, [num_bands]),
      noise or GumbelNoise(seed, self.facts["noise_shape"]),
    )

  def gain_of(self, samples) -> float:
    """What speech is to be multiplied by to have the level that the model was trained on; samples float [T]."""
    samples = np.asarray(samples, np.float64)
    frames = np.pad(samples, [0, -len(samples) % _POWER_FRAME]).reshape(-1, _POWER_FRAME)
    powers = np.mean(np.square(frames), axis=1)
    if not len(powers):
      return 1.0
    # Silences do not count: they are 40 dB below the highest twentieth, or 50 dB below the loudest frame.
    loud = max(np.percentile(powers, 95), np.max(powers) / 10)
    sounding = powers[powers > max(1e-4 * loud, 1e-9)]
    return float(_LEVEL / np.sqrt(np.mean(sounding))) if len(sounding) else 1.0

  def model(self, name: str) -> "Model":
    """One of the codec's files, ready to run: "encoder", "condition", "step" or "synthesis"."""
    return Model(self._contents[name])


class Encoder:
  """Turns speech into codes as it comes in; made by `SpeechCodec.encoder`."""

  def __init__(self, facts, model):
    self._model = model
    self._hop = facts["hop_samples"]
    self._no_codes = np.zeros([0, *facts["frame_shape"]], np.int32)
    self._frames = facts["encoder_frames"]
    context = facts["encoder_context_frames"] * self._hop
    self._window = self._frames * self._hop + 2 * context
    # A recording stands in silence.
    self._pending = np.zeros(context, np.float32)
    self._num_samples = self._num_frames = 0

  def push(self, samples) -> np.ndarray:
    """Takes float [T] in -1..1; gives the codes that are settled by now, int32 [F, *frame_shape]."""
    samples = np.asarray(samples, np.float32)
    self._num_samples += len(samples)
    self._pending = np.concatenate([self._pending, samples])
    return self._settled()

  def finish(self) -> np.ndarray:
    """The remaining codes, int32 [F, *frame_shape]."""
    num_frames = -(-self._num_samples // self._hop)
    self._pending = np.concatenate([self._pending, np.zeros(self._window, np.float32)])
    return self._settled(limit=num_frames - self._num_frames)

  def _settled(self, limit=None):
    codes, step = [self._no_codes], self._frames * self._hop
    start = num_frames = 0
    while start + self._window <= len(self._pending) and (limit is None or num_frames < limit):
      codes.append(self._model(audio=self._pending[np.newaxis, start : start + self._window])["codes"][0])
      start, num_frames = start + step, num_frames + self._frames
    self._pending = self._pending[start:]
    self._num_frames += num_frames
    return np.concatenate(codes)[:limit]


class Decoder:
  """Turns codes into speech as they come in; made by `SpeechCodec.decoder`."""

  def __init__(self, facts, models, speaker, temperature, noise):
    self._facts, self._models, self._noise = facts, models, noise
    self._speaker = np.array([speaker], np.int32)
    self._temperature = np.ascontiguousarray(temperature, np.float32)
    self._pending = np.zeros([0, *facts["frame_shape"]], np.int32)
    self._num_frames = self._num_frames_done = 0
    self._loop = StepLoop(models["step"], facts)
    # Before the first step there is nothing.
    self._values = np.full([facts["synthesis_context"], facts["num_bands"]], -1, np.int32)

  def push(self, codes) -> np.ndarray:
    """Takes integers [F, *frame_shape]; gives the speech that is settled by now, float32.

    Raises:
      CodecError: A code is not one of the model's, or their shape is another.
    """
    codes = np.asarray(codes)
    if codes.shape[1:] != self._pending.shape[1:]:
      wanted = ", ".join(["frames", *map(str, self._pending.shape[1:])])
      raise CodecError(f"Codes have shape {list(codes.shape)}; those of this model have [{wanted}].")
    if codes.size and (codes.min() < 0 or codes.max() >= self._facts["num_embeddings"]):
      raise CodecError(f"Codes must be 0..{self._facts['num_embeddings'] - 1}, but there are others among them.")
    codes = codes.astype(np.int32)
    if not self._num_frames and len(codes):
      # Before the first frame there is more of it.
      self._pending = np.repeat(codes[:1], self._facts["conditioner_context_frames"], axis=0)
    self._num_frames += len(codes)
    self._pending = np.concatenate([self._pending, codes])
    return self._settled()

  def finish(self) -> np.ndarray:
    """The remaining speech, float32."""
    if not self._num_frames:
      return np.zeros(0, np.float32)
    num_samples = (self._num_frames - self._num_frames_done) * self._facts["hop_samples"] + self._held_back
    window = self._facts["condition_frames"] + 2 * self._facts["conditioner_context_frames"]
    self._pending = np.concatenate([self._pending, np.repeat(self._pending[-1:], window, axis=0)])
    settled = self._settled(self._num_frames - self._num_frames_done)
    # After the last step there is nothing.
    self._values = np.concatenate(
      [self._values, np.full([self._synthesis_window, self._facts["num_bands"]], -1, np.int32)]
    )
    return np.concatenate([settled, self._synthesize()])[:num_samples]

  @property
  def _synthesis_window(self):
    return self._facts["synthesis_steps"] + 2 * self._facts["synthesis_context"]

  @property
  def _held_back(self):
    """Samples that wait for steps after them."""
    return (len(self._values) - self._facts["synthesis_context"]) * self._facts["num_bands"]

  def _settled(self, num_frames_left=None):
    frames, context = self._facts["condition_frames"], self._facts["conditioner_context_frames"]
    speech, start = [np.zeros(0, np.float32)], 0
    while start + frames + 2 * context <= len(self._pending) and num_frames_left != 0:
      window = self._pending[np.newaxis, start : start + frames + 2 * context]
      share = self._models["condition"](codes=window, speaker=self._speaker)["share"]
      if num_frames_left is not None:
        share = share[:num_frames_left]
        num_frames_left -= len(share)
      noise = self._noise(len(share) * self._facts["steps_per_frame"])
      self._values = np.concatenate([self._values, self._loop.run(share, noise, self._temperature)])
      start, self._num_frames_done = start + len(share), self._num_frames_done + len(share)
      speech.append(self._synthesize())
    self._pending = self._pending[start:]
    return np.concatenate(speech)

  def _synthesize(self):
    speech, steps = [np.zeros(0, np.float32)], self._facts["synthesis_steps"]
    while len(self._values) >= self._synthesis_window:
      speech.append(self._models["synthesis"](values=self._values[np.newaxis, : self._synthesis_window])["audio"][0])
      self._values = self._values[steps:]
    return np.concatenate(speech)


class StepLoop:
  """The decoder's generation: a step of the network again and again, and its layers' pasts in between."""

  def __init__(self, model, facts):
    self._model = model
    self._steps_per_frame = facts["steps_per_frame"]
    rates = np.array(facts["dilation_rates"])
    # A ring buffer for each layer, one after another.
    self._rates, self._first = rates, np.cumsum(rates) - rates
    self._rings = np.zeros([rates.sum(), facts["channels"]], np.float32)
    self._x = np.zeros([1, facts["channels"]], np.float32)
    self._time = 0

  def run(self, share, noise, temperature):
    """Steps of some frames: share [F, 2CL], noise [T, ...] -> values int32 [T, G]."""
    model, rings = self._model, self._rings
    share_in, noise_in, past_in, x_in, x_out, inputs_out, values_out = map(
      model.view, ("share", "noise", "past", "x", "x_next", "inputs", "values")
    )
    model.set("temperature", temperature)
    x_in[...] = self._x
    places = self._first + (self._time + np.arange(len(noise)))[:, np.newaxis] % self._rates
    values = np.empty([len(noise), values_out.shape[1]], np.int32)
    for step, (step_places, step_noise) in enumerate(zip(places, noise, strict=True)):
      if step % self._steps_per_frame == 0:
        share_in[0] = share[step // self._steps_per_frame]
      noise_in[0] = step_noise
      rings.take(step_places, axis=0, out=past_in, mode="clip")  # other modes copy
      model.invoke()
      rings[step_places] = inputs_out
      x_in[...] = x_out
      values[step] = values_out
    self._x = x_out.copy()
    self._time += len(noise)
    return values


class GumbelNoise:
  """Standard Gumbel noise, drawn from 65,536 quantiles: several times as fast as two logarithms a number.

  Args:
    seed: Seed.
    shape: Shape of the noise of a step.
  """

  def __init__(self, seed: int, shape):
    self._shape = tuple(shape)
    self._generator = np.random.Generator(np.random.PCG64(seed))
    self._quantiles = -np.log(-np.log((np.arange(2**16) + 0.5) / 2**16)).astype(np.float32)

  def __call__(self, num_steps: int) -> np.ndarray:
    size = num_steps * int(np.prod(self._shape))
    words = self._generator.bit_generator.random_raw(-(-size // 4))
    return self._quantiles[words.view(np.uint16)[:size]].reshape(num_steps, *self._shape)


class Model:
  """A TFLite file that runs on one thread; arrays go in and out by name.

  Raises:
    CodecError: LiteRT is not installed.
  """

  def __init__(self, content):
    try:
      from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
      raise CodecError("LiteRT is not installed: run `pip install ai-edge-litert`.") from error
    interpreter = Interpreter(model_content=content, num_threads=1)
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
    """Sets an input; it stays as it is until it is set again."""
    self._interpreter.set_tensor(self._inputs[name], value)

  def view(self, name: str) -> np.ndarray:
    """An input's or output's own memory; it is valid as long as this object is, while no shape changes."""
    array = self._interpreter.tensor({**self._inputs, **self._outputs}[name])()
    # The interpreter does not run while arrays that it gave are held. Nothing moves once its tensors are allocated.
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)

  def invoke(self) -> None:
    """Runs the file."""
    self._interpreter.invoke()

  def get(self, name: str) -> np.ndarray:
    """An output of the last run."""
    return self._interpreter.get_tensor(self._outputs[name])
