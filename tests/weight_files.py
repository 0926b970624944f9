"""Small optimizers and files of their weights."""

from pathlib import Path

import flax
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import l2o

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference"
WEIGHTS, CONFIG = "model.safetensors", "config.json"

# Sizes that all differ, so that one cannot be taken for another.
SMALL = {
    "mlp": l2o.mlp(hidden_size=5, hidden_layers=3),
    "small_fc": l2o.small_fc(hidden_size=3, hidden_layers=1),
    "mulo": l2o.mulo(hidden_size=6),
    "rnn_mlp": l2o.rnn_mlp(
        hidden_size=7,
        hidden_layers=1,
        lstm_hidden_size=5,
        from_mlp_size=4,
        from_lstm_size=3,
        lstm_to_ff=6,
    ),
    "nn_adam": l2o.nn_adam(lstm_hidden_size=5),
    "learnable_sgd": l2o.learnable_sgd(),
    "learnable_sgdm": l2o.learnable_sgdm(),
    "learnable_adam": l2o.learnable_adam(eps_root=1e-8),
    "velo": l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5),
    "celo": l2o.celo(lstm_hidden_size=7, param_inits=2, hidden_layers=1),
    "celo_adam": l2o.celo_adam(lstm_hidden_size=7),
    "celo2": l2o.celo2(hidden_size=5, hidden_layers=3),
    "celo2_base": l2o.celo2_base(hidden_size=5, hidden_layers=1),
}
# Their trees are those of small_fc and of celo2.
NAMED = {"mulo": "mulo", "celo2_base": "celo2_base"}


def some_theta(optimizer, seed=0):
    """Nothing zero, nothing twice, so that a lost or permuted array shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        # NumPy's conversion: JAX compiles one per shape.
        lambda x: jnp.asarray(np.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)),
        jax.eval_shape(optimizer.init_theta, jax.random.key(0)),
    )


def assert_same(loaded, optimizer, theta):
    actual, actual_theta = loaded
    assert (actual.name, actual.arguments) == (optimizer.name, optimizer.arguments)
    assert jax.tree.structure(actual_theta) == jax.tree.structure(theta)
    for x, y in zip(jax.tree.leaves(actual_theta), jax.tree.leaves(theta)):
        assert isinstance(x, jax.Array) and x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)


def write_flax(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


PYLO = {
    "elo": l2o.elo(hidden_size=6, hidden_layers=3),
    "mulo": SMALL["mulo"],
    "celo2": l2o.celo2(variant="pylo", hidden_size=5, hidden_layers=1),
    "elo_celo2": l2o.elo_celo2(hidden_size=5, activation="tanh"),
}
PYLO_VELO = l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5)


def save_pylo(folder, optimizer):
    theta = some_theta(optimizer)
    assert l2o.save(folder, optimizer, theta, format="pylo") == folder
    return theta


def edit_arrays(folder, edit):
    arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    edit(arrays)
    safetensors.numpy.save_file(arrays, folder / WEIGHTS)


PUBLISHED_SIZES = {
    "celo": (37_089, 16),
    "celo2": (347, 16),
    "celo2_base": (347, 16),
    "normalized_velo": (3_532, 16),
    "celo_adam": (36_865, 8),
    "elo": (2_402, 16),
    "elo_celo2": (347, 16),
    "l2o_pa": (5_805, 324),
    "l2o_scale": (8_349, 84),
    "learnable_adam": (4, 8),
    "learnable_muon": (15, 8),
    "learnable_sgd": (1, 0),
    "learnable_sgdm": (2, 4),
    "lstm": (5_141, 320),
    "mlp": (1_762, 24),
    "mulo": (2_409, 16),
    "nn_adam": (6_856, 8),
    "rnn_mlp": (35_799, 40),
    "rnnprop": (6_641, 328),
    "small_fc": (197, 16),
    "velo": (2_320_385, 16),
}
