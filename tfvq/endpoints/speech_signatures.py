"""The signatures of a SavedModel of speech: encode, decode and sample."""

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.endpoints.endpoint import Signature
from tfvq.models.sampling import gumbel_noise, noise_shape, sample

_FRAMES_PER_PART = 25  # that speech is decoded in: the noise of more would take much memory


def speech_signatures(model: models.SpeechVQVAE, prior: models.WaveNet, corpus, temperature) -> dict[str, Signature]:
  """Signatures with open batch size and length.

  Args:
    model: The autoencoder.
    prior: The prior over its codes.
    corpus: `tfvq.data.speech_corpus.SpeechCorpus` to take a request from.
    temperature: Of the decoder in that request, one value or one for each band.
  """
  num_bands = model.decoder.num_bands
  ranges = {"codes": (0, int(np.max(model.quantizer.num_values)) - 1), "speaker": (0, len(corpus.speakers) - 1)}

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

  drawn = {
    "seed": tf.TensorSpec([], tf.int32, "seed"),
    "temperature": tf.TensorSpec([num_bands], tf.float32, "temperature"),
  }
  speaker = tf.TensorSpec([None], tf.int32, "speaker")
  clip = next(iter(corpus.clips("held_out")))
  audio = clip.audio[np.newaxis, : model.sample_rate_hz // 2]
  request = {
    "speaker": np.array([clip.speaker], np.int32),
    "seed": np.int32(0),
    "temperature": np.broadcast_to(np.float32(temperature), [num_bands]),
  }
  return {
    "encode": Signature(
      encode, {"audio": tf.TensorSpec([None, None], tf.float32, "audio")}, {"audio": audio}, (model,)
    ),
    "decode": Signature(
      decode,
      {"codes": tf.TensorSpec([None, None, *model.frame_shape], tf.int32, "codes"), "speaker": speaker, **drawn},
      {"codes": encode(audio)["codes"].numpy(), **request},
      (model,),
      ranges,
    ),
    "sample": Signature(
      draw,
      {
        "speaker": speaker,
        "num_frames": tf.TensorSpec([], tf.int32, "num_frames"),
        "prior_temperature": tf.TensorSpec([], tf.float32, "prior_temperature"),
        **drawn,
      },
      {"num_frames": np.int32(5), "prior_temperature": np.float32(1), **request},
      (model, prior),
      {"speaker": ranges["speaker"]},
    ),
  }


def decode_speech(model: models.SpeechVQVAE, codes, speaker, seed, temperature) -> tf.Tensor:
  """What `tfvq.models.speech_codec.SpeechCodec(model, frames_per_part=25).decode` returns, as a graph.

  Args:
    model: The model.
    codes: Integers [B, F] or [B, F, G], B >= 1.
    speaker: Integers [B].
    seed: Integer scalar.
    temperature: Float [num_bands].

  Returns:
    Audio, float32 [B, F * hop_samples].
  """
  decoder, context_frames = model.decoder, model.decoder.context_frames
  batch_size, num_frames = tf.shape(codes)[0], tf.shape(codes)[1]
  # If there are no codes, one part is decoded too, and dropped.
  codes = tf.pad(codes, [[0, 0], [0, tf.cast(num_frames == 0, tf.int32)], *[[0, 0]] * (codes.shape.rank - 2)])
  num_parts = -(-tf.shape(codes)[1] // _FRAMES_PER_PART)
  num_missing = num_parts * _FRAMES_PER_PART - tf.shape(codes)[1]
  first, last = codes[:, :1], codes[:, -1:]
  filled = [tf.repeat(first, context_frames, axis=1), codes, tf.repeat(last, num_missing + context_frames, axis=1)]
  filled = tf.concat(filled, axis=1)
  num_samples = _FRAMES_PER_PART * model.hop_samples
  part_noise_shape = decoder.noise_shape(batch_size, num_samples)

  def decode_part(part, state, parts):
    begin = part * _FRAMES_PER_PART
    z = model.quantizer.decode(filled[:, begin : begin + _FRAMES_PER_PART + 2 * context_frames])
    noise = gumbel_noise(seed, part_noise_shape, part)
    frames_left = tf.minimum(num_frames - begin, _FRAMES_PER_PART)
    audio, state = decoder.sample_part(z, state, noise, {"speaker": speaker}, temperature, frames_left)
    return part + 1, state, parts.write(part, tf.transpose(audio))

  parts = tf.TensorArray(tf.float32, num_parts, element_shape=[num_samples, None])
  start = decoder.initial_state(batch_size)
  _, state, parts = tf.while_loop(lambda part, *_: part < num_parts, decode_part, (0, start, parts))
  audio = tf.concat([tf.transpose(parts.concat()), decoder.last_part(state)], axis=1)
  return audio[:, decoder.latency_samples :][:, : num_frames * model.hop_samples]
