"""Skip-gram: products of rows, and rows without gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import KEY, KEYS
from scipy.special import log_expit

from l2o import tasks
from l2o.tasks import make_family
from l2o.tasks.families import _skip_gram

_SIZE, _WIDTH = 40, 6


def _family(**options):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, _SIZE, (200, 5), np.int32)
    data = tasks.from_arrays({"x": tokens, "y": tokens})
    return make_family(
        "skip_gram", datasets=(data,), width=_WIDTH, vocabulary=_SIZE, **options
    )


def _tables():
    rng = np.random.default_rng(1)
    draw = lambda: {"embedding": jnp.asarray(rng.normal(size=(_SIZE, _WIDTH)), "f")}
    return {"words": draw(), "contexts": draw()}


def test_loss_is_that_of_plain_loops():
    family = _family(batch_size=16, negatives=3)
    task = family.task(family.sample(KEY), family.data)
    params, batch = _tables(), task.batch(KEY, "train")
    module = _skip_gram._SkipGram(_SIZE, _WIDTH, 3)
    x = np.asarray(batch["x"])
    scores = module.apply({"params": params}, x, rngs={"dropout": KEYS[0]})
    u, v = (np.asarray(params[k]["embedding"]) for k in ("words", "contexts"))
    for i, row in enumerate(x):
        near = [u[row[2]] @ v[row[j]] for j in (0, 1, 3, 4)]
        np.testing.assert_allclose(scores.positive[i], near, rtol=1e-4, atol=1e-5)
        anyone = u[row[2]] @ v[np.unique(x)].T
        gaps = np.abs(np.asarray(scores.negative[i])[:, None] - anyone[None])
        assert gaps.min(1).max() < 1e-4  # pieces of the batch
    near, far = map(np.asarray, scores)
    loss, _ = task.loss(params, {}, KEYS[0], batch)
    wanted = -log_expit(near).mean() - 5 * log_expit(-far).mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    others = module.apply({"params": params}, x, rngs={"dropout": KEYS[1]})
    assert np.any(np.asarray(others.negative) != far)


def test_it_begins_at_six_coins_and_most_rows_have_no_gradient():
    family = _family(batch_size=4, negatives=2)
    task = family.task(family.sample(KEY), family.data)
    params, state = task.init(KEY)
    batch = task.batch(KEY, "train")
    value = lambda params: task.loss(params, state, KEY, batch)[0]
    np.testing.assert_allclose(value(params), 6 * np.log(2), rtol=1e-5)
    grads = jax.grad(value)(_tables())
    used = {
        "words": set(np.asarray(batch["x"])[:, 2].tolist()),
        "contexts": set(np.asarray(batch["x"]).ravel().tolist()),
    }
    for name, rows in used.items():
        moved = np.abs(grads[name]["embedding"]).sum(1) > 0
        assert set(np.flatnonzero(moved)) <= rows and 0 < moved.sum() < _SIZE
    assert (
        set(np.flatnonzero(np.abs(grads["words"]["embedding"]).sum(1))) == used["words"]
    )
