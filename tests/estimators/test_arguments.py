"""Arguments that make no estimator are refused by name."""

import closed_forms as cf
import jax
import pytest
from every_estimator import THETA

from l2o import meta_train as mt
from l2o.meta_train import Objective, constant, learn_optimizer


def test_a_range_of_rates_is_positive():
    with pytest.raises(ValueError, match="rate_range must be 0 < low <= high"):
        learn_optimizer(cf.sgd(), cf.parabola(), (0.0, 1.0))


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"particles": 0}, "particles >= [12]"),
        ({"truncation": 0}, "truncation >= 1"),
        ({"std": 0.0}, "std must be positive"),
        ({"std": float("nan")}, "std must be positive"),
        ({"max_offset": -1}, "max_offset >= 0"),
        ({"sign": -1.0}, "sign must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"levels": -1}, "levels of checkpointing must be >= 0"),
        ({"objective": Objective(over="min")}, "use an estimator of full unrolls"),
        ({"objective": Objective(over="best")}, "unknown Objective.over 'best'; known"),
        ({"objective": Objective("valid")}, "unknown split 'valid'; known: train"),
        ({"objective": Objective(samples=3)}, "needs a split"),
        ({"objective": Objective("train", samples=0)}, "samples must be >= 1"),
        ({"objective": Objective(metric="f1")}, "no metric 'f1'.*known: split, twice"),
        ({"carry": "minus"}, "unknown carry 'minus'; known: perturbed"),
        ({"period": 3}, r"period \(3\) must be a multiple of truncation \(2\)"),
    ],
)
def test_bad_arguments(bad, match):
    tried = 0
    for make in (
        mt.pes, mt.nres, mt.gpes, mt.truncated_es, mt.full_es, mt.backprop,
        mt.truncated_backprop, mt.forward_gradient, mt.inverse_variance,
    ):  # fmt: skip
        known = make.__kwdefaults__ or {}
        takes = {*known, "period"} if make is mt.gpes else set(known)
        full = make in (mt.full_es, mt.backprop)
        objective = bad.get("objective", Objective())
        if not set(bad) <= takes or (full and objective.over == "min"):
            continue
        given = {"truncation": 2, "period": 2}
        given = {k: v for k, v in given.items() if k in takes}
        tried += 1
        with pytest.raises(ValueError, match=match):
            estimator = make(cf.problem(), constant(4), **{**given, **bad})
            state = estimator.init(jax.random.key(0), THETA)
            estimator.estimate(jax.random.key(0), THETA, state, ())
    assert tried
