"""What is shipped of a trained system: functions of fixed shapes for devices, of open shapes for servers."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from export.fast_wavenet import SpeechSteps, WaveNetStep
from tfvq import models
from tfvq.data.audio_files import AudioArray
from tfvq.errors import UserError
from tfvq.models.speech_codec import CODES_OF_CONTEXT, SpeechCodec, encode_inside, shares_inside

ENCODER_FRAMES = 50  # codes that the encoder of speech makes at once: 0.2 s at 250 a second
CONDITION_FRAMES = 50
STEPS_AT_ONCE = 4
SYNTHESIS_CONTEXT = 8  # steps that a synthesised sample depends on, to either side


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A function of a trained model.

  Attributes:
    name: Its name, and its file's.
    function: Called with the inputs by name, gives a dict of outputs.
    inputs: A spec for each input, their shapes fixed.
    model: Whose weights it reads.
    examples: Called with a split, gives inputs of real data without end, or as many as there are.
    kept_in_float: Regular expressions of the parts of the graph, by the names of their tensors, that int8 does not
      touch: those where rounding costs most for its size.
    state: Variables that the function changes, all zeros at first; only TFLite takes such a function.
  """

  name: str
  function: Callable[..., dict[str, tf.Tensor]]
  inputs: dict[str, tf.TensorSpec]
  model: keras.Model
  examples: Callable[[str], Iterator[dict[str, np.ndarray]]]
  kept_in_float: tuple[str, ...] = ()
  state: tuple[tf.Variable, ...] = ()

  def reset(self) -> dict[str, tf.Tensor]:
    """Sets the state back to zeros, and says so."""
    for variable in self.state:
      variable.assign(tf.zeros(variable.shape))
    return {"done": tf.constant(True)}

  @property
  def specs(self) -> list[tf.TensorSpec]:
    """The inputs' specs with their names, in order."""
    return [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()]

  def graph(self) -> tf.types.experimental.PolymorphicFunction:
    """The function as TensorFlow traces it."""
    return tf.function(lambda *inputs: self.function(**dict(zip(self.inputs, inputs, strict=True))))

  def concrete(self) -> tf.types.experimental.ConcreteFunction:
    """The traced function."""
    return self.graph().get_concrete_function(*self.specs)


def device_endpoints(run) -> list[Endpoint]:
  """Everything of a trained run that devices need.

  Args:
    run: `tfvq.training.stages.Run`.

  Raises:
    UserError: The system has no codes.
  """
  if not run.task.has_codes:
    raise UserError(f"{run.workdir.path} has no autoencoder with codes: there is nothing to export.")
  if isinstance(run.autoencoder, models.SpeechVQVAE):
    return speech_endpoints(run.autoencoder, run.task.corpus)
  return _image_endpoints(run)


def _image_endpoints(run):
  model, source = run.autoencoder, run.task.source

  def images(split):
    for batch in source.batches(split, 1):
      yield {"image": tf.cast(batch["image"], tf.float32).numpy()}

  def encode(image):
    z_e = model.encoder(image)
    return {"codes": model.quantizer.encode(z_e), "z_e": z_e}

  def codes(split):
    for example in images(split):
      yield {"codes": model.encode(example["image"]).numpy()}

  return [
    Endpoint("encoder", encode, {"image": _floats(1, *source.image_shape)}, model, images, _LOOK_UP),
    Endpoint(
      "decoder",
      lambda codes: {"image": model.decode(codes)},
      {"codes": _integers(1, *model.encoder.output_shape[1:-1])},
      model,
      codes,
    ),
  ]


