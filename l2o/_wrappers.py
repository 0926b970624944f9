"""Wrappers: a learned optimizer in, a learned optimizer with one property more out."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._accumulators import state_zeros
from ._arguments import check_num_steps, check_number, checked, log_of
from ._base import (
    LearnedOptimizer,
    require_params,
    require_value,
)
from ._tensors import zeros_like
from ._transformation import transformation

_NOMINAL = ("sgd", "sgdm", "aggmo", "adam", "adam_aggmo")


def weight_decay(
    optimizer: LearnedOptimizer,
    rate: Any,
    *,
    kind: Literal["decoupled", "after", "l2"] = "decoupled",
    add_to_loss: bool = True,
) -> LearnedOptimizer:
    r"""Pulls parameters towards zero.

    .. math:: \text{decoupled: } p \leftarrow p + u - w p, \quad
              \text{after: } p \leftarrow (1 - w)(p + u), \quad
              \text{l2: } u = u(g + w p,\; L + w \textstyle\sum p^2)

    Args:
      optimizer: any learned optimizer.
      rate: w per step, a number or a tree of numbers like the parameters. It is not
        multiplied by a learning rate.
      kind: "l2" is what google's wrapper does (its gradient is half that of its loss
        term), "after" what PyLO does to AdafacLO and VeLO.
      add_to_loss: for "l2", whether the loss handed on has the penalty.

    Raises:
      ValueError: unknown kind; `update` called without `params`.

    Example:
      >>> import l2o
      >>> optimizer = l2o.weight_decay(l2o.small_fc(), 1e-5)

    Source: google/learned_optimization, optimizers/optimizer_wrappers.py (2022);
    "Decoupled weight decay regularization" (Loshchilov & Hutter, 2019).
    """
    arguments = checked(weight_decay, locals())
    arguments.pop("optimizer")
    if kind not in ("decoupled", "after", "l2"):
        raise ValueError(f"unknown kind {kind!r}; known: decoupled, after, l2")
    for leaf in jax.tree.leaves(rate, is_leaf=lambda x: x is None):
        check_number("weight_decay", "weight_decay", leaf)

    def rates(params):
        if jax.tree_util.all_leaves([rate]):
            return jax.tree.map(lambda _: rate, params)
        return rate

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            require_params(params, "weight_decay")
            w = rates(params)
            grads = optax.tree.cast(updates, jnp.float32)
            if kind == "l2":
                if value is not None and add_to_loss:
                    penalties = jax.tree.map(
                        lambda p, x: x * jnp.sum(_wide(p) ** 2), params, w
                    )
                    value = value + sum(jax.tree.leaves(penalties))
                grads = jax.tree.map(lambda g, p, x: g + x * _wide(p), grads, params, w)
                return tx.update(grads, state, params, value=value, **extra_args)
            updates, state = tx.update(grads, state, params, value=value, **extra_args)
            after = kind == "after"
            updates = jax.tree.map(
                lambda u, p, x: u - x * (_wide(p) + after * _wide(u)),
                updates,
                params,
                w,
            )
            return updates, state

        return transformation(tx.init, update_fn, name="weight_decay")

    joined = wrapped("weight_decay", {"optimizer": optimizer}, arguments, bind)
    return joined._replace(needs=_with("params", optimizer.needs))


def clip(optimizer: LearnedOptimizer, bound: float = 3.0) -> LearnedOptimizer:
    r"""Cuts every entry of the gradient to a size.

    .. math:: u = u(\min(\max(g, -b), b))

    Args:
      optimizer: any learned optimizer.
      bound: b; 3 as published.

    Example:
      >>> import l2o
      >>> optimizer = l2o.clip(l2o.small_fc(), bound=1.0)

    Source: google/learned_optimization, optimizers/base.py (2021).
    """
    arguments = checked(clip, locals())
    arguments.pop("optimizer")

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def update_fn(updates, state, params=None, **extra_args):
            updates = jax.tree.map(lambda g: jnp.clip(g, -bound, bound), updates)
            return tx.update(updates, state, params, **extra_args)

        return transformation(tx.init, update_fn, name="clip")

    return wrapped("clip", {"optimizer": optimizer}, arguments, bind)


class GraftedState(NamedTuple):
    """The states of both optimizers."""

    direction: Any
    magnitude: Any


def grafted(
    direction: LearnedOptimizer,
    magnitude: LearnedOptimizer,
    *,
    per_tensor: bool = False,
) -> LearnedOptimizer:
    r"""Steps in the direction of one optimizer with the norm of another's.

    .. math:: u = \frac{|u_{magnitude}|}{|u_{direction}|} u_{direction}

    Where the direction is zero, so is the step.

    Args:
      direction, magnitude: learned optimizers; theta is `{"direction", "magnitude"}`.
      per_tensor: whether norms are those of each tensor instead of the whole tree, as
        published.

    Example:
      >>> import l2o
      >>> optimizer = l2o.grafted(l2o.small_fc(), l2o.learnable_adam())

    Source: "Disentangling adaptive gradient methods from learning rates" (Agarwal et
    al., 2020).
    """
    arguments = checked(grafted, locals())
    parts = {name: arguments.pop(name) for name in ("direction", "magnitude")}

    def bind(theta, *, num_steps=None):
        along = direction.bind(theta["direction"], num_steps=num_steps)
        size = magnitude.bind(theta["magnitude"], num_steps=num_steps)

        def init_fn(params):
            return GraftedState(along.init(params), size.init(params))

        def update_fn(updates, state, params=None, **extra_args):
            # What is scaled below is rounded once, by `transformation`.
            updates = optax.tree.cast(updates, jnp.float32)
            u, along_state = along.update(updates, state[0], params, **extra_args)
            v, size_state = size.update(updates, state[1], params, **extra_args)
            if per_tensor:
                updates = jax.tree.map(lambda x, y: x * _ratio(y, x), u, v)
            else:
                updates = optax.tree.scale(_ratio(v, u), u)
            return updates, GraftedState(along_state, size_state)

        return transformation(init_fn, update_fn, name="grafted")

    return wrapped("grafted", parts, arguments, bind)


class HorizonState(NamedTuple):
    """Sums over the steps since the last update that was made."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: calls
    gradient: Any  # tree like params, float32
    loss: jax.Array  # shape (), float32
    inner: Any


