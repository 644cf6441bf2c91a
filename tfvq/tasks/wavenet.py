"""WaveNets of audio: speech of several speakers without text, speech from phones, piano music."""

import functools

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.configs.common import WAVENET_RULES
from tfvq.configs.rules import require
from tfvq.data.audio_files import SAMPLE_RATE_HZ, AudioReader, write_wav
from tfvq.data.speech_sources import WITH_PHONES
from tfvq.errors import UserError
from tfvq.evaluation import sections
from tfvq.evaluation.metrics import Metric, bits_per_value
from tfvq.layers import AudioValues
from tfvq.ops.loudness import FRAME_SAMPLES
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
    require(config, "data.source", "phones", "prior", "train.prior", "samples")
    super().validate(config)
    num_bands, crop_samples = config.prior.num_bands, config.data.crop_samples
    if crop_samples % num_bands or FRAME_SAMPLES % num_bands:
      raise UserError(
        f"config.prior.num_bands is {num_bands}; it must divide both {FRAME_SAMPLES}, the samples of a frame, and "
        f"config.data.crop_samples, which is {crop_samples}."
      )
    if config.phones and crop_samples % FRAME_SAMPLES:
      raise UserError(
        f"config.data.crop_samples is {crop_samples}; with config.phones it must be a multiple of {FRAME_SAMPLES}, the "
        "samples per frame of the phones."
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
    num, seconds = self.config.samples.num, self.config.samples.seconds
    batch = {"speaker": tf.range(num) % self.num_speakers}
    names = [self.corpus.speakers[speaker] for speaker in batch["speaker"].numpy()]
    if self.config.phones:
      clips = self._spoken_clips()
      num_frames = max(len(clip.phones) for clip in clips)
      batch["phones"] = tf.stack([np.pad(c.phones, [(0, num_frames - len(c.phones)), (0, 0)], "edge") for c in clips])
      batch["speaker"] = tf.constant([clip.speaker for clip in clips])
      lengths = [len(clip.audio) for clip in clips]
      names = [clip.name for clip in clips]
      seconds = num_frames * FRAME_SAMPLES / SAMPLE_RATE_HZ
    else:
      lengths = [int(seconds * SAMPLE_RATE_HZ)] * num
    audio = self._sample(self.prior, self._condition(batch), len(names), seconds)
    for index, (name, sound, length) in enumerate(zip(names, audio, lengths, strict=True)):
      write_wav(folder / f"{index:02d}-{name.replace('/', '-')}.wav", [sound[:length]])

  def _spoken_clips(self):
    """Held-out recordings whose phones condition the samples."""
    return self.corpus.clips_of_length("held_out", 2, self.config.samples.num)

  def _sample(self, model, condition, num, seconds):
    """Samples audio, float32 [num, T], in parts of one second, so that noise and compiled loop have a fixed size."""
    frames = SAMPLE_RATE_HZ // FRAME_SAMPLES
    steps = SAMPLE_RATE_HZ // self.config.prior.num_bands
    proceed = tf.function(
      lambda start, noise, projected: models.sample_steps(
        model, start, noise, projected, self.config.samples.temperature
      ),
      jit_compile=True,
    )
    start, parts = models.generation_start(model, num), []
    for second in range(int(np.ceil(seconds))):
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
      num_frames = min(len(clip.audio) // FRAME_SAMPLES, _MAX_MEASURED_SECONDS * SAMPLE_RATE_HZ // FRAME_SAMPLES)
      audio = tf.constant(clip.audio[np.newaxis, : num_frames * FRAME_SAMPLES])
      batch = {"speaker": tf.constant([clip.speaker]), "phones": tf.constant(clip.phones[np.newaxis, :num_frames])}
      yield self._inputs(model.audio_values(audio), batch)

  def report_sections(self):
    paths = sorted(self.workdir.folder("samples").glob("[0-9]*.wav"), key=lambda path: int(path.name.split("-")[0]))
    rows = [[path.stem, sections.player(AudioReader(path).read())] for path in paths]
    columns = ["sample", "sound"]
    if self.config.phones:
      columns.append("held-out recording of the same phones")
      rows = [[*row, sections.player(clip.audio)] for row, clip in zip(rows, self._spoken_clips(), strict=True)]
    title = f"Samples, temperature {', '.join(map(str, self.config.samples.temperature))}"
    return [sections.Section(title, columns=columns, rows=rows)]
