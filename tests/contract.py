"""What the contract of every optimizer is tested with: small trees, a compiled step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import OPTIMIZERS, RELATIVES, VARIANTS
from helpers import few, normal

import l2o

# One matrix where a test compiles: XLA's time is what these tests cost. `test_tree` has
# the other shapes, and the replayed traces of `test_parity` compile them together.
SHAPES = {"w": (3, 2)}


PARAMS = normal(0, SHAPES)


GRADS = [normal(seed, SHAPES) for seed in (1, 2, 3)]


WITH_BIAS = [normal(seed, {"b": (2,), **SHAPES}) for seed in (0, 1)]


LOSS = jnp.float32(0.5)


# Not constant: how a loss stands against its own average is then rounding alone.
LOSSES = jnp.array([0.5, 0.45, 0.3])


class Case(NamedTuple):
    optimizer: l2o.LearnedOptimizer
    theta: Any
    other_theta: Any
    tx: optax.GradientTransformationExtraArgs
    step: Callable  # compiled: theta, params, state, grads, loss -> params, state


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-7):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


# For what optax and flax do with any transformation: of every kind of state one.
of_some = pytest.mark.parametrize(
    "case",
    few(
        OPTIMIZERS,
        ["small_fc", "velo", "l2o_pa", "learnable_muon", "hypergradient", "compact"],
    ),
    indirect=True,
)


# For what any update does without jit, whose many small programs are what it costs:
# the relatives' updates are those of rules that are in the table themselves.
of_rules = pytest.mark.parametrize(
    "case",
    few(OPTIMIZERS, set(OPTIMIZERS) - set(VARIANTS) - RELATIVES),
    indirect=True,
)
