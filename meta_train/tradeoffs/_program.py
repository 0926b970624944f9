"""The program that costs are read from: one update of one matrix."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

import l2o

_NUM_STEPS = 10_000  # told to optimizers that ask for the length of the run
_KERNELS = ("l2o_", "tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")
_config: Any = jax.config  # whose attributes its type does not name


class Program(NamedTuple):
    """A compiled update: `(theta, params, state, grads, loss) -> (params, state)`.

    Parameters and state are donated. `seconds` is what tracing and compiling took;
    `kernels`: whether there are native or Pallas kernels in it.
    """

    compiled: Any
    seconds: float
    kernels: bool


def update_program(
    optimizer: l2o.LearnedOptimizer, shape: tuple[int, int], backend: l2o.Backend
) -> Program:
    """Compiles the update of a float32 matrix, and that of its parameters with it."""

    def step(theta, params, state, grads, value):
        tx = _bound(optimizer, theta)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    theta, params, state = abstract(optimizer, shape)
    with l2o.backend(backend), whole_tensors(), _uncached():
        start = time.perf_counter()
        jitted = jax.jit(step, donate_argnums=(1, 2))
        value = jax.ShapeDtypeStruct((), jnp.float32)
        compiled = jitted.lower(theta, params, state, params, value).compile()
        seconds = time.perf_counter() - start
    text = compiled.as_text() or ""
    kernels = any(f'custom_call_target="{x}' in text for x in _KERNELS)
    return Program(compiled, seconds, kernels)


def abstract(
    optimizer: l2o.LearnedOptimizer, shape: tuple[int, int]
) -> tuple[Any, Any, Any]:
    """Shapes of theta, of a matrix and of the optimizer's state."""
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    params = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(lambda t, p: _bound(optimizer, t).init(p), theta, params)
    return theta, params, state


def initial_state(optimizer: l2o.LearnedOptimizer, theta: Any, params: Any) -> Any:
    """The optimizer's state, every leaf in memory of its own, as donation needs it."""
    with whole_tensors():
        init = jax.jit(lambda t, p: _bound(optimizer, t).init(p))
        return jax.tree.map(jnp.copy, init(theta, params))


def _bound(optimizer: l2o.LearnedOptimizer, theta: Any) -> Any:
    return optax.with_extra_args_support(optimizer.bind(theta, num_steps=_NUM_STEPS))


def chosen_backend() -> l2o.Backend:
    """How updates are compiled on one device."""
    with whole_tensors():
        return l2o.chosen_backend()


def whole_tensors() -> Any:
    """One device in whose scope kernels are used, however many there are."""
    mesh = jax.make_mesh(
        (1,), ("one",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,)
    )
    return jax.set_mesh(mesh)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Programs are compiled anew: what is read from disk takes no time to compile."""
    folder = _config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
