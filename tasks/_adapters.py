"""A model written in flax or haiku, with a dataset, as a task."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ._base import Task, TaskFamily
from ._choices import (
    Activation,
    Choices,
    check_choices,
    chosen_activation,
    chosen_weights,
    pick,
    sample_choices,
)
from .data import Dataset, sample_batch

# (model output, batch) -> loss, or (loss, aux); aux is a dict of scalars.
OutputLoss = Callable[[Any, dict[str, jax.Array]], Any]
Normalize = Callable[[jax.Array], jax.Array]


class Functions(NamedTuple):
    """A model as two pure functions.

    Attributes:
      init: `(key, x) -> (params, model_state)`.
      apply: `(params, model_state, key, x) -> (output, model_state)`.
    """

    init: Callable[[jax.Array, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, jax.Array, Any], tuple[Any, Any]]


def linen_functions(module: Any) -> Functions:
    """A flax linen module: collections other than "params" are the model state."""

    def init(key, x):
        variables = dict(module.init({"params": key, "dropout": key}, x))
        return variables.pop("params", {}), variables

    def apply(params, state, key, x):
        variables = {"params": params, **state}
        rngs = {"dropout": key}
        if not state:
            return module.apply(variables, x, rngs=rngs), state
        return module.apply(variables, x, rngs=rngs, mutable=list(state))

    return Functions(init, apply)


def nnx_functions(make_module: Callable[[Any], Any]) -> Functions:
    """A flax nnx module: all but `nnx.Param` is the model state."""
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

    return Functions(init, apply)


def haiku_functions(transformed: Any) -> Functions:
    """What `hk.transform_with_state` gave."""
    return Functions(transformed.init, transformed.apply)


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
      loss: `(output, batch) -> loss`, a scalar; or `(loss, aux)`, with a dict of
        scalars.
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
    functions = linen_functions(module)
    return _one(functions, loss, dataset, batch_size, normalize, name)


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

    The module is called as `module(batch["x"])`. Its `nnx.Param` variables are trained.
    Everything else (batch statistics, random streams) is the model state.

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
    functions = nnx_functions(make_module)
    return _one(functions, loss, dataset, batch_size, normalize, name)


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
    functions = haiku_functions(transformed)
    return _one(functions, loss, dataset, batch_size, normalize, name)


def from_functions(
    functions: Callable[[Activation], Functions],
    loss: OutputLoss,
    datasets: Sequence[Dataset],
    choices: Choices = Choices(),  # noqa: B008  an immutable NamedTuple
    *,
    batch_size: int = 64,
    normalize: Normalize = lambda loss: loss,
    name: str = "",
) -> TaskFamily:
    """A family of models that differ in activation, initial weights and dataset.

    Args:
      functions: `activation -> (init, apply)`.
      loss: as in `from_linen`.
      datasets: of the same shapes; each task draws one.
      choices: what else each task draws.
      batch_size, normalize, name: as in `from_linen`.

    Raises:
      ValueError: datasets of different shapes, or impossible choices.
    """
    check_choices(choices)
    shapes = {
        tuple((k, x.shape[1:], str(x.dtype)) for k, x in sorted(data.train.items()))
        for data in datasets
    }
    if len(shapes) != 1:
        raise ValueError(
            "a family needs datasets of one shape, not "
            f"{sorted(shapes) or 'none at all'}"
        )

    def sample(key):
        k_choices, k_dataset = jax.random.split(key)
        config = sample_choices(choices, k_choices)
        if len(datasets) > 1:
            index = jax.random.randint(k_dataset, (), 0, len(datasets))
            config["dataset"] = index
        return config

    def task(config, data):
        model = functions(chosen_activation(choices, config))

        def init(key):
            # Initialisation needs shapes only, so one example is as good as a batch.
            example = jax.tree.map(lambda x: x[:1], data[0].train["x"])
            params, state = model.init(key, example)
            k_weights = jax.random.fold_in(key, 1)
            return chosen_weights(choices, config, k_weights, params), state

        def batch(key, split):
            batches = [sample_batch(d, split, key, batch_size) for d in data]
            return jax.tree.map(lambda *x: pick(config.get("dataset", 0), x), *batches)

        def loss_fn(params, model_state, key, batch):
            output, model_state = model.apply(params, model_state, key, batch["x"])
            value = loss(output, batch)
            value, aux = value if isinstance(value, tuple) else (value, {})
            return value, (model_state, aux)

        return Task(init, batch, loss_fn, normalize)

    return TaskFamily(sample, task, tuple(datasets), name)


def _one(functions, loss, dataset, batch_size, normalize, name) -> TaskFamily:
    return from_functions(
        lambda _: functions,
        loss,
        (dataset,),
        batch_size=batch_size,
        normalize=normalize,
        name=name,
    )
