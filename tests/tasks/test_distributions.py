"""Specs that are sampled: by their key, within their ranges and a budget."""

import math

import numpy as np
import pytest
from helpers import KEY, KEYS

from l2o import tasks
from l2o.tasks import DISTRIBUTIONS, TaskSpec, _distributions, sample_spec
from l2o.tasks._distributions import log_int


def test_log_int_never_draws_its_upper_end():
    rng = np.random.default_rng(0)
    drawn = np.array([log_int(rng, 2, 8) for _ in range(4000)])
    assert set(drawn) == set(range(2, 8))
    # Log-uniform: as many below 4 as above.
    assert abs(np.mean(drawn < 4) - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_sampled_specs_are_decided_by_their_key_and_within_their_ranges():
    kinds = ["image_mlp", "image_autoencoder", "table", "coordinates"]
    drawn = [sample_spec(key, kinds, augment=True) for key in KEYS[:60]]
    assert drawn == [sample_spec(key, kinds, augment=True) for key in KEYS[:60]]
    assert len({spec.digest() for spec in drawn}) > 50
    mlps = [s for s in drawn if s.options.get("model") == "mlp" and "data" in s.options]
    assert len(mlps) > 5
    for spec in mlps:
        hidden = spec.options["options"]["hidden"]
        assert len(hidden) <= 4 and all(8 <= width < 128 for width in hidden)
        assert 4 <= spec.options["data"]["size"] < 32
        assert 4 <= spec.options["batch_size"] < 512
    assert any(spec.augmentations for spec in drawn)
    for spec in drawn:
        assert TaskSpec.from_json(spec.to_json()) == spec


def test_a_budget_is_respected_or_said_to_be_too_small():
    accept = tasks.within(parameters=600)
    for key in KEYS[:5]:
        spec = sample_spec(key, ["table"], accept=accept)
        assert tasks.parameter_count(spec.family()) <= 600
    with pytest.raises(ValueError, match=r"none of 512 draws of table was accepted"):
        sample_spec(KEY, ["table"], accept=lambda spec: False)
    with pytest.raises(ValueError, match="unknown distribution 'mlps'; known: image_"):
        sample_spec(KEY, ["mlps"])


def test_velo_mixture_draws_a_step_time_and_keeps_to_it(monkeypatch):
    drawn = []

    def sample_spec(key, kinds, *, augment, accept):
        drawn.append((accept, kinds))

    monkeypatch.setattr(_distributions, "within", lambda seconds: seconds)
    monkeypatch.setattr(_distributions, "sample_spec", sample_spec)
    for key in KEYS[:300]:
        tasks.velo_mixture(key, slower=10.0)
    budgets = [seconds for seconds, _ in drawn]
    shares = np.array([budgets.count(10 * s) for s in (2e-5, 1e-4, 4e-4, 1e-3)]) / 300
    weights = np.array([0.65, 0.3, 0.1, 0.05]) / 1.1
    assert np.all(abs(shares - weights) < 4 * np.sqrt(weights * (1 - weights) / 300))
    for seconds, kinds in drawn:
        assert len(kinds) == (9 if seconds > 1.1e-3 else 5)
        assert set(kinds) <= set(DISTRIBUTIONS)
    with pytest.raises(ValueError, match="phases 1 and 2, not 3"):
        tasks.velo_mixture(KEY, 3)


def test_batches_of_texts_fit_their_splits(monkeypatch):
    class Large(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            # No word pieces, and else the end of every range.
            return 0.9 if (low, high) == (0.0, 1.0) else high - 1e-6

    spec = _distributions.rnn_lm(Large(np.random.PCG64(0)))
    assert spec.options["length"] == 511
    smallest = min(len(s["y"]) for s in tasks.load_dataset("python_code", length=511))
    assert spec.options["batch_size"] == smallest < 511
