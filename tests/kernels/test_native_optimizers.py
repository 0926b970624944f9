"""Optimizers with native kernels are those of plain JAX, exported ones too."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import few, normal
from kernel_operands import assert_close, needs_kernels, quick

import l2o
from l2o.kernels import _primitive

HYPER = {"lstm_hidden_size": 8, "param_inits": 2, "exp_mult": 0.03, "step_mult": 0.1}
OPTIMIZERS = {
    "small_fc": l2o.small_fc(exp_mult=0.1, step_mult=0.1),
    "elo": l2o.elo(hidden_size=4, learning_rate=0.1, weight_decay=0.1),
    "celo": l2o.celo(**HYPER, mix_layers=False),
    "velo": l2o.velo(**HYPER, ff_mult=3.0),
    "celo2_base": l2o.celo2_base(learning_rate=0.1, exp_mult=0.1, orthogonalize=False),
    "celo2": l2o.celo2(learning_rate=0.1, weight_decay=0.1),
    "scaled": l2o.celo2_base(
        learning_rate=0.1,
        exp_mult=0.1,
        orthogonalize=False,
        param_scale_mult=True,
        normalize_output=False,
    ),
    "mulo": l2o.mulo(hidden_size=16, exp_mult=0.1, step_mult=0.1),
}


def small_tree(seed):
    shapes = {"bias": (6,), "blocks": (2, 4, 5), "matrix": (5, 3), "scalar": ()}
    tree = normal(seed, shapes)
    tree["blocks"] *= jnp.array([1.0, 10.0]).reshape(2, 1, 1)
    return {**tree, "bias": tree["bias"].astype(jnp.bfloat16)}


def three_updates(optimizer, backend):
    """All updates and the last state; and whether kernels made them."""
    rng = np.random.default_rng(1)
    theta = jax.tree.map(
        lambda x: x + np.float32(0.1 * rng.standard_normal(x.shape)),
        optimizer.init_theta(jax.random.key(0)),
    )

    def step(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=40)
        updates, state = tx.update(grads, state, params, value=loss)
        return updates, optax.apply_updates(params, updates), state

    params = small_tree(0)
    state = optimizer.bind(theta, num_steps=40).init(params)
    everything = []
    with l2o.backend(backend):
        step = quick(step).lower(theta, params, state, params, 1.0)
        text, step = step.as_text(), step.compile()
    for seed, loss in enumerate((2.0, 0.7, 1.3)):
        given = theta, params, state, small_tree(1 + seed), np.float32(loss)
        updates, params, state = step(*given)
        everything.append(updates)
    return everything, state, "l2o_update" in text


@needs_kernels
@pytest.mark.parametrize("name", few(OPTIMIZERS, ["small_fc", "velo", "celo2"]))
def test_optimizers_are_the_same_in_plain_jax(name):
    expected, state, with_kernels = three_updates(OPTIMIZERS[name], "xla")
    assert not with_kernels
    *actual, with_kernels = three_updates(OPTIMIZERS[name], None)
    assert with_kernels
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves((expected, state))):
        assert x.dtype == y.dtype
        # bfloat16 has eight bits; orthogonalisation amplifies rounding.
        close = 1e-2 if x.dtype == jnp.bfloat16 else 2e-4 if name == "celo2" else 3e-5
        assert_close([x], [y], close, least=1e-3)


@needs_kernels
@pytest.mark.parametrize("name", ["celo2", "small_fc", "velo"])
def test_double_precision_elsewhere(name):
    optimizer = OPTIMIZERS[name]
    params = normal(0, {"bias": (6,), "matrix": (5, 3)})

    def first(theta):
        tx = optimizer.bind(theta, num_steps=40)
        return tx.update(params, tx.init(params), params, value=1.0)[0]

    theta = optimizer.init_theta(jax.random.key(0))
    expected = quick(first)(theta)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), theta)
        for given in (theta, wide):
            actual = jax.block_until_ready(quick(first)(given))
            assert_close(*map(jax.tree.leaves, (actual, expected)), 1e-4)


def velo_step(params, state, grads):
    """One update, and its derivative by the parameters."""
    optimizer = OPTIMIZERS["velo"]
    theta = jax.tree.map(jnp.asarray, _velo_theta())

    def updated(params):
        tx = optimizer.bind(theta, num_steps=40)
        updates, new = tx.update(grads, state, params, value=jnp.float32(1.0))
        return sum(map(jnp.sum, jax.tree.leaves(updates))), (updates, new)

    (_, new), slopes = jax.value_and_grad(updated, has_aux=True)(params)
    return jax.tree.leaves((new, slopes))


@functools.cache
def _velo_theta():
    return jax.device_get(OPTIMIZERS["velo"].init_theta(jax.random.key(0)))


RELOAD = """
import sys
import jax, numpy as np
folder = sys.argv[1]
with open(folder + "/step", "rb") as f:
    step = jax.export.deserialize(bytearray(f.read()))
with np.load(folder + "/given.npz") as arrays:
    given = [arrays[name] for name in arrays]
np.savez(folder + "/found.npz", *step.call(*given))
assert not any(name.split(".")[0] == "l2o" for name in sys.modules)
"""


@needs_kernels
def test_what_is_exported_runs_without_this_package(tmp_path):
    params, grads = (normal(i, {"matrix": (5, 3), "vector": (6,)}) for i in range(2))
    state = OPTIMIZERS["velo"].bind(_velo_theta(), num_steps=40).init(params)
    given, structure = jax.tree.flatten((params, state, grads))
    step = quick(lambda *leaves: velo_step(*structure.unflatten(leaves)))
    text = step.lower(*given).as_text()
    for target in ("l2o_update", "l2o_update_vjp", "l2o_statistics"):
        assert f"custom_call @{target}(" in text
    exported = jax.export.export(step, platforms=("cpu", "tpu", "cuda"))(*given)
    assert "custom_call @l2o" not in exported.mlir_module()
    assert_close(exported.call(*given), step(*given), 2e-5, least=1e-3)
    (tmp_path / "step").write_bytes(exported.serialize())
    np.savez(tmp_path / "given.npz", *given)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "found.npz") as arrays:
        found = [arrays[name] for name in arrays]
    assert_close(found, step(*given), 2e-5, least=1e-3)


@needs_kernels
def test_a_jax_that_does_not_say_what_it_exports_has_kernels():
    ctx = type("", (), {"module_context": object()})()
    assert not _primitive.exports(ctx)
