"""What there is: architectures, weights of the package, weights of others."""

import inspect
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ._base import LearnedOptimizer
from ._registry import factories, find_factory, make
from .files._frozen import load_unbound, shipped
from .files._hub import IMPORTABLE


class Available(NamedTuple):
    """One optimizer, or one set of weights.

    Attributes:
      name: what `l2o.make` (an architecture) or `l2o.load` (weights) is given.
      kind: "architecture", "shipped" or "importable": the last are others' weights,
        fetched only with `download=True`.
      optimizer: its architecture, with the arguments the weights need.
      meta_parameters: size of theta.
      state_bytes: bytes of state per float32 parameter of a large matrix.
      needs: of "params", "value", "num_steps" and "learning_rate".
      source: paper and year.
    """

    name: str
    kind: Literal["architecture", "shipped", "importable"]
    optimizer: LearnedOptimizer
    meta_parameters: int
    state_bytes: float
    needs: tuple[str, ...]
    source: str


def available() -> list[Available]:
    """Every architecture and every set of weights that can be loaded.

    Architectures of other distributions that cannot be imported are left out.

    Example:
      >>> import l2o
      >>> [x.needs for x in l2o.available() if x.name == "celo"]
      [('params', 'value', 'num_steps')]
    """
    rows = [_row(name, "architecture", make(name)) for name in factories().usable()]
    rows += [_row(name, "shipped", load_unbound(name)[0]) for name in shipped()]
    rows += [
        _row(name, "importable", make(factory, **arguments))
        for name, (factory, arguments) in IMPORTABLE.items()
    ]
    return rows


def _row(
    name: str,
    kind: Literal["architecture", "shipped", "importable"],
    optimizer: LearnedOptimizer,
) -> Available:
    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(theta))

    def state_bytes(rows):
        # Of so many columns that the row and column moments vanish beside the matrix.
        param = jax.ShapeDtypeStruct((rows, 8192), jnp.float32)
        state = jax.eval_shape(
            lambda theta, p: optimizer.bind(theta, num_steps=1).init(p), theta, param
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    per_parameter = (state_bytes(8192) - state_bytes(4096)) / (4096 * 8192)
    return Available(
        name,
        kind,
        optimizer,
        size,
        round(per_parameter, 1),
        optimizer.needs,
        _source(optimizer.name),
    )


def _source(name: str) -> str:
    """The last paragraph of the factory's docstring."""
    doc = inspect.getdoc(find_factory(name)) or ""
    return " ".join(doc.partition("Source:")[2].split()).rstrip(".")
