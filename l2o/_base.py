"""The one abstraction of this package: a learned optimizer is two pure functions."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import optax

Theta = Any  # a pytree of float arrays: the meta-parameters

PARAMS_MISSING = (
    "{name} needs the current parameters: call "
    "`updates, state = tx.update(grads, state, params, value=loss)`."
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
    """

    init_theta: InitThetaFn
    bind: BindFn
    name: str = ""
    arguments: Mapping[str, Any] = {}


def require_params(params: Any, name: str) -> None:
    """Raises `ValueError`, with the call to write, where `params` is missing."""
    if params is None:
        raise ValueError(PARAMS_MISSING.format(name=name))


def stable_dtypes(init: Any, update: Any) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation keep the dtypes of its state and of its gradients.

    After every update each state leaf is cast to the dtype it had, and each update to
    the dtype of its gradient, whatever the arithmetic in between promoted to (theta is
    float32, so bfloat16 parameters are updated in float32 and stored in bfloat16).
    """

    def update_fn(updates, state, params=None, **extra_args):
        new_updates, new_state = update(updates, state, params, **extra_args)
        return (
            optax.tree.cast_like(new_updates, updates),
            optax.tree.cast_like(new_state, state),
        )

    return optax.GradientTransformationExtraArgs(init, update_fn)
