"""The one abstraction of this package: a learned optimizer is two pure functions."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from ._arguments import check_num_steps

Theta = Any  # a pytree of float arrays: the meta-parameters

_LARGEST = 1e15  # of a loss

PARAMS_MISSING = (
    "{name} needs the current parameters: call "
    "`updates, state = tx.update(grads, state, params, value=loss)`."
)
VALUE_MISSING = (
    "{name} needs the loss: call "
    "`updates, state = tx.update(grads, state, params, value=loss)`."
)
NUM_STEPS_MISSING = (
    "{name} needs the length of the training run: give it, "
    "`l2o.load(source, num_steps=...)` or `optimizer.bind(theta, num_steps=...)`. "
    "Optimizers that need none are `l2o.load('adaptive_muon')` and the others that "
    "ship."
)


class InitThetaFn(Protocol):
    """`key -> theta`: draws fresh meta-parameters."""

    def __call__(self, key: jax.Array) -> Theta: ...


class BindFn(Protocol):
    """`theta -> optax transformation`.

    `theta` may be traced: call `bind` *inside* the jitted function and pass `theta`
    as an argument of that function. A closed-over theta is compiled in as a constant.
    `num_steps` is the length of the training run; optimizers without a horizon
    ignore it.
    """

    def __call__(
        self, theta: Theta, *, num_steps: int | jax.Array | None = None
    ) -> optax.GradientTransformationExtraArgs: ...


class LearnedOptimizer(NamedTuple):
    """An optimizer with meta-parameters theta.

    Attributes:
      init_theta: `key -> theta`.
      bind: `(theta, *, num_steps=None) -> optax.GradientTransformationExtraArgs`.
      name: name of the factory that made it, as `l2o.make` knows it; empty for an
        optimizer of your own that is not registered.
      arguments: the factory's keyword arguments (JSON-representable), so that a saved
        folder can rebuild the same architecture.
      needs: what it cannot do without, of "params", "value" (the loss, both at
        `update`), "num_steps" (at `bind`) and "learning_rate" (an argument of the
        factory, to be tuned).
      frozen: parts of theta, keys joined by `/`, that meta-training leaves as they are.
      starts: arguments that say where theta starts, each with the leaves of theta that
        it sets, keys joined by `/`. `l2o.load(source, b1=0.95)` sets these leaves.
    """

    init_theta: InitThetaFn
    bind: BindFn
    name: str = ""
    arguments: Mapping[str, Any] = {}
    needs: tuple[str, ...] = ("params",)
    frozen: tuple[str, ...] = ()
    starts: Mapping[str, tuple[str, ...]] = {}


def trainable(optimizer: LearnedOptimizer, theta: Theta) -> Any:
    """Which parts of theta are meta-trained.

    Args:
      optimizer: of whose `frozen` each entry names a part, such as "nn/w0".
      theta: the optimizer's.

    Returns:
      A tree like theta of bools: False for frozen parts. `optax.masked` takes it.

    Example:
      >>> import jax, l2o
      >>> optimizer = l2o.learnable_adam()._replace(frozen=("log_eps",))
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> l2o.trainable(optimizer, theta)["log_eps"]
      False
    """

    def is_trainable(path, leaf):
        del leaf
        name = "/".join(jax.tree_util.keystr((key,), simple=True) for key in path) + "/"
        return not any(name.startswith(part + "/") for part in optimizer.frozen)

    return jax.tree_util.tree_map_with_path(is_trainable, theta)


def require_params(params: Any, name: str) -> None:
    """Raises `ValueError`, with the call to write, where `params` is missing."""
    if params is None:
        raise ValueError(PARAMS_MISSING.format(name=name))


def require_value(value: Any, name: str) -> jax.Array:
    """The loss as a float32 scalar; 1e15 for one that is NaN or larger.

    Raises:
      ValueError: it is missing (the message has the call to write) or not a scalar.
    """
    if value is None:
        raise ValueError(VALUE_MISSING.format(name=name))
    value = jnp.asarray(value, jnp.float32)
    if value.size != 1:
        raise ValueError(
            f"{name} needs a scalar loss, got value of shape {value.shape}"
        )
    # Running statistics of the loss must survive one that is not finite.
    value = jnp.where(jnp.isnan(value), _LARGEST, value)
    return jnp.clip(value, -_LARGEST, _LARGEST).reshape(())


def require_num_steps(num_steps: Any, name: str) -> jax.Array:
    """The horizon as a float32 scalar.

    Raises:
      ValueError: it is missing (the message has the call to write) or not a number of
        steps.
    """
    if num_steps is None:
        raise ValueError(NUM_STEPS_MISSING.format(name=name))
    check_num_steps(name, num_steps)
    return jnp.asarray(num_steps, jnp.float32)


def optional_num_steps(num_steps: Any, name: str) -> jax.Array:
    """The horizon as a float32 scalar, infinite where there is none.

    Raises:
      ValueError: it is not a number of steps.
    """
    if num_steps is None:
        return jnp.float32(jnp.inf)
    return require_num_steps(num_steps, name)
