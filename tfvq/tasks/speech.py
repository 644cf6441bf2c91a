"""Speech: waveform -> codes -> waveform by a WaveNet conditioned on the speaker; a WaveNet prior over the codes."""

import collections
import functools

import numpy as np
import tensorflow as tf
import tqdm

from tfvq import models
from tfvq.configs.common import SPEECH_RULES
from tfvq.configs.rules import require
from tfvq.data.audio_files import write_wav
from tfvq.data.speech_corpus import SPLITS
from tfvq.endpoints.prior import wavenet_prior_endpoint
from tfvq.endpoints.speech import codec_facts, speech_endpoints
from tfvq.endpoints.speech_signatures import speech_signatures
from tfvq.errors import UserError
from tfvq.evaluation import sections
from tfvq.evaluation.metrics import CODE_METRICS, Metric, bits_per_value, code_statistics
from tfvq.evaluation.speech_metrics import likelihoods, nats_per_sample
from tfvq.files import read_json, sha256
from tfvq.layers import AudioValues, build_quantizer
from tfvq.models.speech_codec import SpeechCodec
from tfvq.tasks.autoencoder_task import check_quantizer
from tfvq.tasks.corpus_task import CorpusTask, build_wavenet, check_temperature
from tfvq.tasks.prunable_task import PRUNING_METRICS, PrunableTask


