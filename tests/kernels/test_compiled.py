"""What is compiled: tensors that share calls, equal shapes that share code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from jax.sharding import AbstractMesh, AxisType
from kernel_operands import (
    RULES,
    assert_close,
    layout_of,
    needs_kernels,
    operands_of,
    quick,
    reduced,
    split,
)

import l2o
from l2o.kernels import _library
from l2o.kernels._dispatch import update_tensors
from l2o.rule._accumulators import Accumulators, Decays, factored_axes
from l2o.rule._rule import Shared, Tensor


def text_of(shapes, backend):
    """What is lowered for one update of tensors."""
    rule = RULES["small_fc"]

    def given(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def tensor(shape):
        axes = factored_axes(shape)
        row, col = (given(*reduced(shape, axis)) for axis in axes[::-1])
        x = given(*shape)
        return Tensor(x, x, Accumulators((x,) * 3, (x,), (row,) * 3, (col,) * 3))

    sizes = {"w0": (28, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 2)}
    nn = {name: given(1, *size) for name, size in {**sizes, "b2": (2,)}.items()}
    shared = Shared(Decays(given(3), given(1), given(3)), 0.0)
    f = functools.partial(update_tensors, rule)
    with l2o.backend(backend):
        lowered = jax.jit(f).lower([*map(tensor, shapes)], nn, given(1), shared)
    return lowered.as_text()


@needs_kernels
def test_small_tensors_share_calls():
    calls = "custom_call @l2o_update("
    assert text_of([(5, 3)] * _library.TOGETHER, "native").count(calls) == 1
    assert text_of([(5, 3)] * 64, "native").count(calls) == 64 / _library.TOGETHER
    large = [(5, 3), (300, 260), (300, 260), (5, 3)]
    assert text_of(large, "native").count(calls) == 3


def test_what_is_compiled_grows_with_the_shapes():
    few, many = (
        text_of([(5, 3), (7, 4)] * n, "xla").count("stablehlo.") for n in (4, 20)
    )
    assert few > 500
    assert many < 2 * few


def test_what_may_be_sharded_is_not_stacked():
    shapes = [(5, 3)] * 6
    assert "stablehlo.while" in text_of(shapes, "xla")
    mesh = AbstractMesh((2,), ("d",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "stablehlo.while" not in text_of(shapes, "xla")


@pytest.mark.parametrize(
    "networks",
    [
        pytest.param(1, id="shared", marks=pytest.mark.exhaustive),
        pytest.param(5, id="per_tensor"),
    ],
)
def test_equal_shapes_are_updated_as_each_alone(networks):
    layout = layout_of("velo", [(3, 4)] * 5)
    operands = operands_of(layout, networks=networks)
    tensors = [
        Tensor(g, p, Accumulators(x[:3], x[3:4], x[4:7], x[7:]))
        for g, p, *x in split(layout, operands)
    ]
    tensors = jax.tree.map(jnp.asarray, tensors)
    sizes = {"w0": (30, 4), "b0": (4,), "w1": (4, 4), "b1": (4,), "w2": (4, 2)}
    sizes["b2"] = (2,)
    nn = normal(0, {name: (networks, *size) for name, size in sizes.items()})
    scale = jnp.arange(1.0, 1 + networks)
    decays = Decays(*np.split(operands[0], [3, 4]))

    def rows(tree, group):
        index = np.array([0] if networks == 1 else group)
        return jax.tree.map(lambda x: x[index], tree)

    def updates(groups, nn):
        new = []
        for group in groups:
            some = [tensors[i] for i in group]
            given = rows(nn, group), rows(scale, group)
            new += update_tensors(layout.rule, some, *given, Shared(decays))
        return new

    def product(groups, nn):
        new = updates(groups, nn)
        return sum(jnp.vdot(u, t.param) for (u, _), t in zip(new, tensors))

    @functools.partial(quick, static_argnums=0)
    def everything(groups, nn):
        return updates(groups, nn), jax.grad(product, 1)(groups, nn)

    with l2o.backend("xla"):
        together = everything((tuple(range(5)),), nn)
        alone = everything(tuple((i,) for i in range(5)), nn)
    assert_close(*map(jax.tree.leaves, (together, alone)), 1e-6)