def extend_horizon(
    optimizer: LearnedOptimizer, max_steps: int = 150_000
) -> LearnedOptimizer:
    r"""Runs longer than an optimizer was trained for, by averaging gradients.

    .. math:: k = \lceil n / n_{max} \rceil, \quad
              u_t = u(\bar g, \bar L) \text{ where } k | t, \text{ else } 0

    Every k calls the averages of k gradients and losses make one update of the inner
    optimizer, whose horizon is `n // k`; the calls between return zeros. Runs of up to
    `max_steps` steps are not changed.

    Args:
      optimizer: any learned optimizer with a horizon.
      max_steps: the longest run it was trained for; 150 000 as the released VeLO has.

    Raises:
      ValueError: `bind` without `num_steps`, or with a traced one: it decides what is
        compiled.

    Example:
      >>> import l2o, jax
      >>> optimizer = l2o.extend_horizon(l2o.celo(), max_steps=2000)
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=10_000)

    Source: google/learned_optimization, research/general_lopt/prefab.py (2022).
    """
    arguments = checked(extend_horizon, locals())
    parts = {"optimizer": arguments.pop("optimizer")}

    def bind(theta, *, num_steps=None):
        if num_steps is None or isinstance(num_steps, jax.core.Tracer):
            raise ValueError(
                "extend_horizon needs the length of the training run as a number: "
                "`optimizer.bind(theta, num_steps=...)`; for "
                "`optax.inject_hyperparams` name it in static_args"
            )
        check_num_steps("extend_horizon", num_steps)
        k = math.ceil(int(num_steps) / max_steps)
        tx = optimizer.bind(theta, num_steps=int(num_steps) // max(k, 1))
        if k <= 1:
            return tx

        def init_fn(params):
            zeros = zeros_like(params, jnp.float32)
            loss = jnp.zeros([], jnp.float32)
            return HorizonState(jnp.zeros([], jnp.int32), zeros, loss, tx.init(params))

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            # Traced at every step, the inner update says what is missing.
            given, loss = value is not None, state.loss
            if given:
                loss = loss + require_value(value, "extend_horizon")
            gradient = optax.tree.add(state.gradient, updates)
            count = optax.safe_increment(state.count)

            def make(inner):
                mean = optax.tree.scale(1 / k, gradient)
                new, after = tx.update(
                    mean, inner, params, value=loss / k if given else None, **extra_args
                )
                return optax.tree.cast_like(new, updates), after

            def skip(inner):
                return optax.tree.zeros_like(updates), inner

            due = count % k == 0
            updates, inner = lax.cond(due, make, skip, state.inner)
            # Not a product with zero, which would keep what is not finite.
            gradient, loss = jax.tree.map(
                lambda x: jnp.where(due, 0.0, x), (gradient, loss)
            )
            return updates, HorizonState(count, gradient, loss, inner)

        return transformation(init_fn, update_fn, name="extend_horizon")

    joined = wrapped("extend_horizon", parts, arguments, bind)
    return joined._replace(needs=_with("num_steps", optimizer.needs))


class NominalState(NamedTuple):
    """The inner state and the accumulators of the nominal term."""

    inner: Any
    momentum: tuple[Any, ...]  # one tree like params per decay
    rms: Any  # tree like params


def nominal(
    learned: LearnedOptimizer,
    *,
    kind: Literal["sgd", "sgdm", "aggmo", "adam", "adam_aggmo"] = "adam_aggmo",
    step_size: float = 1e-3,
    shrinkage: float = 0.0,
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999),
    rms_decay: float = 0.999,
) -> LearnedOptimizer:
    r"""Adds a hand-designed term to the learned one, for stability (STAR).

    .. math:: p \leftarrow (1 - w) p + u - e^{\theta_s} d, \quad
              d \in \{g,\; m,\; \bar m,\; m r^{-1/2},\; \bar m r^{-1/2}\}

    with m the last momentum, the bar the mean over all of them, and `r = rms + 1e-6`;
    no bias is corrected.

    Args:
      learned: the learned term; theta is `{"learned", "log_step_size"}`.
      kind: which d, in the order above.
      step_size: initial value of the meta-learned step size.
      shrinkage: w per step.
      momentum_decays, rms_decay: of the nominal term's own accumulators.

    Raises:
      ValueError: unknown kind.

    Example:
      >>> import l2o
      >>> optimizer = l2o.nominal(l2o.small_fc(), step_size=1e-2)

    Source: "A closer look at learned optimization: Stability, robustness, and inductive
    biases" (Harrison et al., 2022).
    """
    arguments = checked(nominal, locals())
    arguments.pop("learned")
    if kind not in _NOMINAL:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(_NOMINAL)}")
    log_step_size = log_of("nominal", "step_size", step_size)
    decays = tuple(momentum_decays)

    def init_step_size(key):
        del key
        return {"log_step_size": jnp.float32(log_step_size)}

    def bind(theta, *, num_steps=None):
        tx = learned.bind(theta["learned"], num_steps=num_steps)

        def init_fn(params):
            momentum = tuple(state_zeros(params) for _ in decays)
            return NominalState(tx.init(params), momentum, state_zeros(params))

        def update_fn(updates, state, params=None, **extra_args):
            require_params(params, "nominal")
            grads = optax.tree.cast(updates, jnp.float32)
            steps, inner = tx.update(grads, state.inner, params, **extra_args)
            momentum = tuple(
                optax.tree.update_moment(grads, m, d, 1)
                for m, d in zip(state.momentum, decays, strict=True)
            )
            rms = optax.tree.update_moment(grads, state.rms, rms_decay, 2)
            scale = jnp.exp(theta["log_step_size"])
            term = grads
            if kind in ("sgdm", "adam"):
                term = momentum[-1]
            elif kind != "sgd":
                term = jax.tree.map(lambda *m: sum(m) / len(m), *momentum)
            if kind.startswith("adam"):
                term = jax.tree.map(lambda m, r: m * lax.rsqrt(r + 1e-6), term, rms)
            updates = jax.tree.map(
                lambda u, d, p: _wide(u) - scale * d - shrinkage * _wide(p),
                steps,
                term,
                params,
            )
            return updates, NominalState(inner, momentum, rms)

        return transformation(init_fn, update_fn, name="nominal")

    joined = wrapped("nominal", {"learned": learned}, arguments, bind, init_step_size)
    return joined._replace(
        needs=_with("params", learned.needs),
        starts={**joined.starts, "step_size": ("log_step_size",)},
    )


