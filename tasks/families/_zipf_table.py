"""Tables of embeddings of which some rows are used often and most seldom."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily, clipped, log_scaled, stateless
from .._losses import accuracy, cross_entropy

_TEACHER = 8  # width of the table that makes the labels
_SHARPNESS = 3.0  # of the labels' probabilities
Readout = Literal["mlp", "dot"]


def zipf_table(
    readout: Readout = "mlp",
    *,
    rows: int = 2000,
    width: int = 16,
    fields: int = 4,
    classes: int = 8,
    hidden: int = 32,
    exponent: float = 1.0,
    noise: float = 0.3,
    batch_size: int = 64,
    name: str = "",
) -> TaskFamily:
    r"""Prediction from a few ids whose frequencies follow Zipf's law.

    .. math:: P(\mathrm{id} = i) \propto i^{-s}, \quad i = 1, \dots, \mathrm{rows}

    A teacher with tables of its own, drawn for every task, makes the labels. With the
    readout "mlp" an example has `fields` ids of one table. Their embeddings, side by
    side, go through a hidden layer, and the label is one of `classes`, drawn from the
    teacher's probabilities. With "dot" an example is a user and an item, each with a
    table, and its target is the product of two embeddings with noise:

    .. math:: L = \tfrac1B \sum_b (u_{i_b} \cdot v_{j_b} - y_b)^2, \quad
              y = \frac{u^*_i \cdot v^*_j}{\sqrt 8} + \sigma\, \epsilon

    All examples are fresh, so the splits do not differ.

    Args:
      readout: "mlp" or "dot".
      rows: of each table.
      width: of the embeddings.
      fields, classes, hidden: of "mlp".
      exponent: s, of Zipf's law.
      noise: sigma, of "dot".
      batch_size: examples per inner step.
      name: for reports.

    As a meta-loss, cross-entropy is clipped to `[0, 1.5 log classes]`, the squared
    error is `log_scaled` by the variance of the targets, `1 + noise^2`.

    Raises:
      ValueError: another readout.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("zipf_table", rows=500)

    Source: this project; the model of "dot" is that of Koren et al., "Matrix
    factorization techniques for recommender systems" (2009).
    """
    check_known("readout", readout, ("mlp", "dot"))
    mlp = readout == "mlp"
    tables = ("ids",) if mlp else ("users", "items")

    def sample(key):
        k_tables, k_in, k_out = jax.random.split(key, 3)
        frequencies = jnp.arange(1.0, rows + 1) ** -exponent
        config = {
            "cumulated": jnp.cumsum(frequencies) / jnp.sum(frequencies),
            "teacher": jax.random.normal(k_tables, (len(tables), rows, _TEACHER)),
        }
        if mlp:
            fan_in = fields * _TEACHER
            into = jax.random.normal(k_in, (fan_in, hidden)) / math.sqrt(fan_in)
            out = jax.random.normal(k_out, (hidden, classes)) / math.sqrt(hidden)
            config |= {"into": into, "out": _SHARPNESS * out}
        return config

    def batch(config, key):
        k_ids, k_label = jax.random.split(key)
        shape = (batch_size, fields if mlp else 2)
        ids = jnp.searchsorted(config["cumulated"], jax.random.uniform(k_ids, shape))
        ids = jnp.minimum(ids, rows - 1)
        teacher = config["teacher"]
        if mlp:
            seen = jnp.tanh(teacher[0, ids].reshape(batch_size, -1) @ config["into"])
            labels = jax.random.categorical(k_label, seen @ config["out"])
            return {"x": ids, "y": labels}
        product = jnp.sum(teacher[0, ids[:, 0]] * teacher[1, ids[:, 1]], -1)
        error = noise * jax.random.normal(k_label, product.shape)
        return {"x": ids, "y": product / math.sqrt(_TEACHER) + error}

    def init(key):
        k_tables, k_in, k_out = jax.random.split(key, 3)
        drawn = jax.random.normal(k_tables, (len(tables), rows, width))
        params: dict[str, Any] = {
            table: {"embedding": x / math.sqrt(width)}
            for table, x in zip(tables, drawn, strict=True)
        }
        if mlp:
            params["hidden"] = _dense(k_in, fields * width, hidden)
            params["head"] = _dense(k_out, hidden, classes)
        return params

    def loss(params, key, batch):
        del key
        x, y = batch["x"], batch["y"]
        rows_of = [params[table]["embedding"] for table in tables]
        if not mlp:
            product = jnp.sum(rows_of[0][x[:, 0]] * rows_of[1][x[:, 1]], -1)
            return jnp.mean((product - y) ** 2)
        seen = _applied(params["hidden"], rows_of[0][x].reshape(len(x), -1))
        logits = _applied(params["head"], jax.nn.relu(seen))
        return cross_entropy(logits, y), {"accuracy": accuracy(logits, y)}

    normalize = clipped(1.5 * math.log(classes)) if mlp else log_scaled(1 + noise**2)

    def task(config, data):
        del data
        # All examples are fresh, whatever the split.
        return stateless(init, lambda key, _: batch(config, key), loss, normalize)

    return TaskFamily(sample, task, name=name or f"zipf-{readout}-{rows}")


def _dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _applied(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]
