"""`rnnprop`: an LSTM per coordinate on the two ratios of Adam and RMSprop."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer
from .._options import takes
from .._tensors import is_held, map_tensors, square_root, zeros_like
from .._transformation import transformation
from ..names import check_known
from ..recurrent._cell import init_linear, linear
from ..recurrent._coordinatewise import (
    StackState,
    apply_stack,
    init_sonnet_lstm,
    init_stack,
    init_torch_linear,
    init_torch_lstm,
    merge_biases,
)
from ..rule._rule import Untouched, check_untouched

_EPS = 1e-8
# Signed step and deviation of the initial states.
_PUBLISHED = {"open_l2o": (0.01, 0.0), "ms4l2o": (-0.1, 0.01)}


class RNNPropState(NamedTuple):
    """State of `rnnprop`: 328 bytes per parameter by default."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    mean: Any  # tree like params, float32: first moment m
    square: Any  # tree like params, float32: second moment v
    lstm: StackState
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(old={"layers": "hidden_layers"})
def rnnprop(
    *,
    variant: str = "open_l2o",
    hidden_size: int = 20,
    hidden_layers: int = 2,
    b1: float = 0.95,
    b2: float = 0.95,
    step_mult: float | None = None,
    state_scale: float | None = None,
    seed: int = 0,
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Coordinate-wise LSTM on Adam's and RMSprop's directions (RNNprop).

    .. math:: \tilde m = \hat m / (\sqrt{\hat v} + \epsilon), \quad
              \tilde g = g / (\sqrt{\hat v} + \epsilon), \quad
              h' = \mathrm{LSTM}_\theta(\mathrm{elu}(W [\tilde m, \tilde g] + c), h),
              \quad p \leftarrow p \pm \lambda \tanh(w^\top h' + b)

    with bias-corrected moments. No coordinate moves by more than lambda in one update;
    there is no other learning rate to choose.

    Args:
      variant: which published implementation. "open_l2o" (6 641 meta-parameters):
        inputs in the order above, plus, lambda = 0.01, zero initial states, weights as
        Sonnet draws them. "ms4l2o" (6 801): inputs swapped, minus, lambda = 0.1, normal
        initial states of deviation 0.01, PyTorch's LSTM with its two biases.
      hidden_size, hidden_layers: the first linear layer and the stack of LSTMs.
      b1, b2: fixed decays of the moments.
      step_mult: lambda; None is the variant's own.
      state_scale: deviation of the initial states; None is the variant's own.
      seed: of the initial states. The published ones are drawn anew for every run;
        here `init` is a function of the shapes and this number.
      untouched: what becomes of entries that have had no gradient: "held", or "pushed"
        by the network, as published.

    Raises:
      ValueError: unknown `variant`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.rnnprop()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params))

    Source: "Learning gradient descent: better generalization and longer horizons" (Lv
    et al., 2017), as in Open-L2O and in "Towards constituting mathematical structures
    for learning to optimize" (Liu et al., 2023).
    """
    arguments = checked(rnnprop, locals())
    check_known("variant", variant, _PUBLISHED)
    holds = check_untouched(untouched)
    torch = variant == "ms4l2o"
    step, scale = _PUBLISHED[variant]
    if step_mult is not None:
        step = -step_mult if torch else step_mult
    if state_scale is not None:
        scale = state_scale

    def init_theta(key):
        in_key, *keys, out_key = jax.random.split(key, hidden_layers + 2)
        new_linear = init_torch_linear if torch else init_linear
        new_lstm = init_torch_lstm if torch else init_sonnet_lstm
        return {
            "linear_in": new_linear(in_key, 2, hidden_size),
            **{
                f"lstm_{i}": new_lstm(k, hidden_size, hidden_size)
                for i, k in enumerate(keys)
            },
            "linear_out": new_linear(out_key, hidden_size, 1),
        }

    def bind(theta, *, num_steps=None):
        del num_steps
        stack = [theta[f"lstm_{i}"] for i in range(hidden_layers)]
        if torch:
            stack = [merge_biases(weights) for weights in stack]

        def update_tensor(grad, _, mean, square, hidden, cell, unbias):
            mean = b1 * mean[0] + (1 - b1) * grad
            square = b2 * square[0] + (1 - b2) * grad * grad
            root = square_root(square * unbias[1]) + _EPS
            ratios = [mean * unbias[0] / root, grad / root]
            x = jnp.stack(ratios[::-1] if torch else ratios, -1)
            x = jax.nn.elu(linear(theta["linear_in"], x))
            x, hidden, cell = apply_stack(
                stack, x, hidden, cell, forget_bias=0.0 if torch else 1.0
            )
            out = jnp.tanh(linear(theta["linear_out"], x)[..., 0])
            if holds:
                out = jnp.where(is_held(mean, square), 0.0, out)
            return step * out, (mean,), (square,), hidden, cell

        def init_fn(params):
            return RNNPropState(
                count=jnp.zeros([], jnp.int32),
                mean=zeros_like(params, jnp.float32),
                square=zeros_like(params, jnp.float32),
                lstm=init_stack(
                    params, hidden_layers, hidden_size, scale=scale, seed=seed
                ),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del params, extra_args
            count = optax.safe_increment(state.count)
            decays = jnp.asarray([b1, b2], jnp.float32)
            updates, mean, square, hidden, cell = map_tensors(
                functools.partial(
                    update_tensor, unbias=1 / (1 - decays ** count.astype(jnp.float32))
                ),
                updates,
                updates,
                (state.mean,),
                (state.square,),
                state.lstm.hidden,
                state.lstm.cell,
            )
            lstm = StackState(hidden, cell)
            return updates, RNNPropState(count, mean[0], square[0], lstm)

        return transformation(init_fn, update_fn, name="rnnprop")

    return LearnedOptimizer(init_theta, bind, "rnnprop", arguments, ())
