import numpy as np
import pytest

from tfvq.evaluation import metrics


def test_code_statistics_by_hand():
  codes = np.repeat(np.arange(4), 1000).reshape(4, 1000)
  statistics = metrics.code_statistics(codes, 8)
  assert statistics["codes_used_fraction"] == 0.5
  assert statistics["perplexity"] == pytest.approx(4)
  assert statistics["order0_bits_per_code"] == pytest.approx(2)
  assert statistics["uniform_bits_per_code"] == 3
  assert 0 < statistics["xz_bits_per_code"] < 0.5


def test_psnr_by_hand_weighs_all_values_alike_and_rounds():
  batches = [np.full([3, 2], 100, np.uint8), np.full([1, 2], 200, np.uint8)]
  psnr = metrics.psnr_db(batches, lambda x: x.astype(np.float32) + np.where(x > 150, 4.0, 0.4))
  assert psnr == pytest.approx(10 * np.log10(255**2 / (16 * 2 / 8)))
