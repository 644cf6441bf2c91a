"""Speech: 16 kHz audio -> 250 codes of 512 per second -> WaveNet decoder, conditioned on the speaker; WaveNet prior.

Source: arXiv 1711.00937, section 4.3 (VCTK, LibriSpeech), with telephone prompts of four professional speakers in place
of VCTK.

  python train_main.py --config=tfvq/configs/speech.py:small --workdir=runs/speech

`small` (default) is for two cores: a log-mel encoder, two codes every 8 ms, a decoder with eight sub-bands. `paper` is
the system of the paper: the encoder's input is the raw waveform, the WaveNet generates 16 kHz audio without sub-bands,
and the data are VCTK; it needs an accelerator. Both have a bit rate of 2.25 kbit/s. The paper reports no metrics of
quality; docs/RESULTS.md has those of `small`. Other data: --config.data.source=fillets|festvox_ru|espeak|tfds|folder.
For codes that carry less of the voice, for speaker conversion: --config.autoencoder.voice_perturbation=0.25
--config.autoencoder.latents_per_position=1. For another sample rate, 8 to 48 kHz: --config.data.sample_rate_hz=48000;
strides and crops are in samples, so that frames of 8 ms then need --config.autoencoder.strides="(2,2,2,2,2,2,2,3)", and
crops of the same duration --config.data.crop_samples=12288.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.speech:SpeechTask")
  config.data = common.speech_data(source="asterisk")
  config.autoencoder = common.speech_autoencoder(
    encoder="log_mel",
    strides=(2,) * 7,
    latents_per_position=2,
    encoder_units=128,
    encoder_dilations=(1, 2),
    condition_dilations=(1, 2),
  )
  config.autoencoder.quantizer.update({"decay": 0.98, "revival_threshold": 0.2})
  config.autoencoder.decoder = common.audio_wavenet(
    num_bands=8, channels=96, num_stacks=2, layers_per_stack=7, hidden_units=32
  )
  config.prior = common.wavenet(channels=64, num_stacks=2, layers_per_stack=6, hidden_units=256)
  config.prior.window_frames = 250
  # Encoder, quantiser and conditioner are first trained to predict spectrograms, and the first steps are unquantised.
  config.train.unquantized = common.training(
    steps=200, batch_size=16, learning_rate=4e-3, optimizer="muon", adam_lr_ratio=0.3
  )
  config.train.spectral = common.training(
    steps=10_000, batch_size=16, learning_rate=4e-3, optimizer="muon", adam_lr_ratio=0.3
  )
  config.train.autoencoder = common.training(
    steps=10_000, batch_size=4, learning_rate=4e-3, optimizer="muon", adam_lr_ratio=0.3
  )
  config.train.prior = common.training(steps=2000, batch_size=16, learning_rate=1e-2, optimizer="muon")
  config.pruning = common.pruning()
  config.train.prune = common.training(
    steps=3000, batch_size=4, learning_rate=2e-3, optimizer="pruning_muon", beta_2=0.99
  )
  config.samples = ConfigDict(
    {
      "num": 4,
      "temperature": (0.4, 0.4, 0.7, 0.7, 0.8, 0.8, 0.8, 0.8),  # of the decoder: one for each band, or one for all
      "prior_temperature": 1.0,
    }
  )
  return config


def paper():
  config = small()
  config.data = common.speech_data(source="tfds", name="vctk")
  config.autoencoder = common.speech_autoencoder(encoder="waveform", encoder_units=768, mel_weight=0.0)
  config.autoencoder.decoder = common.audio_wavenet(channels=256, num_stacks=3, layers_per_stack=10)
  config.prior = common.wavenet(channels=256, num_stacks=2, layers_per_stack=8, hidden_units=512)
  config.prior.window_frames = 500
  config.train.autoencoder = common.training(
    steps=500_000, batch_size=64, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  del config.train.unquantized, config.train.spectral
  config.train.prior = common.training(steps=250_000, batch_size=64, learning_rate=4e-4)
  config.samples.temperature = (1.0,)
  return config
