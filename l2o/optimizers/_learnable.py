"""Hand-designed update rules whose hyper-parameters are theta."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked, log_of
from .._base import LearnedOptimizer
from .._tensors import state_zeros
from .._transformation import transformation

_RATE = {"learning_rate": ("log_lr",)}


class _Skipped(NamedTuple):
    """The last part of these rules' states; the others are optax's."""

    skipped: jax.Array  # shape (), int32: steps without an update


def learnable_sgd(*, learning_rate: optax.ScalarOrSchedule = 0.01) -> LearnedOptimizer:
    r"""SGD with a meta-learned learning rate.

    .. math:: p \leftarrow p - e^{\theta_{lr}} g

    Args:
      learning_rate: initial value; theta holds its logarithm, `{"log_lr": ()}`. Of an
        optax schedule theta holds the logarithm of a factor, which starts at one.

    Example:
      >>> import l2o, jax
      >>> optimizer = l2o.learnable_sgd(learning_rate=0.1)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))

    Source: google/learned_optimization, learned_optimizers/base.py (2021).
    """
    arguments = checked(learnable_sgd, locals())
    start = _log_rate("learnable_sgd", learning_rate)

    def init_theta(key):
        del key  # the start is not random
        return {"log_lr": jnp.float32(start)}

    def bind(theta, *, num_steps=None):
        del num_steps
        return _bound(optax.sgd(_rate(theta, learning_rate)), "learnable_sgd")

    return LearnedOptimizer(
        init_theta, bind, "learnable_sgd", arguments, (), starts=_RATE
    )


def learnable_sgdm(
    *, learning_rate: optax.ScalarOrSchedule = 0.01, momentum: float = 0.9
) -> LearnedOptimizer:
    r"""SGD with heavy-ball momentum, both hyper-parameters meta-learned.

    .. math:: b \leftarrow \beta b + g, \quad p \leftarrow p - e^{\theta_{lr}} b,
              \quad \beta = 1 - e^{\theta_{m}}

    Args:
      learning_rate: initial value, or a schedule, as for `learnable_sgd`.
      momentum: initial value; theta holds the logarithm of one minus it.

    Example:
      >>> import l2o, jax
      >>> optimizer = l2o.learnable_sgdm()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))

    Source: google/learned_optimization, learned_optimizers/base.py (2021).
    """
    arguments = checked(learnable_sgdm, locals())
    start = _log_rate("learnable_sgdm", learning_rate)

    def init_theta(key):
        del key
        return {
            "log_lr": jnp.float32(start),
            "log_one_minus_momentum": jnp.float32(math.log1p(-momentum)),
        }

    def bind(theta, *, num_steps=None):
        del num_steps
        beta = -jnp.expm1(theta["log_one_minus_momentum"])
        return _bound(
            optax.sgd(_rate(theta, learning_rate), momentum=beta), "learnable_sgdm"
        )

    starts = {**_RATE, "momentum": ("log_one_minus_momentum",)}
    return LearnedOptimizer(
        init_theta, bind, "learnable_sgdm", arguments, (), starts=starts
    )


def learnable_adam(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> LearnedOptimizer:
    r"""Adam with all four hyper-parameters meta-learned.

    .. math:: p \leftarrow p - \alpha\, \hat m / (\sqrt{\hat v + \epsilon_{root}}
              + \epsilon)

    with the bias-corrected moments of Adam.

    Args:
      learning_rate: initial value, or a schedule, as for `learnable_sgd`.
      eps: initial value; theta holds its logarithm.
      b1, b2: initial decays; theta holds the logarithms of one minus them.
      eps_root: fixed. The published class has 1e-8, which damps gradients below 1e-4;
        set it to reproduce its numbers, or to differentiate through a zero gradient.

    Example:
      >>> import l2o, jax
      >>> optimizer = l2o.learnable_adam(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))

    Source: google/learned_optimization, learned_optimizers/base.py (2021); Adam
    (Kingma & Ba, 2015).
    """
    arguments = checked(learnable_adam, locals())
    start = _log_rate("learnable_adam", learning_rate)
    log_eps = log_of("learnable_adam", "eps", eps)

    def init_theta(key):
        del key
        return {
            "log_lr": jnp.float32(start),
            "log_one_minus_b1": jnp.float32(math.log1p(-b1)),
            "log_one_minus_b2": jnp.float32(math.log1p(-b2)),
            "log_eps": jnp.float32(log_eps),
        }

    def bind(theta, *, num_steps=None):
        del num_steps
        return _bound(
            optax.adam(
                _rate(theta, learning_rate),
                b1=-jnp.expm1(theta["log_one_minus_b1"]),
                b2=-jnp.expm1(theta["log_one_minus_b2"]),
                eps=jnp.exp(theta["log_eps"]),
                eps_root=eps_root,
            ),
            "learnable_adam",
        )

    starts = {
        **_RATE,
        "b1": ("log_one_minus_b1",),
        "b2": ("log_one_minus_b2",),
        "eps": ("log_eps",),
    }
    return LearnedOptimizer(
        init_theta, bind, "learnable_adam", arguments, (), starts=starts
    )


def _log_rate(factory: str, learning_rate: optax.ScalarOrSchedule) -> Any:
    if callable(learning_rate):
        return 0.0
    return log_of(factory, "learning_rate", learning_rate)


def _rate(theta: Any, learning_rate: optax.ScalarOrSchedule) -> optax.ScalarOrSchedule:
    rate = jnp.exp(theta["log_lr"])
    if callable(learning_rate):
        return lambda count: rate * learning_rate(count)
    return rate


def _bound(
    tx: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    tx = optax.with_extra_args_support(tx)

    def init_fn(params):
        state = optax.tree.map_params(
            tx, lambda x, p: state_zeros(p), tx.init(params), params
        )
        return (*state, _Skipped(jnp.zeros([], jnp.int32)))

    def update_fn(updates, state, params=None, **extra_args):
        *state, skipped = state
        updates, state = tx.update(updates, tuple(state), params, **extra_args)
        return updates, (*state, skipped)

    return transformation(init_fn, update_fn, name=name)
