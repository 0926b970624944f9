"""Inner problems: what a learned optimizer is trained on."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .data import Dataset, Split, Stream


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
      optimum: `(config, data) -> the smallest loss there is` (of the expected loss,
        where batches differ); None where it is not known.
      stream: renews `data` as a run goes on, see `with_stream`; None if they stay.
    """

    sample: Callable[[jax.Array], Any]
    task: Callable[[Any, Any], Task]
    data: Any = ()
    name: str = ""
    optimum: Callable[[Any, Any], jax.Array] | None = None
    stream: Stream | None = None


def stateless(
    init: Callable[[jax.Array], Any],
    batch: Callable[[jax.Array, Split], Any],
    loss: Callable[[Any, jax.Array, Any], Any],
    normalize: Callable[[jax.Array], jax.Array] = _identity,
) -> Task:
    """A `Task` from functions that carry no model state.

    Args:
      init: `key -> params`.
      batch: `(key, split) -> batch`.
      loss: `(params, key, batch) -> loss`, or `(loss, aux)`.
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
        value = loss(params, key, data)
        value, aux = value if isinstance(value, tuple) else (value, {})
        return value, (model_state, aux)

    return Task(lambda key: (init(key), ()), batch, loss_fn, normalize)


def with_stream(family: TaskFamily, *streams: Stream) -> TaskFamily:
    """The family, whose data a run renews at every outer step of that family.

    Args:
      family: made with the streams' windows as datasets.
      streams: of which the windows are renewed; other data of the family stay.

    Raises:
      ValueError: a stream whose window is not in the family's data, or a family that
        has streams already.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks import digits, image_mlp, stream, with_stream
      >>> x = np.zeros((1000, 8, 8, 1), np.float32)
      >>> noise = stream({"x": x, "y": np.arange(1000) % 10}, 100)
      >>> family = with_stream(image_mlp([noise.window, digits()]), noise)
    """
    if family.stream is not None:
        raise ValueError(
            f"the family {family.name!r} has a stream: give it all of them at once"
        )
    datasets, structure = jax.tree.flatten(
        family.data, is_leaf=lambda x: isinstance(x, Dataset)
    )
    for each in streams:
        if not any(x is each.window for x in datasets):
            raise ValueError(
                f"the family {family.name!r} has not been made with this stream: give "
                "its `window` to the family in place of a dataset"
            )

    def chunks(cursor: int) -> Iterator[Any]:
        for renewed in zip(*(each.chunks(cursor) for each in streams), strict=True):
            chunk_of = {id(s.window): c for s, c in zip(streams, renewed, strict=True)}
            data = [chunk_of.get(id(x), x) for x in datasets]
            yield jax.tree.unflatten(structure, data)

    return family._replace(stream=Stream(family.data, chunks))


def clipped(maximum: float) -> Callable[[jax.Array], jax.Array]:
    """A `Task.normalize`: `clip(loss, 0, maximum)`, and NaN counts as `maximum`.

    Source: google/learned_optimization, tasks/fixed (2021): `1.5 log C` for a
    classification loss with C classes.
    """

    def normalize(loss):
        return jnp.clip(jnp.where(jnp.isnan(loss), maximum, loss), 0.0, maximum)

    return normalize


def logarithm(maximum: float) -> Callable[[jax.Array], jax.Array]:
    """A `Task.normalize` for losses that are to count by their ratios, of all tasks.

    `log(clip(loss, 1e-6, maximum))`, and NaN counts as `maximum`: to halve the loss of
    one task makes up for doubling another's.

    Source: this project.
    """

    def normalize(loss):
        bounded = jnp.clip(jnp.where(jnp.isnan(loss), maximum, loss), 1e-6, maximum)
        return jnp.log(bounded)

    return normalize


def log_scaled(baseline: float) -> Callable[[jax.Array], jax.Array]:
    r"""A `Task.normalize` for losses that fall by orders of magnitude.

    .. math:: (10 + \mathrm{clip}(\log(\ell / \mathrm{baseline}), -10, 1)) / 5

    2 at the baseline, about what guessing one of ten classes costs; 0 where the loss is
    `exp(-10)` of it; NaN and what is not positive count as the worst and the best.

    Args:
      baseline: the loss of a guess, such as the variance of what is predicted.

    Source: the log-loss normalisers of VeLO's autoencoders (Metz et al., 2022).
    """

    def normalize(loss):
        ratio = jnp.log(jnp.maximum(loss / baseline, 1e-30))
        return (10 + jnp.clip(jnp.where(jnp.isnan(loss), 1.0, ratio), -10, 1)) / 5

    return normalize
