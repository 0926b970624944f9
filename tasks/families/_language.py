"""Language models: recurrent ones and transformers over bytes or word pieces."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._adapters import from_functions
from .._base import TaskFamily, clipped
from .._choices import Choices
from ..data import Dataset, load_all
from ..models import make_model
from ._supervised import number_of_classes

_BYTES = (128, 256)  # of ASCII, of any text


def language_model(
    model: str = "transformer",
    datasets: Sequence[str | Dataset] = ("python_docs",),
    *,
    options: Mapping[str, Any] | None = None,
    length: int = 32,
    vocabulary: int | None = None,
    batch_size: int = 8,
    activation: str | Sequence[str] = "gelu",
    initializer: str | Sequence[str] | None = None,
    init_scale: tuple[float, float] = (1.0, 1.0),
    name: str = "",
) -> TaskFamily:
    r"""Prediction of the next token.

    .. math:: L = -\frac{\sum_{b,t} m_{bt} \log p(y_{bt} \mid x_{b,\le t})}
                        {\sum_{b,t} m_{bt}}, \quad m = [x \ne 0]

    Args:
      model: "transformer" or "recurrent", see `l2o.tasks.models`.
      datasets: names of texts, or datasets of tokens x, y (n, length); each task draws
        one.
      options: of the model, such as `{"core": "gru", "size": 64}`.
      length: tokens of a window.
      vocabulary: word pieces; None for bytes, 128 of them where the text is ASCII.
      batch_size: windows per inner step.
      activation, initializer, init_scale: see `Choices`.
      name: for reports; model-text by default.

    As a meta-loss it is clipped to `[0, 1.5 log V]`.

    Raises:
      ValueError: unknown names, or tokens that the vocabulary does not have.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("language_model", options={"width": 16}, length=8)

    Source: the language models of google/learned_optimization (2021); padding, id 0,
    does not count.
    """
    geometry: dict[str, Any] = {"length": length}
    if vocabulary is not None:
        geometry["vocabulary"] = vocabulary
    loaded = load_all(datasets, **geometry)
    most = max(number_of_classes(d) or 0 for d in loaded)
    outputs = vocabulary or next((n for n in _BYTES if most <= n), most)
    if outputs < most:
        raise ValueError(
            f"a vocabulary of {outputs} has no token {most - 1}, which is in the data"
        )

    def output_loss(logits, batch):
        return masked_cross_entropy(logits, batch["y"], batch["x"] != 0)

    return from_functions(
        make_model(model, outputs, options or {}),
        output_loss,
        loaded,
        Choices(activation, initializer, init_scale),
        batch_size=batch_size,
        normalize=clipped(1.5 * math.log(outputs)),
        name=name
        or "-".join([model, *(d if isinstance(d, str) else "data" for d in datasets)]),
    )


def masked_cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
    """Softmax cross-entropy: its mean over the positions where `mask` (...) is true."""
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    losses = jax.nn.logsumexp(logits, -1) - jnp.sum(one_hot * logits, -1)
    return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1)
