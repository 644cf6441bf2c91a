"""SavedModels for servers: encode, decode and sample with open batch size and length, and warm-up requests."""

import pathlib

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.data.audio_files import SAMPLE_RATE_HZ
from tfvq.models.sampling import generation_start, gumbel_noise, noise_shape, sample, sample_steps
from tfvq.models.speech_codec import projected_condition

from .parity import compare

WARMUP_REQUESTS = "assets.extra/tf_serving_warmup_requests"

_FRAMES_PER_PART = 25  # that speech is decoded in: the noise of more would take much memory


def write_saved_model(run, folder: pathlib.Path) -> tuple[dict[str, dict], dict[str, dict]]:
  """Writes the SavedModel of a trained run, with one warm-up request of held-out data for each signature.

  Warm-up requests are left out if the package tensorflow-serving-api is not installed.

  Args:
    run: `tfvq.training.stages.Run`.
    folder: A new folder.

  Returns:
    For each signature its inputs and outputs, {"encode": {"inputs": {name: [shape, dtype]}, "input_ranges":
    {name: [least, greatest]}, "outputs": {...}}, ...}; and for each output of each signature, such as "encode/codes",
    the figures of `export.parity.compare` on that request.
  """
  num_values = {"codes": run.autoencoder.quantizer.num_embeddings}
  if isinstance(run.autoencoder, models.SpeechVQVAE):
    functions = _speech_functions(run)
    num_values["speaker"] = len(run.task.corpus.speakers)
  else:
    functions = _image_functions(run)
    num_values["label"] = run.prior.num_classes
  holder = tf.Module()
  holder.tracked = [variable.value for model in (run.autoencoder, run.prior) for variable in model.variables]
  signatures = {
    name: tf.function(_for_any_batch(function, specs)).get_concrete_function(**specs)
    for name, (function, specs, _) in functions.items()
  }
  tf.saved_model.save(holder, str(folder), signatures)
  _write_warmup(folder, {name: request for name, (_, _, request) in functions.items()})
  described = {
    name: {
      "inputs": _described(functions[name][1]),
      "input_ranges": {key: [0, num_values[key] - 1] for key in functions[name][1] if key in num_values},
      "outputs": _described(signature.structured_outputs),
    }
    for name, signature in signatures.items()
  }
  served, parity = tf.saved_model.load(str(folder)).signatures, {}
  for name, (_, _, request) in functions.items():
    inputs = {key: tf.constant(value) for key, value in request.items()}
    expected, given = signatures[name](**inputs), served[name](**inputs)
    parity |= {f"{name}/{key}": compare(expected[key].numpy(), given[key].numpy()) for key in expected}
  return described, parity


def _for_any_batch(function, specs):
  """A function that takes empty batches too, which convolutions refuse: it computes one example and drops it."""
  batched = [name for name, spec in specs.items() if spec.shape.rank and spec.shape[0] is None]
  if not batched:
    return function

  def for_any_batch(**inputs):
    batch_size = tf.shape(inputs[batched[0]])[0]
    for name in batched:
      padding = [[0, tf.cast(batch_size == 0, tf.int32)], *[[0, 0]] * (inputs[name].shape.rank - 1)]
      inputs[name] = tf.pad(inputs[name], padding)
    return {name: output[:batch_size] for name, output in function(**inputs).items()}

  return for_any_batch


def _image_functions(run):
  """For each signature its function, the specs of its inputs, and a request."""
  model, prior = run.autoencoder, run.prior
  images = run.task.source.examples("held_out", 4).astype(np.float32)
  code_shape = list(model.encoder.output_shape[1:-1])
  image_shape = list(run.task.image_shape)
  labelled = "label" in prior.conditions

  def encode(image):
    return {"codes": model.encode(image)}

  def decode(codes):
    return {"image": model.decode(codes)}

  def draw(num, seed, temperature, label=None):
    noise = gumbel_noise(seed, noise_shape(prior, tf.maximum(num, 1)))
    codes = sample(prior, noise, {"label": label}, temperature)
    return {"codes": codes[:num], "image": model.decode(codes)[:num]}

  def draw_labelled(label, seed, temperature):
    return draw(tf.shape(label)[0], seed, temperature, label)

  drawn = {"seed": _spec([], tf.int32, "seed"), "temperature": _spec([], tf.float32, "temperature")}
  if labelled:
    sampling = (
      draw_labelled,
      {"label": _spec([None], tf.int32, "label"), **drawn},
      {"label": np.zeros([1], np.int32), "seed": np.int32(0), "temperature": np.float32(1)},
    )
  else:
    sampling = (
      lambda num, seed, temperature: draw(num, seed, temperature),
      {"num": _spec([], tf.int32, "num"), **drawn},
      {"num": np.int32(1), "seed": np.int32(0), "temperature": np.float32(1)},
    )
  return {
    "encode": (
      encode,
      {"image": _spec([None, *image_shape], tf.float32, "image")},
      {"image": images},
    ),
    "decode": (
      decode,
      {"codes": _spec([None, *code_shape], tf.int32, "codes")},
      {"codes": model.encode(images).numpy()},
    ),
    "sample": sampling,
  }


