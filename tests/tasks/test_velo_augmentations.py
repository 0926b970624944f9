"""The augmentations of VeLO's tasks: their order, how often, how strong."""

import functools
import math

import numpy as np
from augmented import assert_mean
from helpers import ERRORS

from l2o.tasks import TaskSpec, velo_augmentations

ORDER = (
    "reparametrize",
    "es_gradient",
    "reduced_batch",
    "reduced_precision",
    "normalized_gradient",
    "random_directions",
    "delayed_gradient",
)


@functools.cache
def _velo_draws():
    rng = np.random.default_rng(0)
    return [velo_augmentations(rng) for _ in range(2000)]


def _options(name):
    return [dict(a.options) for drawn in _velo_draws() for a in drawn if a.name == name]


def _assert_share(count, total, expected):
    error = math.sqrt(expected * (1 - expected) / total)
    assert abs(count / total - expected) < ERRORS * error


def test_velo_augmentations_come_in_order_and_as_often_as_documented():
    for drawn in _velo_draws():
        places = [ORDER.index(a.name) for a in drawn]
        assert places == sorted(set(places))
    shares = (5 / 7, 0.08, 0.2, 0.2, 0.05, 0.08, 0.05)
    for name, share in zip(ORDER, shares):
        _assert_share(len(_options(name)), 2000, share)


def test_velo_augmentations_have_the_documented_strengths():
    scales = _options("reparametrize")
    for level, share in {"global": 0.4, "tensor": 0.4, "parameter": 0.2}.items():
        found = sum(x["level"] == level for x in scales)
        _assert_share(found, len(scales), share)
    for scale_range in ((1e-3, 1e3), (1e-2, 1e2), (0.1, 10.0)):
        found = sum(x["scale_range"] == scale_range for x in scales)
        _assert_share(found, len(scales), 1 / 3)
    assert {x["pairs"] for x in _options("es_gradient")} == {1, 2, 4, 8, 16}
    assert {x["std"] for x in _options("es_gradient")} == {(1e-3, 0.1)}
    fractions = np.array([x["fraction"] for x in _options("reduced_batch")])
    assert fractions.min() >= 0.01 and fractions.max() <= 1
    assert_mean(fractions, 0.505)
    counts = np.array([x["count"] for x in _options("random_directions")])
    assert counts.min() >= 1 and counts.max() < 1024
    _assert_share(np.sum(counts < 32), len(counts), 1 / 2)
    signs = [x["sign"] for x in _options("random_directions")]
    _assert_share(sum(signs), len(signs), 1 / 2)
    delays = np.array([x["delay"] for x in _options("delayed_gradient")])
    assert set(delays) <= set(range(1, 7))
    _assert_share(np.sum(delays == 1), len(delays), math.log(3, 8))


def test_velo_augmentations_are_recipes_that_repeat():
    again = np.random.default_rng(0)
    assert [velo_augmentations(again) for _ in range(20)] == _velo_draws()[:20]
    rng = np.random.default_rng(0)
    for drawn in _velo_draws()[:20]:
        spec = TaskSpec("quadratic", {"dim": 3}, drawn)
        assert TaskSpec.from_json(spec.to_json()) == spec
        kept = tuple(a for a in drawn if a.name != "reduced_batch")
        assert velo_augmentations(rng, smaller_batches=False) == kept
