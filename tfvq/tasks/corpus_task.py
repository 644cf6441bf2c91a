"""The base class of systems of audio, which have a corpus of recordings."""

import functools

from tfvq import models
from tfvq.configs.common import CORPUS_RULES
from tfvq.configs.rules import Rules, require
from tfvq.data.audio_files import AudioReader
from tfvq.data.speech_corpus import SPLITS, SpeechCorpus
from tfvq.data.speech_preparation import prepare_corpus
from tfvq.data.speech_sources import SOURCES, find_recordings
from tfvq.errors import UserError
from tfvq.evaluation.sections import Player, player
from tfvq.layers import AudioValues, CategoricalHead, LogisticMixtureHead
from tfvq.tasks.prior_task import PriorTask


class CorpusTask(PriorTask):
  """A task whose data are recordings; the config's `data` is `tfvq.configs.common.speech_data`."""

  rules = CORPUS_RULES | Rules(choices={"data.source": tuple(sorted(SOURCES))})

  @classmethod
  def validate(cls, config):
    require(config, "data.source", "data.sample_rate_hz")
    super().validate(config)

  @functools.cached_property
  def corpus(self) -> SpeechCorpus:
    """The prepared corpus.

    Raises:
      UserError: There is none, it is damaged, or it has another sample rate than the config.
    """
    corpus, wanted = SpeechCorpus(self.data_folder), self.config.data.sample_rate_hz
    if corpus.sample_rate_hz != wanted:
      raise UserError(
        f"{self.data_folder} contains audio of {corpus.sample_rate_hz} Hz, but config.data.sample_rate_hz is {wanted}: "
        f"change it to {corpus.sample_rate_hz}, or delete {self.data_folder} and run the stage `data` again."
      )
    return corpus

  def prepare_data(self):
    data = self.config.data
    prepare_corpus(self.data_folder, find_recordings(data), data.sample_rate_hz)
    return {"speakers": self.corpus.speakers, "seconds_of": {split: self.corpus.seconds(split) for split in SPLITS}}

  @property
  def num_speakers(self) -> int:
    """Number of speakers of the corpus."""
    return len(self.corpus.speakers)

  def player(self, path) -> Player:
    """A player of a WAV file that `write_samples` wrote."""
    rate_hz = self.corpus.sample_rate_hz
    return player(AudioReader(path, rate_hz).read(), rate_hz)

  def adapt_levels(self, audio_values: AudioValues) -> None:
    """Sets the levels of the bands from ten minutes of audio, spread over the training data."""
    crop_samples = self.corpus.sample_rate_hz // audio_values.num_bands * audio_values.num_bands
    audio_values.adapt(next(iter(self.corpus.train(600, crop_samples, self.config.seed)))["audio"])


def check_temperature(config, num_bands: int) -> None:
  """Checks that the temperature of sub-bands is one value, or one for each.

  Raises:
    UserError: It is not.
  """
  if len(config.samples.temperature) not in (1, num_bands):
    raise UserError(
      f"config.samples.temperature has {len(config.samples.temperature)} values; give one, or one for each of the "
      f"{num_bands} bands."
    )


def build_wavenet(config, num_values: int, num_variables: int, **arguments) -> models.WaveNet:
  """The WaveNet that `tfvq.configs.common.wavenet` settings describe.

  Args:
    config: The settings.
    num_values: K, number of values of each variable.
    num_variables: G, number of variables per step.
    **arguments: Sizes of the conditions, and other arguments of `WaveNet`.
  """
  if config.distribution == "logistic_mixture":
    head = LogisticMixtureHead(num_values, num_variables, hidden_units=config.hidden_units)
  else:
    head = CategoricalHead(num_values, num_variables, config.hidden_units)
  dilation_rates = [2**layer for layer in range(config.layers_per_stack)] * config.num_stacks
  return models.WaveNet(head, config.channels, dilation_rates, **arguments)
