"""The comparison of quantisers: its codes, its metrics, and its resumption."""

import numpy as np
import pytest

from benchmarks import quantisers
from benchmarks.quantiser_data import load
from benchmarks.quantiser_training import NUM_CODES, joint_codes, make_quantizer, relative_error
from benchmarks.quantisers import KINDS, Runs, measure, report

CODED = [name for name in KINDS if name != "none"]


@pytest.mark.parametrize("name", CODED)
def test_joint_codes_identify_all_codes(name):
  quantizer = make_quantizer(KINDS[name], num_steps=10, seed=0)
  sizes = np.broadcast_to(quantizer.num_values, quantizer.code_shape or (1,))
  every = np.stack(np.unravel_index(np.arange(NUM_CODES), sizes), axis=-1)
  vectors = quantizer.decode(every if quantizer.code_shape else every[:, 0])
  codes = joint_codes(quantizer, vectors)
  # A sum of two levels may be nearer to another first level, so the codes of its vector may differ.
  expected = quantizer.encode(vectors).numpy().reshape([NUM_CODES, -1])
  np.testing.assert_array_equal(np.stack(np.unravel_index(codes, sizes), axis=-1), expected)
  assert codes.dtype == np.uint8


@pytest.mark.parametrize("name", CODED)
def test_changed_settings_have_the_same_bits(name):
  for change in quantisers.CHANGES[name]:
    quantizer = make_quantizer({**KINDS[name], **change}, num_steps=10, seed=0)
    assert quantizer.bits == 8


def test_error_is_relative_to_that_of_the_mean(rng):
  examples = rng.normal(2.0, 3.0, size=(300, 5)).astype(np.float32)
  assert relative_error(lambda x: np.zeros_like(x), examples) == pytest.approx(1)
  assert relative_error(lambda x: x / 2, examples) == pytest.approx(0.25)


@pytest.mark.parametrize(("data", "shape"), [("frames", (8, 8, 3)), ("speech", (16, 4))])
def test_comparison_is_resumed(data, shape, tmp_path, rng, monkeypatch, capsys):
  splits = {split: rng.normal(5, 2, size=(64, *shape)) for split in ("train", "validation", "held_out")}
  (tmp_path / "data").mkdir()
  np.savez(tmp_path / "data" / f"{data}.npz", **splits)
  monkeypatch.setattr(quantisers, "TUNED_GAIN", -10.0)  # the change gets a row, whatever its error
  kinds = {"none": None, "finite scalar": KINDS["finite scalar"]}
  monkeypatch.setattr(quantisers, "CHANGES", {"finite scalar": [{"levels": (16, 16)}]})

  def tables(load):
    return measure(Runs(tmp_path, data, load, steps=3, prior_steps=2), kinds, [1e-3], 1, with_changes=True)

  rows, changed = tables(lambda: load(data, tmp_path / "data"))
  assert [change for change, _ in changed["finite scalar"]] == [{"levels": (16, 16)}]
  assert list(rows) == [*kinds, "finite scalar: levels=(16, 16)"]
  _, (figures,) = rows["finite scalar"]
  assert 0 < figures["use"] <= 1 <= figures["perplexity"] <= NUM_CODES and 0 < figures["bits"] < 20
  report(data, rows, changed)
  assert f"| {figures['held_out_error']:.4f} | {figures['use']:.2f} |" in capsys.readouterr().out

  assert tables(lambda: pytest.fail("something was trained again")) == (rows, changed)
