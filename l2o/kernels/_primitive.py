"""JAX primitives that are a native kernel on CPUs and plain JAX elsewhere."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def make_primitive(
    name: str, plain: Callable, like: Callable, kernel: Any = None
) -> Primitive:
    """One of a `layout`, and of operands that all lead with the same `batch` axes.

    For CPUs it is lowered to the kernel, but not in what is exported: there and
    elsewhere it is plain JAX, so that what is exported runs without this package.

    Args:
      name: of the primitive.
      plain: `(layout, *operands) -> results`, without the batch's axes.
      like: `(layout, batch, *operands) -> types of the results`.
      kernel: `(layout, batch, *operands) -> results`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def in_plain_jax(*operands, layout, batch):
        return mapped(functools.partial(plain, layout), batch)(*operands)

    def with_kernel(*operands, layout, batch):
        return kernel(layout, batch, *operands)

    def batched(operands, axes, *, layout, batch):
        size = next(
            x.shape[axis]
            for x, axis in zip(operands, axes, strict=True)
            if axis is not None
        )
        operands = [
            batching.bdim_at_front(x, axis, size)
            for x, axis in zip(operands, axes, strict=True)
        ]
        results = primitive.bind(*operands, layout=layout, batch=batch + 1)
        return results, [0] * len(results)

    def jitted(*operands, layout, batch):
        return primitive.bind(*operands, layout=layout, batch=batch)

    primitive.def_impl(jax.jit(jitted, static_argnames=("layout", "batch")))
    primitive.def_abstract_eval(
        lambda *types, layout, batch: like(layout, batch, *types)
    )
    batching.primitive_batchers[primitive] = batched
    everywhere = mlir.lower_fun(in_plain_jax, multiple_results=True)
    mlir.register_lowering(primitive, everywhere)
    if kernel is not None:
        here = mlir.lower_fun(with_kernel, multiple_results=True)

        def lowered(ctx, *operands, **fixed):
            return (everywhere if exports(ctx) else here)(ctx, *operands, **fixed)

        mlir.register_lowering(primitive, lowered, platform="cpu")
    return primitive


def exports(ctx: Any) -> bool:
    """Whether what is lowered is to be exported: JAX refuses kernels there."""
    parameters = getattr(ctx.module_context, "lowering_parameters", None)
    return getattr(parameters, "for_export", False)


def mapped(f: Callable, times: int) -> Callable:
    for _ in range(times):
        f = jax.vmap(f)
    return f


def varying_alike(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Lets all vary over the axes of a `jax.shard_map` over which any does.

    A call has no rule of its own for what is equal on all devices. Derivatives by it
    are summed over them because it is made varying here.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    everywhere = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(everywhere - own), to="varying")
        if own < everywhere
        else x
        for x, own in zip(arrays, varying, strict=True)
    ]
