"""A wrapper that adapts the step size of every tensor while it trains."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked, log_of
from .._base import LearnedOptimizer, require_num_steps
from .._options import takes
from .._tensors import rows_of, state_rows, sums, tree_of, zeros_like
from .._transformation import transformation
from ._wrapped import wrapped


class Factors(NamedTuple):
    """What decides the factors: 2 bytes per parameter and 8 per tensor."""

    log_factors: jax.Array  # shape (tensors with elements,), float32; (1,) without any
    agreement: jax.Array  # the same
    last: Any  # tree like params, float16: the last updates, largest entry one


class HypergradientState(NamedTuple):
    """The wrapped state, and that of the factors."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    num_steps: jax.Array  # shape (), float32: of the run, after which factors stay
    factors: Factors
    learned: Any


@takes(old={"bounds": "factor_bounds"})
def hypergradient(
    learned: LearnedOptimizer,
    *,
    gain: float = 20.0,
    drift: float = 1.0,
    fade: float = 0.0,
    decay: float = 0.9,
    factor_bounds: tuple[float, float] = (0.1, 10.0),
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
    cosine. A gradient or an update of zero leaves c to decay. The factor of a tensor
    stays one until it has a gradient.

    Args:
      learned: any learned optimizer without weight decay, which the factor would
        multiply too; its updates are u. Theta is `{"learned", "log_gain", "drift",
        "fade"}`.
      gain: initial value of k; theta holds its logarithm. Over T steps on which the
        gradients agree by 0.1 the factor grows `e^(k/10)`-fold.
      drift: initial value of d, what the factor grows by in T steps of no agreement, as
        a logarithm. So it stays where c is `-d / k`.
      fade: initial value of a; t are the updates made. At zero factors follow as fast
        at the end as at the start, at two the start decides.
      decay: beta.
      factor_bounds: of the factor `e^r`, which begins at one.

    Raises:
      ValueError: gain or factor_bounds that are not positive; a wrapped weight
        decay; no `num_steps`, which is T.

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
    arguments = checked(hypergradient, locals())
    arguments.pop("learned")
    check_bounds(factor_bounds)
    refuse_decay("hypergradient", learned)
    log_gain = log_of("hypergradient", "gain", gain)

    def init_more(key):
        del key
        return factor_theta(log_gain, drift, fade)

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "hypergradient")
        tx = learned.bind(theta["learned"], num_steps=num_steps)

        def init_fn(params):
            count = jnp.zeros([], jnp.int32)
            return HypergradientState(
                count, jnp.array(num_steps), init_factors(params), tx.init(params)
            )

        def update_fn(updates, state, params=None, **extra_args):
            # What is scaled below is rounded once, by `transformation`.
            grads = optax.tree.cast(updates, jnp.float32)
            factors = follow(
                theta,
                state.factors,
                *_told(grads, state.factors.last),
                state.count / num_steps,
                num_steps,
                decay=decay,
                bounds=factor_bounds,
            )
            updates, inner = tx.update(grads, state.learned, params, **extra_args)
            updates = scaled_rows(updates, jnp.exp(factors.log_factors))
            count = optax.safe_increment(state.count)
            return updates, HypergradientState(
                count, state.num_steps, remember(factors, updates), inner
            )

        return transformation(init_fn, update_fn, name="hypergradient")

    joined = wrapped("hypergradient", {"learned": learned}, arguments, bind, init_more)
    needs = tuple(dict.fromkeys((*learned.needs, "num_steps")))
    return joined._replace(needs=needs, starts={**joined.starts, **FACTOR_STARTS})


def refuse_decay(name: str, learned: LearnedOptimizer) -> None:
    """Raises `ValueError` where a wrapper of this name would multiply a decay."""
    if _decays(learned.name, learned.arguments):
        raise ValueError(
            f"{name} would multiply the weight decay of {learned.name} by its factors: "
            "leave the decay out there, and add it to the result, "
            f"`l2o.decay_weights(l2o.{name}(...), decay_per_step)`"
        )


