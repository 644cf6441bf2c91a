"""Metrics of speech models on recordings that were not used for training."""

import numpy as np
import tensorflow as tf
import tqdm

_MAX_SAMPLES = 2**15  # of each clip; the rest is ignored


def nats_per_sample(model, clips) -> float:
  """Negative log-likelihood of clips under a `SpeechVQVAE`, given their codes and speakers, in nats per sample.

  Only the first two seconds of each clip are used.
  """
  (nats,) = _mean_nats(model, clips, lambda z_q, speaker: [(z_q, speaker)])
  return nats


def likelihoods(model, clips, num_speakers: int) -> dict[str, float]:
  """Measures how much codes and speakers help the decoder, on the first two seconds of each clip.

  Args:
    model: A `SpeechVQVAE`.
    clips: `tfvq.data.speech_corpus.Clip`s.
    num_speakers: Number of speakers.

  Returns:
    `nats_per_sample`: negative log-likelihood of the audio given its codes. The others say by how much it is higher if
    the codes are shuffled in time (`gain_over_shuffled_nats`), with another speaker (`gain_of_speaker_nats`; 0 if there
    is only one), and with the null condition in place of the codes (`gain_nats`, if the model has learned one).
  """
  shuffler = np.random.default_rng(0)
  names = ["gain_over_shuffled_nats", "gain_of_speaker_nats", *(["gain_nats"] if model.null_rate else [])]

  def cases(z_q, speaker):
    shuffled = tf.gather(z_q, shuffler.permutation(z_q.shape[1]), axis=1)
    null = [(tf.broadcast_to(tf.convert_to_tensor(model.null), z_q.shape), speaker)] if model.null_rate else []
    return [(z_q, speaker), (shuffled, speaker), (z_q, (speaker + 1) % num_speakers), *null]

  nats, *others = _mean_nats(model, clips, cases)
  return {"nats_per_sample": nats, **{name: other - nats for name, other in zip(names, others, strict=True)}}


def _mean_nats(model, clips, cases):
  """Mean nats per sample for each case.

  Args:
    model: A `SpeechVQVAE`.
    clips: `tfvq.data.speech_corpus.Clip`s.
    cases: Function from a clip's own codebook vectors [1, F, ...] and speaker [1] to a list of such pairs.

  Returns:
    A list with the mean of each pair.
  """
  nats = tf.function(lambda audio, speaker, z_q: model.nats_per_sample(audio, speaker, z_q), reduce_retracing=True)
  totals, num_samples = 0, 0
  for clip in tqdm.tqdm(clips, desc="likelihood", unit="clip", dynamic_ncols=True):
    length = min(len(clip.audio), _MAX_SAMPLES) // model.hop_samples * model.hop_samples
    audio, speaker = tf.constant(clip.audio[np.newaxis, :length]), tf.constant([clip.speaker])
    z_q = model.quantizer.decode(model.encode_in_silence(audio))
    totals += length * np.array([float(nats(audio, who, codes)[0]) for codes, who in cases(z_q, speaker)])
    num_samples += length
  return (totals / num_samples).tolist()
