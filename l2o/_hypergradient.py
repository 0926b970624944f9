"""A wrapper that adapts the step size of every tensor while it trains."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._base import LearnedOptimizer, require_num_steps, stable_dtypes
from ._wrappers import wrapped


class HypergradientState(NamedTuple):
    """The wrapped state, 2 bytes per parameter and 8 per tensor."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    log_factors: jax.Array  # shape (tensors,), float32
    agreement: jax.Array  # shape (tensors,), float32
    last: Any  # tree like params, bfloat16: the last updates
    learned: Any


def hypergradient(
    learned: LearnedOptimizer,
    *,
    gain: float = 20.0,
    drift: float = 1.0,
    fade: float = 0.0,
    decay: float = 0.9,
    bounds: tuple[float, float] = (0.1, 10.0),
) -> LearnedOptimizer:
    r"""Multiplies the updates of every tensor by a factor that follows its gradients.

    .. math:: c \leftarrow \beta c - (1 - \beta)
              \frac{\langle g, u' \rangle}{|g|\,|u'|}, \quad
              r \leftarrow r + \left(1 - \frac{t}{T}\right)^a \frac{k c + d}{T}, \quad
              p \leftarrow p + e^r u

    with u' the tensor's last update. As long as the loss still falls along the last
    update, it was too short, and the factor grows; where the gradient turns against it,
    the factor shrinks. So a wrong learning rate mends itself within the run, and
    tensors need not share one. Neither scaled losses nor scaled parameters change a
    cosine. A gradient or an update of zero leaves c to decay.

    Args:
      learned: any learned optimizer, whose updates are u; theta is `{"learned",
        "log_gain", "drift", "fade"}`.
      gain: initial value of k; theta holds its logarithm. Over T steps on which the
        gradients agree by 0.1 the factor grows `e^(k/10)`-fold.
      drift: initial value of d, what the factor grows by in T steps of no agreement, as
        a logarithm. So it stays where c is `-d / k`.
      fade: initial value of a; t are the updates made. At zero factors follow as fast
        at the end as at the start, at two the start decides.
      decay: beta.
      bounds: of the factor `e^r`, which begins at one.

    Raises:
      ValueError: gain or bounds that are not positive; no `num_steps`, which is T.

    Example:
      >>> import l2o, jax
      >>> rule = l2o.celo2_base(init="nadam", relative=True, learning_rate=0.03)
      >>> optimizer = l2o.hypergradient(rule)
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)

    Source: "Online learning rate adaptation with hypergradient descent" (Baydin et
    al., 2018), per tensor, multiplicative, with cosines for products and a gain
    relative to the length of the run, which are this project's.
    """
    low, high = bounds
    if gain <= 0:
        raise ValueError(f"gain must be positive, got {gain}")
    if not 0 < low <= 1 <= high:
        raise ValueError(f"bounds must be positive, around one, got {bounds}")

    def init_more(key):
        del key
        return {
            "log_gain": jnp.float32(math.log(gain)),
            "drift": jnp.float32(drift),
            "fade": jnp.float32(fade),
        }

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "hypergradient")
        tx = learned.bind(theta["learned"], num_steps=num_steps)
        gain = jnp.exp(theta["log_gain"])

        def init_fn(params):
            zeros = jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
            last = optax.tree.zeros_like(params, dtype=jnp.bfloat16)
            count = jnp.zeros([], jnp.int32)
            return HypergradientState(count, zeros, zeros, last, tx.init(params))

        def update_fn(updates, state, params=None, **extra_args):
            # What is scaled below is rounded once, by `stable_dtypes`.
            updates = optax.tree.cast(updates, jnp.float32)
            pairs = zip(
                jax.tree.leaves(updates), jax.tree.leaves(state.last), strict=True
            )
            cosines = jnp.array([_cosine(*pair) for pair in pairs])
            agreement = decay * state.agreement - (1 - decay) * cosines
            # Never zero, at which a power has no derivative.
            left = jnp.maximum(1 - state.count / num_steps, 1e-6) ** theta["fade"]
            change = left * (gain * agreement + theta["drift"]) / num_steps
            log_factors = jnp.clip(
                state.log_factors + change,
                math.log(low),
                math.log(high),
            )
            updates, inner = tx.update(updates, state.learned, params, **extra_args)
            structure: Any = jax.tree.structure(updates)
            factors = jax.tree.unflatten(structure, list(jnp.exp(log_factors)))
            updates = jax.tree.map(jnp.multiply, updates, factors)
            count = optax.safe_increment(state.count)
            return updates, HypergradientState(
                count, log_factors, agreement, updates, inner
            )

        return stable_dtypes(init_fn, update_fn)

    arguments = {
        "gain": gain,
        "drift": drift,
        "fade": fade,
        "decay": decay,
        "bounds": list(bounds),
    }
    joined = wrapped("hypergradient", {"learned": learned}, arguments, bind, init_more)
    needs = tuple(dict.fromkeys((*learned.needs, "num_steps")))
    return joined._replace(needs=needs)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the angle between two tensors; 0 if one of them is zero."""
    b = b.astype(jnp.float32)
    # Largest entries of one: squares neither overflow nor vanish.
    a, b = (x / _or_one(jnp.max(jnp.abs(x), initial=0.0)) for x in (a, b))
    squares = jnp.sum(a * a) * jnp.sum(b * b)
    some = squares > 0  # of a root at zero the derivative is infinite
    return jnp.where(some, jnp.sum(a * b) / jnp.sqrt(_or_one(squares)), 0.0)


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1.0)