def _decays(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an optimizer or one that it wraps has weight decay."""
    if name == "decay_weights" or arguments.get("decay_per_step"):
        return True
    own = ("weight_decay", "weight_decay_1d")
    if any(arguments.get(x) is not None and arguments[x] != 0 for x in own):
        return True
    parts = (x for x in arguments.values() if isinstance(x, Mapping))
    return any(_decays(x["name"], x["arguments"]) for x in parts if "arguments" in x)


FACTOR_STARTS = {"gain": ("log_gain",), "drift": ("drift",), "fade": ("fade",)}


def check_bounds(bounds: tuple[float, float]) -> None:
    """Raises `ValueError` unless they are two positive numbers around one."""
    if len(bounds) != 2 or not 0 < bounds[0] <= 1 <= bounds[1]:
        raise ValueError(f"factor_bounds must be positive, around one, got {bounds}")


def factor_theta(log_gain: Any, drift: Any, fade: Any) -> dict[str, jax.Array]:
    """The part of theta that decides how factors follow gradients."""
    parts = {"log_gain": log_gain, "drift": drift, "fade": fade}
    return jax.tree.map(jnp.float32, parts)


def init_factors(params: Any) -> Factors:
    """Factors of one."""
    zeros = jnp.zeros(state_rows(params), jnp.float32)
    return Factors(zeros, zeros, zeros_like(params, jnp.float16))


def scaled_rows(tree: Any, by: jax.Array) -> Any:
    """Each tensor with elements times its number of `by`."""
    rows = rows_of(tree, tree)
    return tree_of(tree, [x * by[i] for i, x in enumerate(rows)])


def _told(grads: Any, last: Any) -> tuple[jax.Array, jax.Array]:
    """The cosines of gradients and last updates, and which tensors are idle."""
    pairs = list(zip(rows_of(grads, grads), rows_of(grads, last), strict=True))
    if not pairs:
        return jnp.zeros(1), jnp.ones(1, bool)
    cosines = jnp.stack([cosine(*pair) for pair in pairs])
    return cosines, jnp.stack([is_idle(g) for g, _ in pairs])


def follow(
    theta: Any,
    factors: Factors,
    cosines: jax.Array,
    idle: jax.Array,
    fraction: jax.Array,
    num_steps: jax.Array,
    *,
    decay: float,
    bounds: tuple[float, float],
) -> Factors:
    """The factors, of `hypergradient`, after gradients have been seen.

    Args:
      theta: with the leaves of `factor_theta`.
      factors: from before; `last` stays as it is.
      cosines: shape (tensors,), of gradients and last updates.
      idle: the same, which gradients are zero.
      fraction: of the run that has been made.
      num_steps: of the run.
      decay, bounds: as for `hypergradient`, there factor_bounds.
    """
    agreement = decay * factors.agreement - (1 - decay) * cosines
    # Never zero, at which a power has no derivative.
    left = jnp.maximum(1 - fraction, 1e-6) ** theta["fade"]
    gain = jnp.exp(theta["log_gain"])
    change = left * (gain * agreement + theta["drift"]) / num_steps
    # What has no gradient, and had none lately, is not to drift.
    change = jnp.where(idle & (jnp.abs(factors.agreement) < 1e-6), 0.0, change)
    low, high = (math.log(bound) for bound in bounds)
    log_factors = jnp.clip(factors.log_factors + change, low, high)
    return Factors(log_factors, agreement, factors.last)


def remember(factors: Factors, updates: Any) -> Factors:
    """The factors, with these as the last updates."""
    return factors._replace(last=jax.tree.map(kept, updates))


def kept(update: jax.Array) -> jax.Array:
    """What is remembered of an update."""
    return _scaled(update).astype(jnp.float16)


def is_idle(grad: jax.Array) -> jax.Array:
    """Whether a tensor has no gradient now."""
    return ~jnp.any(grad != 0)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the angle between two tensors; 0 if one of them is zero."""
    largest = jnp.max(jnp.abs(a), initial=0.0)
    return cosine_of(*sums(lambda a, b: products(a, b, largest), a, b))


def products(
    a: jax.Array, b: jax.Array, largest: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `cosine_of` takes the sums of.

    Args:
      a: entries of one tensor, of which the largest has this size.
      b: of another, of size one at most.
    """
    # Squares neither overflow nor vanish.
    a, b = a / _or_one(largest), b.astype(jnp.float32)
    return a * a, b * b, a * b


def cosine_of(a: jax.Array, b: jax.Array, both: jax.Array) -> jax.Array:
    """Of the angle; 0 if one of the tensors is zero."""
    squares = a * b
    some = squares > 0  # of a root at zero the derivative is infinite
    return jnp.where(some, both / jnp.sqrt(_or_one(squares)), 0.0)


def _scaled(x: jax.Array) -> jax.Array:
    """With a largest entry of size one."""
    return x / _or_one(jnp.max(jnp.abs(x), initial=0.0))


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1.0)
