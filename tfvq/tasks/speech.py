"""Speech: waveform -> codes -> waveform by a WaveNet that is told the speaker, and a WaveNet prior over the codes."""

import collections
import functools

import numpy as np
import tensorflow as tf
import tqdm

from tfvq import models
from tfvq.data.audio_files import SAMPLE_RATE_HZ, AudioReader, write_wav
from tfvq.data.speech_corpus import SPLITS
from tfvq.errors import UserError
from tfvq.evaluation import figures, sections
from tfvq.evaluation.speech_figures import likelihoods, nats_per_sample
from tfvq.files import read_json
from tfvq.layers import AudioValues
from tfvq.models.speech_codec import SpeechCodec
from tfvq.tasks.corpus_task import CorpusTask, build_wavenet
from tfvq.tasks.task import PrunableTask, build_quantizer


class SpeechTask(CorpusTask, PrunableTask):
  """Speech systems; the config has `data`, `autoencoder` and `prior`."""

  stages = ("data", "autoencoder", "codes", "prior", "samples", "evaluation")

  @property
  def hop_samples(self) -> int:
    """Samples per frame."""
    return int(np.prod(self.config.autoencoder.strides))

  @property
  def _num_latents(self):
    return self.config.autoencoder.latents_per_position

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
    """Whether the recordings of one speaker have as many frames as a window of the prior."""
    frames = collections.Counter()
    for clip in self.corpus.clips(split):
      frames[clip.speaker] += -(-len(clip.audio) // self.hop_samples)
      if frames[clip.speaker] >= window:
        return True
    return False

  def build_autoencoder(self):
    model = build_speech_vqvae(self.config.autoencoder, self.num_classes, self.config.seed)
    if "spectral" in self.config.train:
      self.freeze_codes(model)
    return model

  @functools.cached_property
  def _margin_frames(self):
    """Frames at either end of a training clip that are seen and not learned from."""
    return self.build_autoencoder().margin_frames

  def autoencoder_batches(self, batch_size, step):
    # Another seed at another step: a resumed run goes on with other crops.
    crop_samples = self.config.data.crop_samples + 2 * self._margin_frames * self.hop_samples
    return self.corpus.train(batch_size, crop_samples, self.config.seed + step)

  def prepare_autoencoder(self, model, train_part):
    """Trains all but the decoder on the spectra, if the config has settings for it; the decoder then hears fixed codes.

    The gradients of a WaveNet in its first thousands of steps would undo what the spectra taught.
    """
    self.adapt_levels(model.audio_values)
    if "spectral" in self.config.train:
      self.freeze_codes(model, False)
      train_part("spectral", model.spectral, self.config.train.spectral, self._prepare_spectral)
      self.freeze_codes(model)
    else:
      model.quantizer.adapt(model.encoder(self._codebook_audio()))

  def _prepare_spectral(self, model, train_part):
    """Trains without the quantiser for a while: a codebook set to the output of an untrained encoder collapses."""
    model.quantizing = False
    train_part("unquantized", model, self.config.train.unquantized)
    model.quantizing = True
    model.quantizer.adapt(model.encoder(self._codebook_audio()))

  def _codebook_audio(self):
    """Audio whose codes are the first codebook, [B, T]."""
    return next(iter(self.corpus.train(128, 16 * self.hop_samples, self.config.seed)))["audio"]

  def freeze_codes(self, model, frozen=True):
    model.encoder.trainable = model.quantizer.trainable = not frozen

  def with_decoder(self, model, decoder):
    return model.with_decoder(decoder)

  def loss_nats(self, model):
    return nats_per_sample(model, self.corpus.clips("held_out"))

  def encode_splits(self, autoencoder):
    codec = SpeechCodec(autoencoder)
    splits = {}
    for split in SPLITS:
      codes = {speaker: [] for speaker in range(self.num_classes)}
      for clip in tqdm.tqdm(self.corpus.clips(split), desc=f"codes {split}", unit="clip", dynamic_ncols=True):
        codes[clip.speaker].append(codec.encode(clip.audio))
      window = self.config.prior.window_frames
      windows = {speaker: _windows(np.concatenate(parts), window) for speaker, parts in codes.items() if parts}
      labels = [np.full(len(windows[speaker]), speaker, np.int32) for speaker in windows]
      splits[split] = {"codes": np.concatenate(list(windows.values())), "label": np.concatenate(labels)}
    return splits

  def build_prior(self, manifest):
    sizes = manifest["num_embeddings"], self._num_latents
    return build_wavenet(self.config.prior, *sizes, ordinal=False, num_speakers=self.num_classes)

  def prior_batches(self, codes, batch_size, step):
    return codes.train(batch_size, self.config.seed, step).map(self._prior_inputs)

  def _prior_inputs(self, batch):
    codes = tf.reshape(batch["codes"], [*tf.unstack(tf.shape(batch["codes"])[:2]), self._num_latents])
    return ((codes, {"speaker": batch["label"]}),)

  def write_samples(self, run, folder):
    """Writes speech from the prior, held-out recordings, what their codes give, and the same in other voices."""
    codec = SpeechCodec(run.autoencoder)
    temperature = self.config.samples.temperature
    for name, sound in self._prior_samples(run, codec).items():
      write_wav(folder / f"prior-{name}.wav", [sound])
    clips = self._shown_clips()
    num_samples = max(len(clip.audio) for clip in clips)
    audio = np.stack([np.pad(clip.audio, [0, num_samples - len(clip.audio)]) for clip in clips])
    codes = np.stack([codec.encode(sound) for sound in audio])
    speakers = np.array([clip.speaker for clip in clips])
    others = (speakers + 1) % self.num_classes
    voices = np.concatenate([speakers, others])
    spoken = codec.decode(np.concatenate([codes, codes]), voices, self.config.seed, temperature)
    for index, clip in enumerate(clips):
      length = len(clip.audio)
      write_wav(folder / f"{index:02d}-original.wav", [clip.audio])
      write_wav(folder / f"{index:02d}-reconstruction.wav", [spoken[index, :length]])
      write_wav(folder / f"{index:02d}-conversion.wav", [spoken[len(clips) + index, :length]])

  def _prior_samples(self, run, codec):
    """Unconditional speech of each speaker in turn."""
    num = self.config.samples.num
    speakers = np.arange(num, dtype=np.int32) % self.num_classes
    noise_shape = models.noise_shape(run.prior, num, self.config.prior.window_frames)
    sample = tf.function(models.sample, jit_compile=True)
    noise = models.gumbel_noise(self.config.seed, noise_shape, part=-1)  # the decoder's parts count from 0
    condition = {"speaker": tf.constant(speakers)}
    codes = sample(run.prior, noise, condition, self.config.samples.prior_temperature).numpy()
    codes = codes.reshape(*codes.shape[:2], *run.autoencoder.frame_shape)
    audio = codec.decode(codes, speakers, self.config.seed, self.config.samples.temperature)
    names = [f"{index:02d}-{self.corpus.speakers[speaker]}" for index, speaker in enumerate(speakers)]
    return dict(zip(names, audio, strict=True))

  def _shown_clips(self):
    return self.corpus.clips_of_length("held_out", 3, self.config.samples.num)

  def measure(self, run, split):
    clips = self.corpus.clips(split)
    measured = likelihoods(run.autoencoder, clips, self.num_classes)
    measured |= figures.code_statistics(run.codes.splits[split]["codes"], run.manifest["num_embeddings"])
    batches = run.codes.batches(split, self.config.train.prior.batch_size)
    measured["prior_bits_per_code"] = figures.bits_per_value(run.prior, map(self._prior_inputs, batches))
    bits_per_frame = self._num_latents * np.log2(run.manifest["num_embeddings"])
    measured["kilobits_per_second"] = bits_per_frame * SAMPLE_RATE_HZ / self.hop_samples / 1000
    return measured

  def report_sections(self, run):
    folder = run.workdir.folder("samples")
    play = lambda path: sections.player(AudioReader(path).read())
    spoken = []
    for index, clip in enumerate(self._shown_clips()):
      speaker, other = (self.corpus.speakers[(clip.speaker + shift) % self.num_classes] for shift in (0, 1))
      kinds = ("original", "reconstruction", "conversion")
      sounds = [play(folder / f"{index:02d}-{kind}.wav") for kind in kinds]
      spoken.append([f"{clip.name}, {speaker}", *sounds[:2], other, sounds[2]])
    samples = [[path.stem.removeprefix("prior-"), play(path)] for path in sorted(folder.glob("prior-*.wav"))]
    quality = run.workdir.path / "quality.json"
    tables = read_json(quality)["tables"] if quality.exists() else [_not_measured(run.workdir.path)]
    columns = ["recording not trained on", "original", "from its codes", "another voice", "in that voice"]
    return [
      sections.Section("Recordings through their codes", columns=columns, rows=spoken),
      *(sections.Section(**table) for table in tables),
      sections.Section(
        f"Samples from the prior, temperature {self.config.samples.prior_temperature}; the decoder's: "
        f"{', '.join(map(str, self.config.samples.temperature))}",
        columns=["sample, speaker", "sound"],
        rows=samples,
      ),
      sections.usage_section(run.codes.splits["held_out"]["codes"], run.manifest["num_embeddings"]),
    ]


def build_speech_vqvae(config, num_speakers: int, seed: int = 0) -> models.SpeechVQVAE:
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
      **latents,
    )
  return models.SpeechVQVAE(
    encoder,
    build_quantizer(config, seed),
    models.conditioner(config.embedding_dim, num_speakers, config.condition_dim, config.condition_dilations, **latents),
    AudioValues(config.decoder.num_bands, config.decoder.num_values),
    build_wavenet(
      config.decoder, config.decoder.num_values, config.decoder.num_bands, condition_dim=config.condition_dim
    ),
    hop_samples=hop_samples,
    null_rate=config.null_rate,
    mel_weight=config.mel_weight,
    seed=seed,
  )


def _not_measured(workdir):
  """What stands in a report for the table of figures that other programs measure."""
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
