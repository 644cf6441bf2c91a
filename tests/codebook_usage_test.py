import keras
import numpy as np
import pytest

from tfvq.layers import CodebookUsage, VectorQuantizer


@pytest.mark.parametrize("names", [(None, None), ("top", "bottom"), ("top", None)])
def test_quantizers_of_one_model_have_metrics_of_their_own(names, rng):
  quantizers = [VectorQuantizer(8, 4, **({"name": name} if name else {})) for name in names]
  model = keras.Sequential([keras.Input((4,)), *quantizers])
  model.compile("adam", "mse")
  x = rng.normal(size=(32, 4)).astype(np.float32)
  figures = model.fit(x, x, verbose=0).history
  for quantizer in quantizers:
    assert f"{quantizer.name}_perplexity" in figures


def test_a_single_quantizer_reports_perplexity_whatever_number_keras_gives_it(rng):
  VectorQuantizer(8, 4)
  model = keras.Sequential([keras.Input((4,)), VectorQuantizer(8, 4)])
  model.compile("adam", "mse")
  x = rng.normal(size=(32, 4)).astype(np.float32)
  assert {"perplexity", "codebook_usage", "nonfinite_vectors"} <= model.fit(x, x, verbose=0).history.keys()


def test_validation_has_a_perplexity_of_its_own():
  model = keras.Sequential([keras.Input((2,)), VectorQuantizer(16, 2, decay=0.9)])
  model.compile("adam", "mse")
  x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
  one_code = np.repeat(x[:1], 50, axis=0)
  history = model.fit(x, x, epochs=2, validation_data=(one_code, one_code), verbose=0).history
  np.testing.assert_allclose(history["val_perplexity"], 1, rtol=1e-6)
  assert min(history["perplexity"]) > 5
  assert model.evaluate(one_code, one_code, verbose=0, return_dict=True)["perplexity"] == pytest.approx(1)


def test_perplexity_is_that_of_the_window_whatever_the_batch_size(rng):
  codes = np.concatenate([rng.integers(0, 2, 1000), rng.integers(0, 8, 2000)])
  results = []
  for batch_size in (1, 8, 250):
    usage = CodebookUsage(8, window=500)
    for start in range(0, len(codes), batch_size):
      usage.update_state(np.bincount(codes[start : start + batch_size], minlength=8).astype(np.float32))
    results.append(float(usage.result()["perplexity"]))
    assert usage.result()["codebook_usage"] == 1
  np.testing.assert_allclose(results, 8, rtol=0.02)
  np.testing.assert_allclose(results, results[0], rtol=0.005)


def test_perplexity_by_hand():
  usage = CodebookUsage(4)
  assert usage.result()["perplexity"] == 0
  usage.update_state([3.0, 3.0, 0.0, 0.0])
  np.testing.assert_allclose(usage.result()["perplexity"], 2, rtol=1e-6)
  usage.update_state([0.0, 0.0, 3.0, 3.0])
  np.testing.assert_allclose(usage.result()["perplexity"], 4, rtol=1e-6)
  usage.reset_state()
  assert usage.result()["perplexity"] == 0