def speech_endpoints(model: models.SpeechVQVAE, corpus) -> list[Endpoint]:
  """The parts of a codec of speech: encoder, condition, the decoder's step, and the synthesis of audio from values.

  A value of -1 is nothing at all, as there is before the first step and after the last.

  Args:
    model: The model.
    corpus: `tfvq.data.speech_corpus.SpeechCorpus` to take examples from.
  """
  decoder, num_bands = model.decoder, model.audio_values.num_bands
  context = model.context_frames * model.hop_samples
  num_samples = ENCODER_FRAMES * model.hop_samples + 2 * context
  num_steps = synthesis_steps(model)
  codec = SpeechCodec(model)

  def audio(split):
    for clip in corpus.clips(split):
      padded = np.pad(clip.audio, [context, context + num_samples])
      for start in range(0, len(clip.audio), ENCODER_FRAMES * model.hop_samples):
        yield {"audio": padded[np.newaxis, start : start + num_samples]}

  def codes(split):
    for clip in corpus.clips(split):
      whole = np.pad(codec.encode(AudioArray(clip.audio)), CODES_OF_CONTEXT, mode="edge")
      for start in range(0, len(whole) - CONDITION_FRAMES - 2 * CODES_OF_CONTEXT + 1, CONDITION_FRAMES):
        window = whole[np.newaxis, start : start + CONDITION_FRAMES + 2 * CODES_OF_CONTEXT]
        yield {"codes": window, "speaker": np.array([clip.speaker], np.int32)}

  def values(split):
    for clip in corpus.clips(split):
      whole = model.audio_values(clip.audio[np.newaxis, : len(clip.audio) // num_bands * num_bands]).numpy()
      length = num_steps + 2 * SYNTHESIS_CONTEXT
      for start in range(0, whole.shape[1] - length + 1, num_steps):
        yield {"values": whole[:, start : start + length]}

  def encode(audio):
    z_e = model.encoder(audio)[:, model.context_frames : -model.context_frames]
    return {"codes": encode_inside(model, audio), "z_e": z_e}

  def condition(codes, speaker):
    return {"share": tf.concat(shares_inside(model, codes, speaker), axis=-1)[:, 0]}

  def synthesize(values):
    margin = SYNTHESIS_CONTEXT * num_bands
    bands = tf.where(values < 0, 0.0, model.audio_values.bands(values))
    return {"audio": model.audio_values.join(bands)[:, margin:-margin]}

  return [
    Endpoint("encoder", encode, {"audio": _floats(1, num_samples)}, model, audio, (".*log_mel.*", *_LOOK_UP)),
    Endpoint(
      "condition",
      condition,
      {"codes": _integers(1, CONDITION_FRAMES + 2 * CODES_OF_CONTEXT), "speaker": _integers(1)},
      model,
      codes,
    ),
    step_endpoint(decoder, lambda split: _decoder_examples(model, corpus, codec, split)),
    Endpoint(
      "synthesis",
      synthesize,
      {"values": _integers(1, num_steps + 2 * SYNTHESIS_CONTEXT, num_bands)},
      model,
      values,
      kept_in_float=(".*",),
    ),
    _steps_endpoint(model, lambda split: _decoder_starts(model, corpus, codec, split)),
  ]


def synthesis_steps(model: models.SpeechVQVAE) -> int:
  """Steps that are made audio at once: half as many as the decoder does at once, less the context."""
  return CONDITION_FRAMES * model.steps_per_frame // 2 - SYNTHESIS_CONTEXT


def _steps_endpoint(model, examples):
  """Several steps and their audio, for callers to whom a call is dear."""
  decoder = model.decoder
  steps = SpeechSteps(decoder, model.audio_values, STEPS_AT_ONCE, SYNTHESIS_CONTEXT)
  inputs = {
    "share": _floats(1, 2 * decoder.channels * len(decoder.blocks)),
    "noise": _floats(STEPS_AT_ONCE, *decoder.head.noise_shape),
    "temperature": _floats(decoder.head.num_variables),
  }
  return Endpoint("steps", steps, inputs, model, examples, state=tuple(steps.state))


def step_endpoint(wavenet: models.WaveNet, examples, name: str = "step") -> Endpoint:
  """One step of a WaveNet's generation.

  Args:
    wavenet: The WaveNet.
    examples: As for `Endpoint`.
    name: The endpoint's name.
  """
  num_layers, channels = len(wavenet.blocks), wavenet.channels
  inputs = {
    "x": _floats(1, channels),
    "past": _floats(num_layers, channels),
    "share": _floats(1, 2 * channels * num_layers),
    "noise": _floats(1, *wavenet.head.noise_shape),
    "temperature": _floats(wavenet.head.num_variables),
  }
  return Endpoint(name, WaveNetStep(wavenet), inputs, wavenet, examples)


def prior_endpoints(run) -> list[Endpoint]:
  """The steps of the prior over codes: of a PixelCNN a row's and a pixel's, of a WaveNet its one.

  The state of a PixelCNN goes in and out as "state_00", "state_01", ...; it begins as zeros, or as what "prior_start"
  gives for a class.

  Args:
    run: `tfvq.training.stages.Run`.
  """
  prior = run.prior
  if isinstance(prior, models.WaveNet):
    return [step_endpoint(prior, lambda split: _prior_examples(prior, run.codes, split), name="prior_step")]
  label = {"label": _integers(1)} if prior.num_classes else {}
  start = prior.initial_state(1, tf.zeros([1], tf.int32) if label else None)
  names = [f"state_{index:02d}" for index in range(len(tf.nest.flatten(start)))]
  state_specs = {
    name: tf.TensorSpec(value.shape, value.dtype) for name, value in zip(names, tf.nest.flatten(start), strict=True)
  }
  width, num_variables, num_values = prior.width, prior.num_variables, prior.num_values

  def packed(state):
    return dict(zip(names, tf.nest.flatten(state), strict=True))

  def unpacked(tensors):
    return tf.nest.pack_sequence_as(start, [tensors[name] for name in names])

  def begin(label):
    return packed(prior.initial_state(1, label))

  def row(row, x_above, **state):
    return _renamed(packed(prior.row(x_above, unpacked(state), row)))

  def step(column, x_left, noise, temperature, **state):
    features, state = prior.step(x_left, unpacked(state), column)
    return {"values": prior.head.sample(features, noise, temperature), **_renamed(packed(state))}

  traced_row, traced_step = tf.function(row), tf.function(step)

  def walk(split):
    """Every row and pixel of real codes: (kind, inputs)."""
    for batch in run.codes.batches(split, 1):
      codes = tf.reshape(batch["codes"], [1, *prior.grid_shape[:2], -1])
      state = packed(prior.initial_state(1, batch["label"] if label else None))
      for height in range(prior.height):
        inputs = {"row": tf.constant(height), "x_above": codes[:, height - 1], **state}
        yield "row", inputs
        state = _renamed(traced_row(**inputs), back=True)
        for column in range(width):
          noise = models.gumbel_noise(0, [1, num_variables, num_values], height * width + column)
          inputs = {
            "column": tf.constant(column),
            "x_left": codes[:, height, column - 1],
            "noise": noise,
            "temperature": tf.ones([num_variables]),
            **state,
          }
          yield "step", inputs
          outputs = traced_step(**inputs)
          state = _renamed({name: value for name, value in outputs.items() if name != "values"}, back=True)

  def examples_of(kind):
    return lambda split: (
      {name: value.numpy() for name, value in inputs.items()} for which, inputs in walk(split) if which == kind
    )

  pixel = {
    "column": _integers(),
    "x_left": _integers(1, num_variables),
    "noise": _floats(1, num_variables, num_values),
    "temperature": _floats(num_variables),
  }
  endpoints = [
    Endpoint(
      "prior_row",
      row,
      {"row": _integers(), "x_above": _integers(1, width, num_variables), **state_specs},
      prior,
      examples_of("row"),
    ),
    Endpoint("prior_step", step, {**pixel, **state_specs}, prior, examples_of("step")),
  ]
  if label:
    labels = lambda split: ({"label": batch["label"].numpy()} for batch in run.codes.batches(split, 1))
    endpoints.append(Endpoint("prior_start", begin, label, prior, labels))
  return endpoints


def _renamed(state, back=False):
  """A state's tensors by the names they go out with, or back by those they come in with: no file may use one twice."""
  if back:
    return {name.removeprefix("next_"): value for name, value in state.items()}
  return {f"next_{name}": value for name, value in state.items()}


def _prior_examples(prior, codes, split, num_steps=100):
  """What the step of a prior over speech's codes is given while it says real ones again."""
  temperature = np.ones([prior.head.num_variables], np.float32)
  for number, batch in enumerate(codes.batches(split, 1)):
    shares = prior.project_condition({"speaker": batch["label"]})
    inputs = _layer_inputs(prior, batch["codes"][0, :num_steps, tf.newaxis], shares)
    noise = models.gumbel_noise(0, (inputs.shape[1], 1, *prior.head.noise_shape), number).numpy()
    yield from _step_examples(prior, inputs, np.concatenate(shares, axis=-1)[:, 0], noise, temperature)


def _decoder_examples(model, corpus, codec, split, num_steps=100):
  """What the decoder's step is given while it says real recordings again."""
  decoder = model.decoder
  temperature = np.ones([decoder.head.num_variables], np.float32)
  for number, clip in enumerate(corpus.clips(split)):
    audio = clip.audio[: len(clip.audio) // model.hop_samples * model.hop_samples]
    codes = np.pad(codec.encode(AudioArray(audio)), CODES_OF_CONTEXT, mode="edge")
    shares = shares_inside(model, codes[np.newaxis], np.array([clip.speaker]))
    inputs = _layer_inputs(decoder, model.audio_values(audio[np.newaxis])[0], shares)
    shares = np.concatenate(shares, axis=-1)[:, 0]
    # Around the loudest place: silences shall not make up most of the examples.
    loudest = int(np.argmax(np.abs(audio))) // model.audio_values.num_bands
    first = max(0, min(loudest, inputs.shape[1] - num_steps))
    noise = models.gumbel_noise(0, (num_steps, 1, *decoder.head.noise_shape), number).numpy()
    yield from _step_examples(decoder, inputs, shares, noise, temperature, first)


def _decoder_starts(model, corpus, codec, split):
  """What several steps at once are given at the beginning of recordings."""
  decoder = model.decoder
  for number, clip in enumerate(corpus.clips(split)):
    codes = np.pad(codec.encode(AudioArray(clip.audio[: model.hop_samples])), CODES_OF_CONTEXT, mode="edge")
    noise = models.gumbel_noise(0, (STEPS_AT_ONCE, *decoder.head.noise_shape), number)
    yield {
      "share": np.concatenate(shares_inside(model, codes[np.newaxis], np.array([clip.speaker])), axis=-1)[:, 0],
      "noise": noise.numpy(),
      "temperature": np.ones([decoder.head.num_variables], np.float32),
    }


def _step_examples(wavenet, inputs, shares, noise, temperature, first=0):
  """Inputs of the steps from `first` on, as many as there is noise for.

  Args:
    wavenet: The WaveNet.
    inputs: What its layers see in all steps, [L, T, C].
    shares: The condition's shares, [F, 2CL] with T a multiple of F.
    noise: Gumbel noise of the steps, [N, 1, ...].
    temperature: [G].
    first: The first step.
  """
  steps_per_frame = inputs.shape[1] // len(shares)
  for step in range(first, min(first + len(noise), inputs.shape[1])):
    pasts = [step - rate for rate in wavenet.dilation_rates]
    yield {
      "x": inputs[0, np.newaxis, step],
      "past": np.stack([inputs[layer, past] * (past >= 0) for layer, past in enumerate(pasts)]),
      "share": shares[np.newaxis, step // steps_per_frame],
      "noise": noise[step - first],
      "temperature": temperature,
    }


def _layer_inputs(wavenet, values, shares):
  """What each layer sees while the network says values, integers [T, G] -> float32 [L, T, C]."""
  x = tf.concat([tf.zeros([1, wavenet.channels]), wavenet.embed(values)[:-1]], axis=0)
  inputs = []
  for block, share in zip(wavenet.blocks, shares, strict=True):
    inputs.append(x)
    x, _ = block((x, share[:, tf.newaxis]), batch_size=1)
  return tf.stack(inputs).numpy()


# The product with the codebook, and the comparison of its scores.
_LOOK_UP = ("MatMul.*", "concat.*")


def _floats(*shape):
  return tf.TensorSpec(shape, tf.float32)


def _integers(*shape):
  return tf.TensorSpec(shape, tf.int32)
