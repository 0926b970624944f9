"""Native kernels in other processes: with other instructions, on two devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import few, normal, python_path
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from kernel_operands import (
    CLOSE,
    EDGE_SHAPES,
    EDGES,
    LARGE,
    RULES,
    SHAPES,
    SMOOTH_SHAPES,
    assert_close,
    cotangents_of,
    edge_operands,
    gradient,
    layout_of,
    needs_kernels,
    operands_of,
    update,
)

import l2o
from l2o.kernels import _library
from l2o.kernels._statistics import mean_and_variance


def in_child(function, path, **environment):
    """Calls a function of this module in another process; the arrays that it saves."""
    own = Path(__file__).stem
    code = f"import {own}; {own}.{function}({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": python_path(Path(__file__).parent),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as arrays:
        return dict(arrays)


def results_of_kernels():
    """With every kind of instruction: all rules, and rests of lanes of all sizes."""
    results = {}
    for kind in RULES:
        for width in (8, 16):
            layout = layout_of(kind, SHAPES + LARGE[:1], width)
            results[f"{kind} {width}"] = update(layout, *operands_of(layout))
        for name, edge in EDGES.items():
            layout = layout_of(kind, EDGE_SHAPES)
            results[f"{kind} {name}"] = update(layout, *edge_operands(layout, edge))
        layout = layout_of(kind, SMOOTH_SHAPES, 8)
        operands = operands_of(layout)
        cotangents = cotangents_of(update(layout, *operands))
        results[f"{kind} gradient"] = gradient(layout, operands, cotangents)
    return results


def save_results_of_kernels(path):
    arrays = {
        f"{name} {i}": x
        for name, group in results_of_kernels().items()
        for i, x in enumerate(group)
    }
    np.savez(path, instructions=_library.instructions(), **arrays)


@pytest.fixture(scope="module")
def own_results():
    return results_of_kernels()


@needs_kernels
@pytest.mark.parametrize("instructions", few(["generic", "avx2"], ["generic"]))
def test_other_instructions_compute_the_same(instructions, own_results, tmp_path):
    known = _library.INSTRUCTIONS
    if known.index(instructions) > known.index(_library.instructions()):
        pytest.skip(f"this processor has no {instructions}")
    if not _library._path(instructions).exists():
        pytest.skip(f"the compiler made no kernels for {instructions}")
    path = tmp_path / "results.npz"
    found = in_child("save_results_of_kernels", path, L2O_INSTRUCTIONS=instructions)
    assert found.pop("instructions") == instructions
    assert len(found) == sum(map(len, own_results.values()))
    for name, group in own_results.items():
        actual = [found[f"{name} {i}"] for i in range(len(group))]
        close = 1e-5 if "gradient" in name else 2 * CLOSE
        assert_close(actual, group, close, least=1.0 if "gradient" in name else 0.1)


SMALL_FC = l2o.small_fc(exp_mult=0.1)


def of_four(theta, params, seen=None):
    """The first updates of four trees of parameters."""

    def first(params):
        if seen is not None:
            seen.append(l2o.chosen_backend())
        tx = SMALL_FC.bind(theta)
        return tx.update(params, tx.init(params), params)[0]

    return jax.vmap(first)(params)


def gradient_of_four(theta, params):
    def total(theta):
        updates = of_four(theta, params)
        # What all devices have meets what one has in another call, too.
        _, (spread, *_) = mean_and_variance([theta["nn"]["b0"], params["vector"]])
        return spread + sum(
            jnp.vdot(u, p) for u, p in zip(*map(jax.tree.leaves, (updates, params)))
        )

    return jax.grad(total)(theta)


def four():
    params = normal(0, {"matrix": (4, 5, 3), "vector": (4, 6)})
    return SMALL_FC.init_theta(jax.random.key(0)), params


def save_on_two_devices(path):
    assert jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    inside, outside = [], []
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("d")))
    each = jax.jit(shard(functools.partial(of_four, seen=inside), out_specs=P("d")))
    # The derivative by what all devices have is summed over them.
    slopes = jax.jit(shard(gradient_of_four, out_specs=P()))
    text = each.lower(*four()).as_text()
    plain = jax.jit(functools.partial(of_four, seen=outside)).lower(*four()).as_text()
    np.savez(
        path,
        *jax.tree.leaves([each(*four()), slopes(*four())]),
        inside=inside[0],
        outside=outside[0],
        kernels=["l2o_update" in x for x in (text, plain)],
    )


@needs_kernels
def test_shard_map_on_two_devices(tmp_path):
    path = tmp_path / "results.npz"
    found = in_child("save_on_two_devices", path, JAX_NUM_CPU_DEVICES="2")
    assert (found.pop("inside"), found.pop("outside")) == ("native", "xla")
    assert [*found.pop("kernels")] == [True, False]
    expected = jax.tree.leaves(
        [jax.jit(f)(*four()) for f in (of_four, gradient_of_four)]
    )
    assert_close([found[f"arr_{i}"] for i in range(len(found))], expected, 1e-6)
