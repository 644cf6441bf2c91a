"""WaveNets of audio: speech of several speakers without text, speech from phones, piano music."""

import functools

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.configs.common import WAVENET_RULES
from tfvq.configs.rules import require
from tfvq.data.audio_files import write_wav
from tfvq.data.speech_sources import WITH_PHONES
from tfvq.errors import UserError
from tfvq.evaluation import sections
from tfvq.evaluation.metrics import Metric, bits_per_value
from tfvq.layers import AudioValues
from tfvq.ops.loudness import FRAMES_PER_SECOND
from tfvq.tasks.corpus_task import CorpusTask, build_wavenet, check_temperature

_MAX_MEASURED_SECONDS = 4  # of each recording


class WaveNetTask(CorpusTask):
  """WaveNets of audio; the config has `data`, `phones` and `prior`, which has the settings of the WaveNet.

  It is conditioned on the speaker if there are several. With `phones` it is also conditioned on the text, as in
  text-to-speech: on the current phone, those before and after it, the position in the phone, and its length.
  """

  rules = WAVENET_RULES | CorpusTask.rules
  metrics = (Metric("bits_per_sample", "bits per sample"),)

  @classmethod
  def validate(cls, config):
    require(config, "phones", "prior", "train.prior", "samples")
    super().validate(config)
    num_bands, crop_samples = config.prior.num_bands, config.data.crop_samples
    frame_samples = config.data.sample_rate_hz // FRAMES_PER_SECOND
    if crop_samples % num_bands:
      raise UserError(
        f"config.prior.num_bands is {num_bands}; it must divide config.data.crop_samples, which is {crop_samples}."
      )
    if config.phones and frame_samples % num_bands:
      raise UserError(
        f"config.prior.num_bands is {num_bands}; with config.phones it must divide {frame_samples}, the samples per "
        f"frame of the phones at {config.data.sample_rate_hz} Hz."
      )
    if config.phones and crop_samples % frame_samples:
      raise UserError(
        f"config.data.crop_samples is {crop_samples}; with config.phones it must be a multiple of {frame_samples}, the "
        f"samples per frame of the phones at {config.data.sample_rate_hz} Hz."
      )
    if config.phones and config.data.source not in WITH_PHONES:
      raise UserError(
        f"config.phones needs a source whose phones are known: config.data.source is {config.data.source}; choose one "
        f"of {', '.join(WITH_PHONES)}, or set config.phones to False."
      )
    check_temperature(config, num_bands)

  @functools.cached_property
  def _levels(self) -> np.ndarray:
    """Levels of the bands in the training data, float32 [num_bands]."""
    audio_values = AudioValues(self.config.prior.num_bands, self.config.prior.num_values)
    self.adapt_levels(audio_values)
    return np.array(audio_values.levels)

  @property
  def audio_values(self) -> AudioValues:
    """Makes a layer that converts audio to the values of the WaveNet; a model under a strategy needs a new one."""
    audio_values = AudioValues(self.config.prior.num_bands, self.config.prior.num_values)
    audio_values.levels.assign(self._levels)
    return audio_values

  def build_prior(self):
    return build_wavenet(
      self.config.prior,
      self.config.prior.num_values,
      self.config.prior.num_bands,
      condition_dim=3 * len(self.corpus.phones) + 2 if self.config.phones else 0,
      num_speakers=self.num_speakers if self.num_speakers > 1 else 0,
      audio_values=self.audio_values,
    )

  def prior_batches(self, batch_size, step):
    batches = self.corpus.train(
      batch_size,
      self.config.data.crop_samples,
      self.config.seed + step,
      with_phones=self.config.phones,
    )
    audio_values = self.audio_values  # not inside the map, where its creation would be traced
    return batches.map(lambda batch: self._inputs(audio_values(batch["audio"]), batch))

  def _inputs(self, values, batch):
    """Converts a batch for the WaveNet's `fit`: to values, or ((values, condition),)."""
    condition = self._condition(batch)
    return ((values, condition),) if condition else values

  def _condition(self, batch):
    """Converts {"speaker": [B], "phones": [B, F, 5]} to the condition of the WaveNet."""
    condition = {}
    if self.num_speakers > 1:
      condition["speaker"] = batch["speaker"]
    if self.config.phones:
      phones = batch["phones"]
      names = tf.one_hot(phones[..., :3], len(self.corpus.phones))
      names = tf.reshape(names, [*tf.unstack(tf.shape(phones)[:2]), 3 * len(self.corpus.phones)])
      position = tf.cast(phones[..., 3:4], tf.float32) / 100
      length = tf.math.log1p(tf.cast(phones[..., 4:5], tf.float32)) / 3
      condition["local"] = tf.concat([names, position, length], axis=-1)
    return condition or None

  def write_samples(self, folder):
    """Writes samples for each speaker in turn; with phones, those of held-out recordings."""
    num, rate_hz = self.config.samples.num, self.corpus.sample_rate_hz
    batch = {"speaker": tf.range(num) % self.num_speakers}
    names = [self.corpus.speakers[speaker] for speaker in batch["speaker"].numpy()]
    if self.config.phones:
      clips = self._spoken_clips()
      num_frames = max(len(clip.phones) for clip in clips)
      batch["phones"] = tf.stack([np.pad(c.phones, [(0, num_frames - len(c.phones)), (0, 0)], "edge") for c in clips])
      batch["speaker"] = tf.constant([clip.speaker for clip in clips])
      lengths = [len(clip.audio) for clip in clips]
      names = [clip.name for clip in clips]
    else:
      lengths = [int(self.config.samples.seconds * rate_hz)] * num
    audio = self._sample(self.prior, self._condition(batch), len(names), max(lengths))
    for index, (name, sound, length) in enumerate(zip(names, audio, lengths, strict=True)):
      write_wav(folder / f"{index:02d}-{name.replace('/', '-')}.wav", [sound[:length]], rate_hz)

  def _spoken_clips(self):
    """Held-out recordings whose phones condition the samples."""
    return self.corpus.clips_of_length("held_out", 2, self.config.samples.num)

  def _sample(self, model, condition, num, num_samples):
    """Samples audio, float32 [num, T], T at least `num_samples`.

    It is sampled in parts of about one second, so that noise and compiled loop have a fixed size.
    """
    frames, num_bands = FRAMES_PER_SECOND, self.config.prior.num_bands
    steps = self.corpus.sample_rate_hz // num_bands
    proceed = tf.function(
      lambda start, noise, projected: models.sample_steps(
        model, start, noise, projected, self.config.samples.temperature
      ),
      jit_compile=True,
    )
    start, parts = models.generation_start(model, num), []
    for second in range(-(-num_samples // (steps * num_bands))):
      part = dict(condition or {})
      if "local" in part:
        local = part["local"][:, second * frames : (second + 1) * frames]
        part["local"] = tf.pad(local, [[0, 0], [0, frames - local.shape[1]], [0, 0]])
      noise = models.gumbel_noise(self.config.seed, models.noise_shape(model, num, steps), second)
      values, start = proceed(start, noise, model.project_condition(part or None))
      parts.append(tf.transpose(values, [1, 0, 2]))
    return model.audio_values.decode(tf.concat(parts, axis=1)).numpy()

  def measure(self, split):
    return {"bits_per_sample": bits_per_value(self.prior, self._measured_inputs(self.prior, split))}

  def _measured_inputs(self, model, split):
    for clip in self.corpus.clips(split):
      num_frames = min(len(clip.audio) // self.corpus.frame_samples, _MAX_MEASURED_SECONDS * FRAMES_PER_SECOND)
      num_steps = num_frames * self.corpus.frame_samples // self.config.prior.num_bands
      audio = tf.constant(clip.audio[np.newaxis, : num_steps * self.config.prior.num_bands])
      batch = {"speaker": tf.constant([clip.speaker]), "phones": tf.constant(clip.phones[np.newaxis, :num_frames])}
      yield self._inputs(model.audio_values(audio), batch)

  def report_sections(self):
    paths = sorted(self.workdir.folder("samples").glob("[0-9]*.wav"), key=lambda path: int(path.name.split("-")[0]))
    rows = [[path.stem, self.player(path)] for path in paths]
    columns = ["sample", "sound"]
    if self.config.phones:
      columns.append("held-out recording of the same phones")
      recorded = [sections.player(clip.audio, self.corpus.sample_rate_hz) for clip in self._spoken_clips()]
      rows = [[*row, original] for row, original in zip(rows, recorded, strict=True)]
    title = f"Samples, temperature {', '.join(map(str, self.config.samples.temperature))}"
    return [sections.Section(title, columns=columns, rows=rows)]
