"""A model written in flax or haiku, with a dataset, as a task."""

from collections.abc import Callable
from typing import Any

import jax

from ._base import Task, TaskFamily
from .data import Dataset, sample_batch

# (model output, batch) -> scalar loss
OutputLoss = Callable[[Any, dict[str, jax.Array]], jax.Array]
Normalize = Callable[[jax.Array], jax.Array]


def from_linen(
    module: Any,
    loss: OutputLoss,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    normalize: Normalize = lambda loss: loss,
    name: str = "",
) -> TaskFamily:
    """A flax linen module as a family of one task.

    The module is called as `module(batch["x"])`; collections other than "params" are
    the model state; the "dropout" stream is seeded on every step.

    Args:
      module: a `flax.linen.Module`.
      loss: `(output, batch) -> scalar`.
      dataset: its "x" is the module's input.
      batch_size: examples per inner step.
      normalize: see `Task`.
      name: for reports.

    Example:
      >>> import flax.linen as nn
      >>> from l2o.tasks import cross_entropy, digits, from_linen
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(10)(x.reshape(len(x), -1))
      >>> family = from_linen(
      ...     Model(), lambda logits, batch: cross_entropy(logits, batch["y"]), digits()
      ... )
    """

    def init(key, x):
        variables = dict(module.init({"params": key, "dropout": key}, x))
        return variables.pop("params", {}), variables

    def apply(params, state, key, x):
        variables = {"params": params, **state}
        rngs = {"dropout": key}
        if not state:
            return module.apply(variables, x, rngs=rngs), state
        return module.apply(variables, x, rngs=rngs, mutable=list(state))

    return _supervised(init, apply, loss, dataset, batch_size, normalize, name)


def from_nnx(
    make_module: Callable[[Any], Any],
    loss: OutputLoss,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    normalize: Normalize = lambda loss: loss,
    name: str = "",
) -> TaskFamily:
    """A flax nnx module as a family of one task.

    The module is called as `module(batch["x"])`; `nnx.Param`s are trained, everything
    else (batch statistics, random streams) is the model state.

    Args:
      make_module: `rngs -> module`, the module's constructor.
      loss, dataset, batch_size, normalize, name: as in `from_linen`.

    Example:
      >>> from flax import nnx
      >>> from l2o.tasks import digits, from_nnx
      >>> family = from_nnx(
      ...     lambda rngs: nnx.Conv(1, 1, (3, 3), rngs=rngs),
      ...     lambda out, batch: ((out - batch["x"]) ** 2).mean(),
      ...     digits(),
      ... )
    """
    from flax import nnx

    split: Any = nnx.split  # its type depends on the filters
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    graph, _, _ = split(abstract, nnx.Param, ...)

    def init(key, x):
        del x
        _, params, state = split(make_module(nnx.Rngs(key)), nnx.Param, ...)
        return params, state

    def apply(params, state, key, x):
        del key  # nnx keeps its random streams in the model state
        # A copy: the module updates its variables in place, the caller's otherwise.
        module = nnx.merge(graph, params, state, copy=True)
        output = module(x)
        _, _, state = split(module, nnx.Param, ...)
        return output, state

    return _supervised(init, apply, loss, dataset, batch_size, normalize, name)


def from_haiku(
    transformed: Any,
    loss: OutputLoss,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    normalize: Normalize = lambda loss: loss,
    name: str = "",
) -> TaskFamily:
    """A haiku function, transformed with state, as a family of one task.

    Args:
      transformed: from `hk.transform_with_state(f)`, f called as `f(batch["x"])`.
      loss, dataset, batch_size, normalize, name: as in `from_linen`.

    Example:
      >>> import haiku as hk
      >>> from l2o.tasks import cross_entropy, digits, from_haiku
      >>> model = hk.transform_with_state(
      ...     lambda x: hk.Linear(10)(x.reshape(len(x), -1))
      ... )
      >>> family = from_haiku(
      ...     model, lambda logits, batch: cross_entropy(logits, batch["y"]), digits()
      ... )
    """
    return _supervised(
        transformed.init,
        transformed.apply,
        loss,
        dataset,
        batch_size,
        normalize,
        name,
    )


def _supervised(init, apply, loss, dataset, batch_size, normalize, name) -> TaskFamily:
    def task(config, data):
        del config

        def init_fn(key):
            # Initialisation needs shapes only, so one example is as good as a batch.
            return init(key, data.train["x"][:1])

        def batch_fn(key, split):
            return sample_batch(data, split, key, batch_size)

        def loss_fn(params, model_state, key, batch):
            output, model_state = apply(params, model_state, key, batch["x"])
            return loss(output, batch), (model_state, {})

        return Task(init_fn, batch_fn, loss_fn, normalize)

    return TaskFamily(lambda key: (), task, dataset, name)