def float32_updates(optimizer: LearnedOptimizer) -> LearnedOptimizer:
    r"""Returns updates in float32 whatever the gradients have.

    .. math:: p_{bf16} \leftarrow \mathrm{round}(p + u)

    instead of `round(p + round(u))`: `optax.apply_updates` then adds in float32 and
    rounds once, as the published JAX optimizers do for low-precision parameters. Goes
    outermost: other wrappers return the type of the gradients.

    Args:
      optimizer: any learned optimizer.

    Example:
      >>> import l2o
      >>> optimizer = l2o.float32_updates(l2o.small_fc())

    Source: google/learned_optimization (2021).
    """

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def widened(grad):
            kind = jnp.result_type(grad)
            return jnp.asarray(grad, jnp.float32) if _is_float(kind) else grad

        def update_fn(updates, state, params=None, **extra_args):
            updates = jax.tree.map(widened, updates)
            return tx.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update_fn)

    return wrapped("float32_updates", {"optimizer": optimizer}, {}, bind)


def wrapped(
    name: str,
    parts: Mapping[str, LearnedOptimizer],
    arguments: Mapping[str, Any],
    bind: Any,
    init_more: Any = None,
) -> LearnedOptimizer:
    """Joins theta, needs and what is recorded of the parts.

    A single part called "optimizer" keeps its theta; others are entries of the new one.
    """
    alone = parts.get("optimizer")

    def init_theta(key):
        if alone is not None:
            return alone.init_theta(key)
        keys = jax.random.split(key, len(parts) + 1)
        theta = {
            part: inner.init_theta(k)
            for (part, inner), k in zip(parts.items(), keys[1:], strict=True)
        }
        return {**theta, **(init_more(keys[0]) if init_more else {})}

    if alone is not None:
        frozen = alone.frozen
    else:
        frozen = tuple(f"{part}/{k}" for part, x in parts.items() for k in x.frozen)
    needs = {need: None for x in parts.values() for need in x.needs}
    starts: dict[str, tuple[str, ...]] = {}
    for part, inner in reversed(list(parts.items())):
        prefix = "" if alone is not None else f"{part}/"
        starts |= {k: tuple(prefix + x for x in v) for k, v in inner.starts.items()}
    # `load` gives an argument to the outermost optimizer that has one of its name.
    starts = {k: v for k, v in starts.items() if k not in arguments}
    specs = {
        part: {"name": x.name, "arguments": dict(x.arguments)}
        for part, x in parts.items()
    }
    rebuildable = all(x.name for x in parts.values())
    return LearnedOptimizer(
        init_theta,
        bind,
        name if rebuildable else "",
        {**specs, **arguments} if rebuildable else {},
        tuple(needs),
        frozen,
        starts,
    )


def _with(need: str, needs: tuple[str, ...]) -> tuple[str, ...]:
    return needs if need in needs else (*needs, need)


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _ratio(above: Any, below: Any) -> jax.Array:
    above, below = (
        optax.tree.norm(optax.tree.cast(x, jnp.float32), squared=True)
        for x in (above, below)
    )
    # Of a root at zero the derivative is infinite.
    some = (above != 0) & (below != 0)
    above, below = (jnp.sqrt(jnp.where(some, x, 1.0)) for x in (above, below))
    return jnp.where(some, above / below, 0.0)
