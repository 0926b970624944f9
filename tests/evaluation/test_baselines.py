"""Baselines that optax has under no name of its own: schedules, Muon on matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o.meta_train.evaluation import entrant, every_baseline
from l2o.meta_train.evaluation._baselines import scheduled_rate


def test_cosine_warms_up_and_falls_to_zero():
    rate = scheduled_rate("cosine", 0.4, 100)
    values = [float(rate(jnp.int32(t))) for t in (0, 5, 100)]
    np.testing.assert_allclose(values, [0.0, 0.4, 0.0], atol=1e-7)
    assert scheduled_rate("constant", 0.4, 100) == 0.4


def test_linear_warms_up_and_falls_in_a_line():
    rate = scheduled_rate("linear", 0.4, 100)
    values = [float(rate(jnp.int32(t))) for t in (0, 2, 5, 24, 62, 100)]
    # Up over 5 steps, down over 95.
    expected = [0.0, 0.4 * 2 / 5, 0.4, 0.4 * 76 / 95, 0.4 * 38 / 95, 0.0]
    np.testing.assert_allclose(values, expected, atol=1e-7)
    assert entrant("adamw+linear").identity == {
        "baseline": "adamw",
        "schedule": "linear",
    }


SHAPES = {
    "block": {
        "attention": {
            "query": {"kernel": (6, 2, 4), "bias": (2, 4)},
            "out": {"kernel": (2, 4, 6), "bias": (6,)},
        }
    },
    "Conv_0": {"kernel": (3, 3, 2, 5)},
    "blocks": {"up": {"kernel": (3, 4, 6), "bias": (3, 6)}},
    "token": {"embedding": (7, 3)},
    "lm_head": {"kernel": (3, 7)},
}
# Axes of the rows of what is a hidden matrix; those before them stack.
ROWS = {
    "block/attention/query/kernel": (0, 1),
    "block/attention/out/kernel": (0, 2),
    "Conv_0/kernel": (0, 3),
    "blocks/up/kernel": (1, 2),
}


def _trees(seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(draw, SHAPES, is_leaf=is_shape)


def _orthogonalised(g, first, last):
    """Five quintic Newton-Schulz iterations in float64, and the factor for width."""
    stack = int(np.prod(g.shape[:first]))
    rows = int(np.prod(g.shape[first:last]))
    matrices = []
    for x in np.asarray(g, np.float64).reshape(stack, rows, -1):
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
        x = x.T if tall else x
        matrices.append(x * max(1, x.shape[1] / x.shape[0]) ** 0.5)
    return np.reshape(matrices, g.shape)


@pytest.mark.parametrize("schedule", ["", "+cosine"])
def test_muon_takes_hidden_matrices_and_adam_the_rest(schedule):
    params, grads = _trees(0), _trees(1)
    tx = entrant(f"muon_hidden{schedule}").make(0.02, 40)
    state = tx.init(params)
    update = jax.jit(tx.update)
    # Of equal gradients every moment is the gradient itself, but for what Nesterov's
    # form of Adam adds: a step of the rate against the sign.
    steps, state = update(grads, state, params)
    steps, state = update(grads, state, params)
    rate = 0.02 * (0.5 if schedule else 1)  # the second of two steps of warm-up
    adam = optax.nadamw(rate / 20, weight_decay=1e-4)
    adam_state = adam.init(params)
    for _ in range(2):
        expected, adam_state = adam.update(grads, adam_state, params)
    named = jax.tree_util.tree_leaves_with_path(grads)
    leaves = zip(named, *map(jax.tree.leaves, (steps, expected)), strict=True)
    for (path, grad), step, by_adam in leaves:
        name = "/".join(part.key for part in path)
        if name in ROWS:
            wanted = -rate * _orthogonalised(grad, *ROWS[name])
            np.testing.assert_allclose(step, wanted, rtol=2e-3, atol=2e-5)
        else:
            np.testing.assert_allclose(step, by_adam, rtol=1e-4, atol=1e-8)


def test_muon_of_tables_alone_is_adam():
    params = {"words": {"embedding": jnp.ones((5, 3))}}
    grads = {"words": {"embedding": jnp.arange(15.0).reshape(5, 3)}}
    tx = entrant("muon_hidden").make(0.02, 40)
    steps, _ = tx.update(grads, tx.init(params), params)
    adam = optax.nadamw(0.001, weight_decay=1e-4)
    expected, _ = adam.update(grads, adam.init(params), params)
    np.testing.assert_allclose(
        steps["words"]["embedding"], expected["words"]["embedding"], rtol=1e-5
    )


def test_all_stands_for_what_comes_with_the_package():
    assert len(every_baseline()) == len(set(every_baseline())) == 51
    assert "muon_hidden" not in every_baseline()
    assert entrant("muon_hidden").space[:3] == (0.02, 0.0632, 0.00632)
