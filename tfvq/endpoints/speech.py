"""The endpoints of a VQ-VAE of speech: the parts of a codec."""

import math

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.endpoints.endpoint import LOOK_UP, Endpoint, floats, integers
from tfvq.endpoints.fast_wavenet import SpeechSteps
from tfvq.endpoints.wavenet import layer_inputs, step_endpoint, step_examples
from tfvq.models.speech_codec import SpeechCodec
from tfvq.ops.subbands import CONTEXT_STEPS

ENCODER_FRAMES = 25  # frames per call of the encoder: 0.2 s at 125 frames a second
CONDITION_FRAMES = 25
_STEPS_AT_ONCE = 4
_EXCERPT_SECONDS = 4  # of each recording that makes examples for the decoder
_FIRST = (".*log_mel.*", ".*stem.*")  # the encoder's first operations
_CONVOLUTIONS = (".*conv.*",)  # of the conditioner, each of which multiplies the rounding errors of those before it


def speech_endpoints(model: models.SpeechVQVAE, corpus) -> list[Endpoint]:
  """The parts of a codec of speech: encoder, condition, the decoder's step, and the synthesis of audio from values.

  In the synthesis a value of -1 stands for a step before the first or after the last.

  Args:
    model: The model.
    corpus: `tfvq.data.speech_corpus.SpeechCorpus` to take examples from.
  """
  decoder, audio_values, num_bands = model.decoder, model.decoder.audio_values, model.decoder.num_bands
  context = model.encoder_context_frames * model.hop_samples
  num_samples = ENCODER_FRAMES * model.hop_samples + 2 * context
  window_frames = CONDITION_FRAMES + 2 * decoder.context_frames
  num_steps = synthesis_steps(model)
  codec = SpeechCodec(model)

  def audio(split):
    for clip in corpus.clips(split):
      padded = np.pad(clip.audio, [context, context + num_samples])
      for start in range(0, len(clip.audio), ENCODER_FRAMES * model.hop_samples):
        yield {"audio": padded[np.newaxis, start : start + num_samples]}

  def codes(split):
    for clip in corpus.clips(split):
      whole = _with_context(model, codec.encode(clip.audio))
      for start in range(0, len(whole) - window_frames + 1, CONDITION_FRAMES):
        window = whole[np.newaxis, start : start + window_frames]
        yield {"codes": window, "speaker": np.array([clip.speaker], np.int32)}

  def values(split):
    for clip in corpus.clips(split):
      whole = audio_values(clip.audio[np.newaxis, : len(clip.audio) // num_bands * num_bands]).numpy()
      length = num_steps + 2 * CONTEXT_STEPS
      for start in range(0, whole.shape[1] - length + 1, num_steps):
        yield {"values": whole[:, start : start + length]}

  def encode(audio):
    z_e = model.encoder(audio)[:, model.encoder_context_frames : -model.encoder_context_frames or None]
    return {"codes": model.quantizer.encode(z_e, exact=False), "z_e": z_e}

  def condition(codes, speaker):
    return {"share": decoder.project(model.quantizer.decode(codes), speaker)[:, 0]}

  def synthesize(values):
    margin = CONTEXT_STEPS * num_bands
    bands = tf.where(values < 0, 0.0, audio_values.bands(values))
    return {"audio": audio_values.join(bands)[:, margin:-margin]}

  return [
    Endpoint(
      "encoder",
      encode,
      {"audio": floats(1, num_samples)},
      model,
      audio,
      kept_in_float=LOOK_UP,
      kept_in_float16=_FIRST,
    ),
    Endpoint(
      "condition",
      condition,
      {
        "codes": integers(1, window_frames, *model.frame_shape),
        "speaker": integers(1),
      },
      model,
      codes,
      ranges={"codes": (0, int(np.max(model.quantizer.num_values)) - 1), "speaker": (0, len(corpus.speakers) - 1)},
      kept_in_float16=_CONVOLUTIONS,
    ),
    step_endpoint(decoder.wavenet, lambda split: _decoder_examples(model, corpus, codec, split)),
    Endpoint(
      "synthesis",
      synthesize,
      {"values": integers(1, num_steps + 2 * CONTEXT_STEPS, num_bands)},
      model,
      values,
      ranges={"values": (-1, audio_values.num_values - 1)},
      kept_in_float=(".*",),
    ),
    _steps_endpoint(model, corpus, codec),
  ]


def synthesis_steps(model: models.SpeechVQVAE) -> int:
  """Steps per call of the synthesis: half as many as in a call of the condition, less the context."""
  return CONDITION_FRAMES * model.decoder.steps_per_frame // 2 - CONTEXT_STEPS


def codec_facts(model: models.SpeechVQVAE, temperature) -> dict:
  """What `export.device` needs to know about the files of a codec, beside what export.json says.

  Args:
    model: The model.
    temperature: Of the decoder, one value or one for each band.
  """
  decoder = model.decoder
  return {
    "temperature": np.broadcast_to(temperature, [decoder.num_bands]).tolist(),
    "encoder_context_frames": model.encoder_context_frames,
    "encoder_frames": ENCODER_FRAMES,
    "conditioner_context_frames": decoder.context_frames,
    "condition_frames": CONDITION_FRAMES,
    "steps_per_frame": decoder.steps_per_frame,
    "channels": decoder.wavenet.channels,
    "dilation_rates": list(decoder.wavenet.dilation_rates),
    "noise_shape": list(decoder.wavenet.head.noise_shape),
    "num_bands": decoder.num_bands,
    "synthesis_steps": synthesis_steps(model),
    "synthesis_context": CONTEXT_STEPS,
  }


def _steps_endpoint(model, corpus, codec):
  """Several steps and their audio in one call, where per-call overhead is high."""
  wavenet = model.decoder.wavenet
  num_steps = math.gcd(_STEPS_AT_ONCE, model.decoder.steps_per_frame)  # of one frame
  steps = SpeechSteps(wavenet, num_steps, CONTEXT_STEPS)
  inputs = {
    "share": floats(1, 2 * wavenet.channels * len(wavenet.blocks)),
    "noise": floats(num_steps, *wavenet.head.noise_shape),
    "temperature": floats(wavenet.head.num_variables),
  }
  function = lambda share, **inputs: steps(projected=share, **inputs)
  examples = lambda split: _spoken_steps(model, corpus, codec, split, num_steps)
  return Endpoint("steps", function, inputs, model, examples, state=tuple(steps.state))


def _with_context(model, codes):
  """Codes [F, ...] with the first and the last repeated for the conditioner's context."""
  return np.pad(codes, [(model.decoder.context_frames,) * 2, *[(0, 0)] * (codes.ndim - 1)], mode="edge")


def _loudest_excerpt(audio, sample_rate_hz):
  """Some seconds around the loudest sample, so that few examples are silence."""
  length = _EXCERPT_SECONDS * sample_rate_hz
  start = max(0, int(np.argmax(np.abs(audio))) - length // 2)
  return audio[start : start + length]


def _projected_of(model, codec, audio, speaker):
  """The decoder's projected condition in a recording, [F, 1, 2CL]."""
  codes = _with_context(model, codec.encode(audio))
  return model.decoder.project(model.quantizer.decode(codes[np.newaxis]), np.array([speaker])).numpy()


def _decoder_examples(model, corpus, codec, split, num_steps=100):
  """Inputs of the decoder's step, teacher-forced on real recordings."""
  wavenet = model.decoder.wavenet
  temperature = np.ones([wavenet.head.num_variables], np.float32)
  for number, clip in enumerate(corpus.clips(split)):
    audio = _loudest_excerpt(clip.audio, model.sample_rate_hz)
    audio = audio[: len(audio) // model.hop_samples * model.hop_samples]
    projected = _projected_of(model, codec, audio, clip.speaker)
    inputs = layer_inputs(wavenet, wavenet.audio_values(audio[np.newaxis])[0], projected)
    loudest = int(np.argmax(np.abs(audio))) // model.decoder.num_bands
    first = max(0, min(loudest, inputs.shape[1] - num_steps))
    noise = models.gumbel_noise(0, (num_steps, 1, *wavenet.head.noise_shape), number).numpy()
    yield from step_examples(wavenet, inputs, projected, noise, temperature, first)


def _spoken_steps(model, corpus, codec, split, num_steps):
  """Inputs of the decoder while it generates recordings from their codes one after another, several steps at once."""
  wavenet = model.decoder.wavenet
  for number, clip in enumerate(corpus.clips(split)):
    audio = _loudest_excerpt(clip.audio, model.sample_rate_hz)
    projected = _projected_of(model, codec, audio, clip.speaker)
    noise_shape = (len(projected) * model.decoder.steps_per_frame, *wavenet.head.noise_shape)
    noise = models.gumbel_noise(0, noise_shape, number).numpy()
    for step in range(0, len(noise), num_steps):
      yield {
        "share": projected[step // model.decoder.steps_per_frame],
        "noise": noise[step : step + num_steps],
        "temperature": np.zeros([wavenet.head.num_variables], np.float32),
      }
