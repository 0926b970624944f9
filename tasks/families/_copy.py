"""The copy task: what was seen first is to be said later."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._base import Task, TaskFamily, clipped
from .._choices import ACTIVATIONS, Choices, check_choices
from .._losses import accuracy
from ..models import make_model
from ._language import masked_cross_entropy


def copy_task(
    model: str = "recurrent",
    *,
    options: Mapping[str, Any] | None = None,
    symbols: int = 8,
    length: int = 4,
    delay: int = 4,
    batch_size: int = 32,
    activation: str = "tanh",
    name: str = "",
) -> TaskFamily:
    r"""Sequences that are to be repeated after a pause.

    The input is `length` random symbols, `delay` blanks, a go sign and `length - 1`
    blanks; the output, at the last `length` steps, the symbols in order.

    .. math:: L = -\overline{\log p(s_i \mid x_{\le \mathrm{length} +
              \mathrm{delay} + i})}, \quad s_i \sim U\{2, \dots, \mathrm{symbols} + 1\}

    Each task has its own permutation of the symbols between input and output. All
    sequences are fresh, so the splits do not differ.

    Args:
      model: "recurrent" or "transformer", see `l2o.tasks.models`.
      options: of the model.
      symbols: how many there are; guessing costs their logarithm.
      length: of the sequence.
      delay: of the pause.
      batch_size: sequences per inner step.
      activation: of the model.
      name: for reports.

    As a meta-loss it is clipped to `[0, 1.5 log symbols]`.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("copy_task", symbols=4, length=2, delay=1)

    Source: Hochreiter & Schmidhuber, "Long short-term memory" (1997); Arjovsky et al.,
    "Unitary evolution recurrent neural networks" (2016).
    """
    outputs = symbols + 2  # blank 0, go 1
    check_choices(Choices(activation))
    functions = make_model(model, outputs, options or {})(ACTIVATIONS[activation])
    total = 2 * length + delay
    said = jnp.arange(total) >= length + delay

    def sample(key):
        return {"order": jax.random.permutation(key, symbols)}

    def task(config, data):
        del data

        def batch(key, split):
            del split  # all sequences are fresh
            s = jax.random.randint(key, (batch_size, length), 0, symbols, jnp.int32)
            x = jnp.zeros((batch_size, total), jnp.int32)
            x = x.at[:, :length].set(s + 2).at[:, length + delay].set(1)
            answer = config["order"][s].astype(x.dtype) + 2
            y = jnp.zeros_like(x).at[:, length + delay :].set(answer)
            return {"x": x, "y": y}

        def loss(params, model_state, key, batch):
            logits, model_state = functions.apply(params, model_state, key, batch["x"])
            value = masked_cross_entropy(
                logits, batch["y"], jnp.broadcast_to(said, batch["y"].shape)
            )
            metric = accuracy(
                logits[:, length + delay :], batch["y"][:, length + delay :]
            )
            return value, (model_state, {"accuracy": metric})

        return Task(
            lambda key: functions.init(key, jnp.zeros((1, total), jnp.int32)),
            batch,
            loss,
            clipped(1.5 * math.log(symbols)),
        )

    return TaskFamily(sample, task, name=name or f"copy-{model}")
