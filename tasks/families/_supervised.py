"""Any model on any dataset with labels: classification and regression."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from l2o.names import check_known

from .._adapters import from_functions
from .._base import TaskFamily, clipped, log_scaled
from .._choices import Choices
from .._losses import accuracy, cross_entropy
from ..data import Dataset, load_all
from ..models import make_model

Loss = Literal["cross_entropy", "one_hot", "squared"]


def supervised(
    model: str,
    datasets: Sequence[str | Dataset],
    *,
    options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    loss: Loss = "cross_entropy",
    batch_size: int = 64,
    activation: str | Sequence[str] = "relu",
    initializer: str | Sequence[str] | None = None,
    init_scale: tuple[float, float] = (1.0, 1.0),
    name: str = "",
) -> TaskFamily:
    r"""A model from `MODELS` on datasets with labels.

    .. math:: L = \tfrac1B \sum_b \ell(f_w(x_b), y_b)

    Args:
      model: "mlp", "conv", "resnet", "vit", "mixer", "signal_conv", "graph_conv" or
        "recurrent".
      datasets: names from `DATASETS`, or datasets, of the same shapes; each task draws
        one. Examples are x and y, y integers or, for "squared", floats.
      options: of the model, such as `{"channels": (16, 32)}`.
      data: of the datasets, such as `{"size": 16}`.
      loss: softmax cross-entropy; the squared distance to the one-hot label, mean over
        classes; or the squared error, mean over targets.
      batch_size: examples per inner step.
      activation, initializer, init_scale: see `Choices`.
      name: for reports; model-dataset by default.

    As a meta-loss, cross-entropy is clipped to `[0, 1.5 log C]`, the others are
    `log_scaled` by what the best constant costs. Classifiers have the metric
    "accuracy".

    Raises:
      ValueError: unknown names, or datasets that do not go together.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family(
      ...     "supervised", model="conv", datasets=("digits",),
      ...     options={"channels": (4, 8)},
      ... )

    Source: the image tasks of google/learned_optimization (2021) and VeLO (Metz et al.,
    2022).
    """
    check_known("loss", loss, ("cross_entropy", "one_hot", "squared"))
    loaded = load_all(datasets, **(data or {}))
    classes = {number_of_classes(d) for d in loaded}
    targets = {d.train["y"].shape[1:] for d in loaded}
    if loss == "squared":
        outputs = max(targets)[-1] if max(targets) else 1
        baseline = float(np.mean([np.var(d.train["y"]) for d in loaded]))
        normalize = log_scaled(baseline)
    elif len(classes) == 1 and None not in classes:
        (outputs,) = classes
        assert outputs is not None
        normalize = clipped(1.5 * math.log(outputs))
        if loss == "one_hot":
            normalize = log_scaled((1 - 1 / outputs) / outputs)
    else:
        raise ValueError(
            f"{loss} needs integer labels of one number of classes; "
            f"{', '.join(map(_name, datasets))} have {sorted(map(str, classes))}"
        )

    def output_loss(output, batch):
        y = batch["y"]
        if loss == "squared":
            return jnp.mean((output.reshape(y.shape) - y) ** 2)
        metrics = {"accuracy": accuracy(output, y)}
        if loss == "one_hot":
            one_hot = y[..., None] == jnp.arange(outputs)
            return jnp.mean((output - one_hot) ** 2), metrics
        return cross_entropy(output, y), metrics

    return from_functions(
        make_model(model, outputs, options or {}),
        output_loss,
        loaded,
        Choices(activation, initializer, init_scale),
        batch_size=batch_size,
        normalize=normalize,
        name=name or "-".join([model, *map(_name, datasets)]),
    )


def number_of_classes(dataset: Dataset) -> int | None:
    """One more than the largest label of any split; None for float labels."""
    if not jnp.issubdtype(dataset.train["y"].dtype, jnp.integer):
        return None
    return 1 + max(int(np.max(split["y"])) for split in dataset)


def _name(dataset: str | Dataset) -> str:
    return dataset if isinstance(dataset, str) else "data"
