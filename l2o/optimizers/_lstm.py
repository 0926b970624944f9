"""`lstm`: the coordinate-wise LSTM that started learned optimizers (L2O-DM)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import checked
from .._base import LearnedOptimizer
from .._options import takes
from .._tensors import map_tensors
from .._transformation import transformation
from ..names import check_known
from ..recurrent._cell import init_linear, linear
from ..recurrent._coordinatewise import (
    StackState,
    apply_stack,
    init_sonnet_lstm,
    init_stack,
)
from ..rule._rule import Untouched, check_untouched

_EPS = 2.0**-23  # of float32, whatever the gradient's dtype


class LSTMOptimizerState(NamedTuple):
    """State of `lstm`: 320 bytes per parameter by default."""

    lstm: StackState
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(old={"layers": "hidden_layers"})
def lstm(
    *,
    hidden_size: int = 20,
    hidden_layers: int = 2,
    preprocess: str = "log_sign",
    preprocess_scale: float = 5.0,
    step_mult: float = 0.01,
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Coordinate-wise LSTM on the gradient ("L2O-DM").

    .. math:: h' = \mathrm{LSTM}_\theta(\phi(g), h), \quad
              p \leftarrow p + \lambda\, (w^\top h' + b)

    Every coordinate has a state of its own and all share the weights; the parameters,
    other coordinates and the time are not seen. There is no learning rate to choose.

    Args:
      hidden_size, hidden_layers: the stack of LSTMs; 5 141 meta-parameters by default,
        5 061 with one input.
      preprocess: phi. "log_sign" gives two inputs, `max(log(|g| + eps) / k, -1)` and
        `clip(e^k g, -1, 1)`; "identity" gives the gradient, as published for
        quadratics, LASSO and Rastrigin's function, together with `step_mult=1`.
      preprocess_scale: k; gradients below `e^-k` are told apart by the second input.
      step_mult: lambda.
      untouched: what becomes of coordinates that have had no gradient: "held", with
        their state at zero, or "pushed" by the network, as published.

    Raises:
      ValueError: unknown `preprocess` or `untouched`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.lstm()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params))

    Source: "Learning to learn by gradient descent by gradient descent" (Andrychowicz
    et al., 2016), with the numbers of Open-L2O.
    """
    arguments = checked(lstm, locals())
    check_known("preprocess", preprocess, ("log_sign", "identity"))
    holds = check_untouched(untouched)
    inputs = 2 if preprocess == "log_sign" else 1

    def init_theta(key):
        *keys, linear_key = jax.random.split(key, hidden_layers + 1)
        sizes = [inputs] + [hidden_size] * (hidden_layers - 1)
        theta = {
            f"lstm_{i}": init_sonnet_lstm(k, size, hidden_size)
            for i, (k, size) in enumerate(zip(keys, sizes, strict=True))
        }
        return {**theta, "linear": init_linear(linear_key, hidden_size, 1)}

    def bind(theta, *, num_steps=None):
        del num_steps
        stack = [theta[f"lstm_{i}"] for i in range(hidden_layers)]

        def update_tensor(grad, _, hidden, cell):
            if preprocess == "log_sign":
                x = jnp.stack(log_and_sign(grad, preprocess_scale), -1)
            else:
                x = grad[..., None]
            x, *states = apply_stack(stack, x, hidden, cell)
            step = step_mult * linear(theta["linear"], x)[..., 0]
            if holds:
                # A state leaves zero with the first gradient.
                old = (*hidden, *cell)
                idle = functools.reduce(
                    jnp.logical_and, [jnp.all(h == 0, -1) for h in old]
                )
                idle = idle.reshape(grad.shape) & (grad == 0)
                step = jnp.where(idle, 0.0, step)
                states = jax.tree.map(
                    lambda h: jnp.where(idle[..., None], 0.0, h), states
                )
            return step, *states

        def init_fn(params):
            return LSTMOptimizerState(init_stack(params, hidden_layers, hidden_size))

        def update_fn(updates, state, params=None, **extra_args):
            del params, extra_args
            updates, hidden, cell = map_tensors(
                update_tensor, updates, updates, state.lstm.hidden, state.lstm.cell
            )
            return updates, LSTMOptimizerState(StackState(hidden, cell))

        return transformation(init_fn, update_fn, name="lstm")

    return LearnedOptimizer(init_theta, bind, "lstm", arguments, ())


def log_and_sign(grad: jax.Array, k: float) -> tuple[jax.Array, jax.Array]:
    """`max(log(|g| + eps) / k, -1)` and `clip(e^k g, -1, 1)`.

    The first tells large gradients apart, the second those below `e^-k`. Source:
    "Learning to learn by gradient descent by gradient descent" (Andrychowicz et al.,
    2016), appendix A.
    """
    log = jnp.log(jnp.abs(grad) + _EPS) / k
    return jnp.maximum(log, -1), jnp.clip(grad * math.exp(k), -1, 1)
