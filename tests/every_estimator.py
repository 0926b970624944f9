"""The table of estimators that every test of all of them goes through."""

import functools

import closed_forms as cf
import jax
import jax.numpy as jnp
import optax

import l2o
from l2o import meta_train as mt
from l2o.meta_train import learn_optimizer
from l2o.tasks import TaskFamily, stateless

THETA, STD = jnp.float32(cf.THETA), cf.STD


# Estimator, keyword arguments, the mean for the loss after t steps given the window.
# Those of full unrolls take no truncation; a window of theirs is an episode.
ESTIMATORS = {
    "pes": (mt.pes, {"std": STD}, cf.persistent),
    "nres": (mt.nres, {"std": STD}, lambda t, k: cf.full(t) if t else 0.0),
    "gpes": (
        lambda *args, truncation, **kwargs: mt.gpes(
            *args, truncation=truncation, period=2 * truncation, **kwargs
        ),
        {"std": STD},
        lambda t, k: cf.persistent(t, 2 * k),
    ),
    "truncated_es": (mt.truncated_es, {"std": STD}, cf.truncated),
    "truncated_es_unperturbed": (
        functools.partial(mt.truncated_es, carry="unperturbed"),
        {"std": STD},
        cf.truncated_unperturbed,
    ),
    "full_es": (mt.full_es, {"std": STD}, lambda t, k: cf.full(t) if t else 0.0),
    "backprop": (mt.backprop, {}, lambda t, k: cf.exact(t) if t else 0.0),
    "truncated_backprop": (mt.truncated_backprop, {}, cf.truncated_exact),
    "forward_gradient": (
        mt.forward_gradient,
        {},
        lambda t, k: cf.exact(t) if t else 0.0,
    ),
    "inverse_variance": (mt.inverse_variance, {"std": STD}, cf.truncated),
}
FULL = ("full_es", "backprop")
WINDOWED = [name for name in ESTIMATORS if name not in FULL]
UNBIASED = ("pes", "nres", "gpes", "full_es", "backprop", "forward_gradient")
# One of each kind of code, where the formula does not matter.
KINDS = (
    "pes",
    "full_es",
    "truncated_backprop",
    "forward_gradient",
    "inverse_variance",
)
DETERMINISTIC = ("backprop", "truncated_backprop")  # on a problem without noise


def estimator_of(name, problem, schedule, *, truncation, **kwargs):
    make, given, _ = ESTIMATORS[name]
    if name not in FULL:
        kwargs["truncation"] = truncation
    return make(problem, schedule, **{**given, **kwargs})


def noisy_quadratics():
    """SGD with momentum on noisy, sampled quadratics: two meta-parameters."""

    def bind(theta, *, num_steps=None):
        return optax.with_extra_args_support(
            optax.sgd(theta[0] / 10, momentum=theta[1])
        )

    optimizer = l2o.LearnedOptimizer(lambda key: jnp.array([0.5, 0.5]), bind)

    def task(curvature, data):
        return stateless(
            init=lambda key: jnp.array([1.0, -1.0]),
            batch=lambda key, split: 0.1 * jax.random.normal(key, (2,)),
            loss=lambda x, key, batch: jnp.sum(curvature * (x + batch) ** 2) / 2,
        )

    def sample(key):
        return jnp.array([1.0, 3.0]) * jax.random.uniform(key, (2,), minval=0.5)

    return learn_optimizer(optimizer, TaskFamily(sample, task))