def _speech_functions(run):
  model, prior = run.autoencoder, run.prior
  num_bands = model.audio_values.num_bands

  def encode(audio):
    missing = -tf.shape(audio)[1] % model.hop_samples
    return {"codes": model.encode_in_silence(tf.pad(audio, [[0, 0], [0, missing]]))}

  def decode(codes, speaker, seed, temperature):
    return {"audio": decode_speech(model, codes, speaker, seed, temperature)}

  def draw(speaker, num_frames, prior_temperature, seed, temperature):
    noise = gumbel_noise(seed, noise_shape(prior, tf.shape(speaker)[0], num_frames), part=-1)
    codes = sample(prior, noise, {"speaker": speaker}, prior_temperature)
    codes = tf.reshape(codes, [*tf.unstack(tf.shape(codes)[:2]), *model.frame_shape])
    return {"codes": codes, "audio": decode_speech(model, codes, speaker, seed, temperature)}

  drawn = {"seed": _spec([], tf.int32, "seed"), "temperature": _spec([num_bands], tf.float32, "temperature")}
  speaker = _spec([None], tf.int32, "speaker")
  clip = next(iter(run.task.corpus.clips("held_out")))
  audio = clip.audio[np.newaxis, : SAMPLE_RATE_HZ // 2]
  request = {
    "speaker": np.array([clip.speaker], np.int32),
    "seed": np.int32(0),
    "temperature": np.broadcast_to(np.float32(run.config.samples.temperature), [num_bands]),
  }
  return {
    "encode": (encode, {"audio": _spec([None, None], tf.float32, "audio")}, {"audio": audio}),
    "decode": (
      decode,
      {"codes": _spec([None, None, *model.frame_shape], tf.int32, "codes"), "speaker": speaker, **drawn},
      {"codes": encode(audio)["codes"].numpy(), **request},
    ),
    "sample": (
      draw,
      {
        "speaker": speaker,
        "num_frames": _spec([], tf.int32, "num_frames"),
        "prior_temperature": _spec([], tf.float32, "prior_temperature"),
        **drawn,
      },
      {"num_frames": np.int32(5), "prior_temperature": np.float32(1), **request},
    ),
  }


def decode_speech(model: models.SpeechVQVAE, codes, speaker, seed, temperature) -> tf.Tensor:
  """What `tfvq.models.speech_codec.SpeechCodec(model, frames_per_part=25).decode` gives, as a graph.

  Args:
    model: The model.
    codes: Integers [B, F] or [B, F, G], B >= 1.
    speaker: Integers [B].
    seed: Integer scalar.
    temperature: Float [G].

  Returns:
    Audio, float32 [B, F * hop_samples].
  """
  batch_size, num_frames = tf.shape(codes)[0], tf.shape(codes)[1]
  # Of no codes a part is decoded too, and none of it kept.
  codes = tf.pad(codes, [[0, 0], [0, tf.cast(num_frames == 0, tf.int32)], *[[0, 0]] * (codes.shape.rank - 2)])
  num_parts = -(-tf.shape(codes)[1] // _FRAMES_PER_PART)
  left_over = num_parts * _FRAMES_PER_PART - tf.shape(codes)[1]
  first, last = codes[:, :1], codes[:, -1:]
  context = model.conditioner_context_frames
  filled = [tf.repeat(first, context, axis=1), codes, tf.repeat(last, left_over + context, axis=1)]
  filled = tf.concat(filled, axis=1)
  num_steps = _FRAMES_PER_PART * model.steps_per_frame
  part_noise_shape = noise_shape(model.decoder, batch_size, num_steps)

  def decode_part(part, generation, values):
    begin = part * _FRAMES_PER_PART
    window = filled[:, begin : begin + _FRAMES_PER_PART + 2 * context]
    projected = projected_condition(model, window, speaker)
    noise = gumbel_noise(seed, part_noise_shape, part)
    part_values, generation = sample_steps(model.decoder, generation, noise, projected, temperature)
    return part + 1, generation, values.write(part, part_values)

  values = tf.TensorArray(tf.int32, num_parts, element_shape=[num_steps, None, model.audio_values.num_bands])
  start = generation_start(model.decoder, batch_size)
  *_, values = tf.while_loop(lambda part, *_: part < num_parts, decode_part, (0, start, values))
  audio = model.audio_values.decode(tf.transpose(values.concat(), [1, 0, 2]))
  return audio[:, : num_frames * model.hop_samples]


def _write_warmup(folder, requests):
  """Writes a request for each signature, which TensorFlow Serving runs when it loads the model, if it can."""
  try:
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
  except ModuleNotFoundError:
    return
  path = folder / WARMUP_REQUESTS
  path.parent.mkdir()
  with tf.io.TFRecordWriter(str(path)) as writer:
    for signature, inputs in requests.items():
      request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(signature_name=signature),
        inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
      )
      log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
      writer.write(log.SerializeToString())


def _spec(shape, dtype, name):
  return tf.TensorSpec(shape, dtype, name)


def _described(specs):
  return {name: [spec.shape.as_list(), spec.dtype.name] for name, spec in specs.items()}
