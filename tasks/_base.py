"""Inner problems: what a learned optimizer is trained on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from .data import Stream

Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")


def _identity(loss: jax.Array) -> jax.Array:
    return loss


class Task(NamedTuple):
    """One inner problem: four pure functions.

    Attributes:
      init: `key -> (params, model_state)`. `model_state` is what the model carries that
        is not trained (batch-norm averages); `()` where there is none.
      batch: `(key, split) -> batch`, drawn on the device; `split` is one of `SPLITS`.
      loss: `(params, model_state, key, batch) -> (loss, (model_state, aux))`; `aux` is
        a dict of scalars. Models with a training mode (dropout, batch norm) are in it,
        in evaluations too.
      normalize: `loss -> loss`, applied to the *meta*-loss only: bounds it, so that one
        diverging run cannot dominate a meta-gradient. Identity by default.

    `stateless` makes one from plain functions without state and aux.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    batch: Callable[[jax.Array, Split], Any]
    loss: Callable[[Any, Any, jax.Array, Any], tuple[jax.Array, tuple[Any, dict]]]
    normalize: Callable[[jax.Array], jax.Array] = _identity


class TaskFamily(NamedTuple):
    """A distribution of tasks that share one compiled program.

    Attributes:
      sample: `key -> config`, a pytree of arrays; may be vmapped.
      task: `(config, data) -> Task`; config may be traced, so shapes must not depend on
        it. Families of different shapes are different families.
      data: pytree of arrays on the device, the same for every config. It is an argument
        of the compiled program; a dataset that `task` closes over would be compiled in.
      name: for reports.
      stream: renews `data` as a run goes on, see `with_stream`; None if they stay.
    """

    sample: Callable[[jax.Array], Any]
    task: Callable[[Any, Any], Task]
    data: Any = ()
    name: str = ""
    stream: "Stream | None" = None


def stateless(
    init: Callable[[jax.Array], Any],
    batch: Callable[[jax.Array, Split], Any],
    loss: Callable[[Any, jax.Array, Any], jax.Array],
    normalize: Callable[[jax.Array], jax.Array] = _identity,
) -> Task:
    """A `Task` from functions that carry no model state.

    Args:
      init: `key -> params`.
      batch: `(key, split) -> batch`.
      loss: `(params, key, batch) -> loss`.
      normalize: as in `Task`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.tasks import stateless
      >>> task = stateless(
      ...     init=lambda key: jax.random.normal(key, (3,)),
      ...     batch=lambda key, split: jax.random.normal(key, (3,)),
      ...     loss=lambda x, key, noise: jnp.sum((x + 0.1 * noise) ** 2),
      ... )
    """

    def loss_fn(params, model_state, key, data):
        return loss(params, key, data), (model_state, {})

    return Task(lambda key: (init(key), ()), batch, loss_fn, normalize)


def clipped(maximum: float) -> Callable[[jax.Array], jax.Array]:
    """A `Task.normalize`: `clip(loss, 0, maximum)`, and NaN counts as `maximum`.

    Source: google/learned_optimization, tasks/fixed (2021): `1.5 log C` for a
    classification loss with C classes.
    """

    def normalize(loss):
        return jnp.clip(jnp.where(jnp.isnan(loss), maximum, loss), 0.0, maximum)

    return normalize
