"""A hand-designed term beside the learned one."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import checked, log_of
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._tensors import state_zeros
from .._transformation import transformation
from ..names import check_known
from ._wrapped import wide, with_need, wrapped

_NOMINAL = ("sgd", "sgdm", "aggmo", "adam", "adam_aggmo")


class NominalState(NamedTuple):
    """The inner state and the accumulators of the nominal term."""

    inner: Any
    momentum: tuple[Any, ...]  # one tree like params per decay
    rms: Any  # tree like params


@takes(old={"shrinkage": "decay_per_step"})
def nominal(
    learned: LearnedOptimizer,
    *,
    kind: Literal["sgd", "sgdm", "aggmo", "adam", "adam_aggmo"] = "adam_aggmo",
    step_size: float = 1e-3,
    decay_per_step: float = 0.0,
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
      decay_per_step: w per step.
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
    check_known("kind", kind, _NOMINAL)
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
                lambda u, d, p: wide(u) - scale * d - decay_per_step * wide(p),
                steps,
                term,
                params,
            )
            return updates, NominalState(inner, momentum, rms)

        return transformation(init_fn, update_fn, name="nominal")

    joined = wrapped("nominal", {"learned": learned}, arguments, bind, init_step_size)
    return joined._replace(
        needs=with_need("params", learned.needs),
        starts={**joined.starts, "step_size": ("log_step_size",)},
    )