class SpeechTask(CorpusTask, PrunableTask):
  """Speech systems; the config has `data`, `autoencoder` and `prior`."""

  rules = SPEECH_RULES | CorpusTask.rules
  metrics = (
    *CODE_METRICS,
    Metric("kilobits_per_second", "bit rate", "kbit/s"),
    Metric("nats_per_sample", "nats per sample, given the codes"),
    Metric("gain_nats", "... increase without codes"),
    Metric("gain_over_shuffled_nats", "... increase with shuffled codes"),
    Metric("gain_of_speaker_nats", "... increase with another speaker"),
    *PRUNING_METRICS,
  )

  @classmethod
  def validate(cls, config):
    require(config, "autoencoder.decoder", "prior.window_frames", "train.autoencoder", "train.prior")
    require(config, "samples")
    super().validate(config)
    check_quantizer(config.autoencoder)
    if "spectral" in config.train:
      require(config, "train.unquantized")
    if "prune" in config.train:
      require(config, "pruning")
      if config.train.prune.optimizer == "muon":
        raise UserError("config.train.prune.optimizer is muon, which cannot prune; choose adam or pruning_muon.")
    hop_samples = int(np.prod(config.autoencoder.strides))
    if config.data.crop_samples % hop_samples:
      raise UserError(
        f"config.data.crop_samples is {config.data.crop_samples}; it must be a multiple of the {hop_samples} samples "
        "per frame, which are the product of config.autoencoder.strides."
      )
    num_bands = config.autoencoder.decoder.num_bands
    if hop_samples % num_bands:
      raise UserError(
        f"config.autoencoder.decoder.num_bands is {num_bands}; it must divide the {hop_samples} samples per frame, "
        "which are the product of config.autoencoder.strides."
      )
    if config.autoencoder.voice_perturbation and config.autoencoder.encoder != "log_mel":
      raise UserError(
        f"config.autoencoder.voice_perturbation changes spectra, and config.autoencoder.encoder is "
        f"{config.autoencoder.encoder}; choose the encoder log_mel, or set the perturbation to 0."
      )
    check_temperature(config, num_bands)

  @property
  def hop_samples(self) -> int:
    """Samples per frame."""
    return int(np.prod(self.config.autoencoder.strides))

  @property
  def _num_latents(self):
    """Codes of a frame."""
    _, *frame_shape = self.manifest["features"]["codes"]["shape"]
    return int(np.prod(frame_shape))

  def prepare_data(self):
    facts = super().prepare_data()
    window = self.config.prior.window_frames
    for split in SPLITS:
      if not self._has_window(split, window):
        raise UserError(
          f"No speaker has {window} frames in the split {split!r}: lower config.prior.window_frames, or give more data."
        )
    return facts

  def _has_window(self, split, window):
    """Whether the recordings of some speaker have enough frames for a window of the prior."""
    frames = collections.Counter()
    for clip in self.corpus.clips(split):
      frames[clip.speaker] += -(-len(clip.audio) // self.hop_samples)
      if frames[clip.speaker] >= window:
        return True
    return False

  def build_autoencoder(self):
    model = build_speech_vqvae(self.config.autoencoder, self.num_speakers, self.config.seed, self.corpus.sample_rate_hz)
    if "spectral" in self.config.train:
      self.freeze_codes(model)
    return model

  def autoencoder_batches(self, model, batch_size, step):
    # The frames of the margins are only context.
    crop_samples = self.config.data.crop_samples + 2 * model.margin_frames * self.hop_samples
    # The seed depends on the step, so that a resumed run continues with other crops.
    return self.corpus.train(batch_size, crop_samples, self.config.seed + step)

  def prepare_autoencoder(self, model, train_part):
    """Trains all parts but the decoder to predict spectrograms, and then freezes the codes, if the config says so.

    In its first thousands of steps, the gradients of a WaveNet would make the codes worse.
    """
    self.adapt_levels(model.decoder.audio_values)
    if "spectral" in self.config.train:
      self.freeze_codes(model, False)
      train_part("spectral", model.spectral, self.config.train.spectral, self._prepare_spectral)
      self.freeze_codes(model)
    else:
      model.quantizer.adapt(model.encoder(self._codebook_audio()))

  def _prepare_spectral(self, model, train_part):
    """Trains some steps without the quantiser, because a codebook fitted to an untrained encoder collapses."""
    model.quantizing = False
    train_part("unquantized", model, self.config.train.unquantized)
    model.quantizing = True
    model.quantizer.adapt(model.encoder(self._codebook_audio()))

  def _codebook_audio(self):
    """Audio that the codebook is fitted to, float [B, T]."""
    return next(iter(self.corpus.train(128, 16 * self.hop_samples, self.config.seed)))["audio"]

  def freeze_codes(self, model, frozen=True):
    model.encoder.trainable = model.quantizer.trainable = not frozen

  def loss_nats(self, model):
    return nats_per_sample(model, self.corpus.clips("held_out"))

  @functools.cached_property
  def codec(self) -> SpeechCodec:
    """The codec of the trained autoencoder."""
    return SpeechCodec(self.autoencoder, self.corpus.speakers, self.config.samples.temperature)

  def encode_splits(self):
    splits = {}
    for split in SPLITS:
      codes = {speaker: [] for speaker in range(self.num_speakers)}
      for clip in tqdm.tqdm(self.corpus.clips(split), desc=f"codes {split}", unit="clip", dynamic_ncols=True):
        codes[clip.speaker].append(self.codec.encode(clip.audio))
      window = self.config.prior.window_frames
      windows = {speaker: _windows(np.concatenate(parts), window) for speaker, parts in codes.items() if parts}
      speakers = [np.full(len(windows[speaker]), speaker, np.int32) for speaker in windows]
      splits[split] = {"codes": np.concatenate(list(windows.values())), "speaker": np.concatenate(speakers)}
    return splits, {"codes": self.autoencoder.quantizer.num_values, "speaker": self.num_speakers}

  def build_prior(self):
    sizes = self.num_code_values, self._num_latents
    return build_wavenet(self.config.prior, *sizes, ordinal=False, num_speakers=self.num_speakers)

  def prior_batches(self, batch_size, step):
    return self.codes.train(batch_size, self.config.seed, step).map(self._prior_inputs)

  def _prior_inputs(self, batch):
    codes = tf.reshape(batch["codes"], [*tf.unstack(tf.shape(batch["codes"])[:2]), self._num_latents])
    return ((codes, {"speaker": batch["speaker"]}),)

  def write_samples(self, folder):
    """Writes samples from the prior, and held-out recordings with reconstructions in their own and in other voices."""
    rate_hz = self.corpus.sample_rate_hz
    for name, sound in self._prior_samples().items():
      write_wav(folder / f"prior-{name}.wav", [sound], rate_hz)
    clips = self._shown_clips()
    num_samples = max(len(clip.audio) for clip in clips)
    audio = np.stack([np.pad(clip.audio, [0, num_samples - len(clip.audio)]) for clip in clips])
    codes = self.codec.encode(audio)
    speakers = np.array([clip.speaker for clip in clips])
    others = (speakers + 1) % self.num_speakers
    voices = np.concatenate([speakers, others])
    spoken = self.codec.decode(np.concatenate([codes, codes]), voices, self.config.seed)
    for index, clip in enumerate(clips):
      length = len(clip.audio)
      write_wav(folder / f"{index:02d}-original.wav", [clip.audio], rate_hz)
      write_wav(folder / f"{index:02d}-reconstruction.wav", [spoken[index, :length]], rate_hz)
      write_wav(folder / f"{index:02d}-conversion.wav", [spoken[len(clips) + index, :length]], rate_hz)

  def _prior_samples(self):
    """Samples of speech by name, for each speaker in turn."""
    num = self.config.samples.num
    speakers = np.arange(num, dtype=np.int32) % self.num_speakers
    noise_shape = models.noise_shape(self.prior, num, self.config.prior.window_frames)
    sample = tf.function(models.sample, jit_compile=True)
    noise = models.gumbel_noise(self.config.seed, noise_shape, part=-1)  # the decoder's parts count from 0
    condition = {"speaker": tf.constant(speakers)}
    codes = sample(self.prior, noise, condition, self.config.samples.prior_temperature).numpy()
    codes = codes.reshape(*codes.shape[:2], *self.autoencoder.frame_shape)
    audio = self.codec.decode(codes, speakers, self.config.seed)
    names = [f"{index:02d}-{self.corpus.speakers[speaker]}" for index, speaker in enumerate(speakers)]
    return dict(zip(names, audio, strict=True))

  def _shown_clips(self):
    return self.corpus.clips_of_length("held_out", 3, self.config.samples.num)

  def measure(self, split):
    clips = self.corpus.clips(split)
    measured = likelihoods(self.autoencoder, clips, self.num_speakers)
    measured |= code_statistics(self.codes.splits[split]["codes"], self.num_code_values)
    batches = self.codes.batches(split, self.config.train.prior.batch_size)
    measured["prior_bits_per_code"] = bits_per_value(self.prior, map(self._prior_inputs, batches))
    measured["kilobits_per_second"] = self._kilobits_per_second()
    return measured

  def report_sections(self):
    folder = self.workdir.folder("samples")
    spoken = []
    for index, clip in enumerate(self._shown_clips()):
      speaker, other = (self.corpus.speakers[(clip.speaker + shift) % self.num_speakers] for shift in (0, 1))
      kinds = ("original", "reconstruction", "conversion")
      sounds = [self.player(folder / f"{index:02d}-{kind}.wav") for kind in kinds]
      spoken.append([f"{clip.name}, {speaker}", *sounds[:2], other, sounds[2]])
    samples = [[path.stem.removeprefix("prior-"), self.player(path)] for path in sorted(folder.glob("prior-*.wav"))]
    quality = self.workdir.path / "quality.json"
    tables = read_json(quality)["tables"] if quality.exists() else [_not_measured(self.workdir.path)]
    columns = ["held-out recording", "original", "from its codes", "another voice", "in that voice"]
    return [
      sections.Section("Reconstructions", columns=columns, rows=spoken),
      *(sections.Section(**table) for table in tables),
      sections.Section(
        f"Samples from the prior, temperature {self.config.samples.prior_temperature}; the decoder's: "
        f"{', '.join(map(str, self.config.samples.temperature))}",
        columns=["sample, speaker", "sound"],
        rows=samples,
      ),
      sections.usage_section(self.codes.splits["held_out"]["codes"], self.num_code_values),
    ]

  def _kilobits_per_second(self):
    vectors_per_second = self.config.autoencoder.latents_per_position * self.corpus.sample_rate_hz / self.hop_samples
    return float(vectors_per_second * self.autoencoder.quantizer.bits / 1000)

  def device_endpoints(self):
    return speech_endpoints(self.autoencoder, self.corpus)

  def server_endpoints(self):
    return [wavenet_prior_endpoint(self.prior, self.codes)]

  def signatures(self):
    return speech_signatures(self.autoencoder, self.prior, self.corpus, self.config.samples.temperature)

  def export_facts(self):
    model = self.autoencoder
    codes_per_second = model.sample_rate_hz / model.hop_samples * int(np.prod(model.frame_shape))
    return {
      "num_values": model.quantizer.num_values,
      "autoencoder_sha256": sha256(self.exported_path),
      "sample_rate_hz": model.sample_rate_hz,
      "hop_samples": model.hop_samples,
      "frame_shape": list(model.frame_shape),
      "codes_per_second": codes_per_second,
      "kilobits_per_second": self._kilobits_per_second(),
      "speakers": self.corpus.speakers,
    }

  def codec_facts(self):
    facts = self.export_facts()
    shared = ("autoencoder_sha256", "sample_rate_hz", "hop_samples", "frame_shape", "speakers")
    return {
      "num_values": facts["num_values"],
      **{name: facts[name] for name in shared},
      **codec_facts(self.autoencoder, self.config.samples.temperature),
    }


def build_speech_vqvae(config, num_speakers: int, seed: int = 0, sample_rate_hz: int = 16_000) -> models.SpeechVQVAE:
  """The autoencoder that `tfvq.configs.common.speech_autoencoder` settings describe."""
  latents = {"latents_per_position": config.latents_per_position}
  hop_samples = int(np.prod(config.strides))
  if config.encoder == "waveform":
    encoder = models.waveform_encoder(config.embedding_dim, tuple(config.strides), config.encoder_units, **latents)
  else:
    encoder = models.log_mel_encoder(
      config.embedding_dim,
      hop_samples,
      config.encoder_units,
      dilation_rates=config.encoder_dilations,
      voice_perturbation=config.voice_perturbation,
      sample_rate_hz=sample_rate_hz,
      **latents,
    )
  wavenet = build_wavenet(
    config.decoder,
    config.decoder.num_values,
    config.decoder.num_bands,
    condition_dim=config.condition_dim,
    audio_values=AudioValues(config.decoder.num_bands, config.decoder.num_values),
  )
  conditioner = models.conditioner(
    config.embedding_dim, num_speakers, config.condition_dim, config.condition_dilations, **latents
  )
  return models.SpeechVQVAE(
    encoder,
    build_quantizer(config.quantizer, config.embedding_dim, seed),
    models.WaveNetDecoder(conditioner, wavenet, hop_samples),
    null_rate=config.null_rate,
    mel_weight=config.mel_weight,
    seed=seed,
    sample_rate_hz=sample_rate_hz,
  )


def _not_measured(workdir):
  """The text that replaces tables of metrics in the report if the external programs were not run."""
  commands = (
    f"python -m benchmarks.speech_clips --workdir={workdir} --out=clips",
    f"python benchmarks/speech_quality.py clips --out={workdir}/quality.json    # in an environment of its own",
    f"rm {workdir}/evaluation/done.json    # then the command at the top again",
  )
  return {
    "title": "Quality, speakers and words",
    "columns": ["is measured by"],
    "rows": [[command] for command in commands],
  }


def _windows(codes, length):
  """Codes [F, ...] -> windows [N, length, ...] side by side, the rest dropped."""
  return codes[: len(codes) // length * length].reshape(-1, length, *codes.shape[1:])
