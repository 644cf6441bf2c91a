import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from tests.audio_cases import REFUSED, VALID, encoded, long_wav, mp3_frame_positions, noise, pcm, wav
from tests.sound import tone
from tfvq.data.audio_files import AudioReader
from tfvq.errors import UserError


@pytest.mark.parametrize("name", VALID)
def test_reader_accepts_unusual_valid_file(name):
  audio = AudioReader(io.BytesIO(VALID[name])).read()
  # mu-law, A-law, ADPCM and MP3 are lossy. ADPCM pads its last block, and needs some samples to adapt.
  coarse, adpcm = any(kind in name for kind in ("law", "adpcm", "mp3")), "adpcm" in name
  assert len(audio) == 8000 or adpcm
  np.testing.assert_allclose(audio[20 * adpcm : 8000], tone(0.5)[20 * adpcm :], atol=0.02 if coarse else 1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_reader_rejects_invalid_file_with_reason(name):
  content, reason = REFUSED[name]
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match=f"^standard input .*{reason}"):
      AudioReader(io.BytesIO(content)).read()
    assert tracemalloc.get_traced_memory()[1] < 20e6  # whatever length a file claims
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(("name", "size"), [("RIFF", 2_362_232_000), ("RIFF", 4_187_593_000), ("RF64", 5_000_000_000)])
def test_reader_reads_files_beyond_2_and_4_gib(name, size, tmp_path):
  path, samples = tmp_path / "a.wav", pcm(tone(1.0))
  head = wav(b"", data_size=size) if name == "RIFF" else long_wav(b"", size, b"RF64")
  with path.open("wb") as file:  # sparse: only the last second is stored on disk
    file.write(head)
    file.seek(len(head) + size - len(samples))
    file.write(samples)
  reader = AudioReader(path)
  assert reader.num_samples == size // 2
  np.testing.assert_allclose(reader.read(size // 2 - 16_000), tone(1.0), atol=1e-4)
  assert not reader.read(0, 1000).any()


@pytest.mark.parametrize("settings", [{}, {"bitrate_mode": "VARIABLE", "compression_level": 0.5}])
@pytest.mark.parametrize("at_frames", [True, False])
@pytest.mark.parametrize(("rate_hz", "samples_per_frame"), [(16_000, 576), (44_100, 1152)])
def test_segment_of_mp3_file_decodes_as_in_whole_file(settings, at_frames, rate_hz, samples_per_frame):
  mp3 = encoded(noise(3 * rate_hz), rate_hz, format="MP3", **settings)
  positions = mp3_frame_positions(mp3)
  start, stop = (positions[10], positions[50]) if at_frames else (positions[9] + 7, positions[50] + 9)
  whole = soundfile.read(io.BytesIO(mp3), dtype="float32")[0].mean(axis=1)
  decoder = AudioReader(io.BytesIO(mp3[start:stop]))._decoder
  segment = decoder.read(0, decoder.num_frames).mean(axis=1)
  # The first frames depend on the frames before them. Decoders remove their own delay of 529 samples.
  assert len(segment) == 40 * samples_per_frame - 529
  middle = segment[8 * samples_per_frame : 32 * samples_per_frame]
  products = np.correlate(whole, middle, "valid")
  place = int(products.argmax())
  np.testing.assert_allclose(middle, whole[place : place + len(middle)], atol=1e-5)
