"""An optimizer and its slow form, run side by side."""

import jax
import numpy as np
import optax
from slow_forms import NUM_STEPS

SHAPES = {
    "conv": (3, 3, 2, 4),
    "matrix": (5, 3),
    "scalar": (),
    "square": (3, 3),
    "vector": (4,),
}
# Every epsilon acts; means of gradients are not small beside their deviation, the
# second gradient of the matrix is cut, the vector's parameters are tiny: see `problem`.
SIZES = {"conv": 1e-1, "matrix": 1.0, "scalar": 1e-3, "square": 1e-4, "vector": 1e-2}
LOSSES = [2.0, 0.7, 5.0, 0.9]
SOME = ["p", "m", "rsqrt_rms", "fac_g", "col", "rsqrt_row", "fac_m"]


def problem():
    rng = np.random.default_rng(0)
    params = {k: np.float32(rng.standard_normal(s)) for k, s in SHAPES.items()}
    grads = [
        {k: np.float32(SIZES[k] * rng.normal(1, 1, s)) for k, s in SHAPES.items()}
        for _ in LOSSES
    ]
    grads[1]["matrix"] *= 2000
    params["vector"] *= np.float32(1e-5)
    return params, grads


def random_theta(optimizer, seed=1):
    rng = np.random.default_rng(seed)

    def noisy(path, x):
        size = 0.03 if "decays" in jax.tree_util.keystr(path) else 0.3
        return np.float32(x + size * rng.standard_normal(x.shape))

    theta = optimizer.init_theta(jax.random.key(0))
    return jax.tree_util.tree_map_with_path(noisy, theta)


def assert_follows(optimizer, slow, given=None, atol=1e-5, steps=4):
    """Runs both side by side from the fast one's parameters; returns what they know."""
    theta = random_theta(optimizer)
    params, grads = problem() if given is None else given
    tx = optimizer.bind(theta, num_steps=NUM_STEPS)
    wide = jax.tree.map(np.float64, theta)
    slow = slow(optimizer.name, wide, dict(optimizer.arguments), params)
    state = tx.init(params)
    # Outputs of the network may cancel in a step, which their round-off does not.
    sizes = dict.fromkeys(params, 0.0)
    for t, (g, loss) in enumerate(zip(grads[:steps], LOSSES)):
        updates, state = tx.update(g, state, params, value=loss)
        wide_g, wide_p = jax.tree.map(np.float64, (g, params))
        expected = dict(slow.update(wide_g, wide_p, loss))
        assert set(expected) == set(updates) == set(params)
        for k, u in expected.items():
            size = np.abs(u).max()
            assert 1e-8 < size < np.inf, f"{k} {t}"  # the comparison means something
            sizes[k] = max(sizes[k], size)
            np.testing.assert_allclose(
                updates[k], u, rtol=0, atol=atol * sizes[k], err_msg=f"{k} {t}"
            )
        params = optax.apply_updates(params, updates)
    return state, slow
