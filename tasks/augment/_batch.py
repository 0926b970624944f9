"""Smaller batches than the family's."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._base import TaskFamily
from ._strength import Strength, check_share, uniform
from ._wrap import wrap

_SALT = 0xBA7C4  # keeps the fraction's draw apart from the family's own


def reduced_batch(family: TaskFamily, fraction: Strength) -> TaskFamily:
    r"""Trains on the first n examples of every batch.

    .. math:: n = \max(1, \lfloor f B \rfloor)

    of B, so that gradients are noisier. Batches of other splits are cut, too.

    Args:
      family: one whose batches are arrays that all lead with the examples, and whose
        loss takes any number of them.
      fraction: f. Of a pair (low, high) every task draws its own, uniformly; batches
        then keep their size, which saves no time: they hold the first n examples B / n
        times, n rounded down to a divisor of B, so that the mean over the batch is the
        mean over these n.

    Raises:
      ValueError: a fraction that is not from 0 to 1, or a family with other batches.

    Example:
      >>> from l2o.tasks import image_mlp, reduced_batch
      >>> family = image_mlp(["digits"], (8,), batch_size=16)
      >>> reduced_batch(family, (0.1, 1.0)).name
      'mlp8/reduced-batch'

    Source: VeLO (Metz et al., 2022), with f in (0.01, 1).
    """
    check_share("fraction", fraction)

    # Here, because inside a compiled program the message would come much later.
    _check(family, fraction)

    def draws(key):
        if not isinstance(fraction, Sequence):
            return {}
        return {"fraction": uniform(key, fraction)}

    def change(task, config):
        def batch(key, split):
            whole = task.batch(key, split)
            size = _size(whole, family.name)
            if not isinstance(fraction, Sequence):
                return _first(whole, _kept(fraction, size))
            divisors = jnp.array([n for n in range(1, size + 1) if size % n == 0])
            allowed = jnp.maximum(1, jnp.floor(config["fraction"] * size))
            n = jnp.max(jnp.where(divisors <= allowed, divisors, 1))
            index = jnp.arange(size) % n
            return jax.tree.map(lambda x: x[index], whole)

        return task._replace(batch=batch)

    return wrap(family, "reduced-batch", change, draws, _SALT)


def _kept(fraction: float, size: int) -> int:
    return max(1, int(fraction * size))


def _first(batch: Any, count: int) -> Any:
    return jax.tree.map(lambda x: x[:count], batch)


def _check(family: TaskFamily, fraction: Strength) -> None:
    """Raises `ValueError` where batches are not examples, or must be of one size."""

    def loss(key, data):
        task = family.task(family.sample(key), data)
        params, model_state = task.init(key)
        batch = task.batch(key, "train")
        size = _size(batch, family.name)
        if isinstance(fraction, Sequence):
            return ()
        kept = _kept(fraction, size)
        try:
            return task.loss(params, model_state, key, _first(batch, kept))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the loss of {family.name!r} takes batches of {size} examples and not "
                f"of {kept}: give a pair (low, high) as fraction, which keeps the "
                "size, or leave reduced_batch out for this family"
            ) from error

    jax.eval_shape(loss, jax.random.key(0), family.data)


def _size(batch: Any, name: str) -> int:
    """How many examples a batch has."""
    shapes = [x.shape for x in jax.tree.leaves(batch)]
    sizes = {shape[:1] for shape in shapes}
    # A single vector is more likely one draw of noise than a batch of numbers.
    if len(sizes) != 1 or () in sizes or (len(shapes) == 1 and len(shapes[0]) == 1):
        raise ValueError(
            "reduced_batch needs batches whose arrays all lead with the same number of "
            f"examples; those of {name!r} have shapes {shapes}: leave it out for this "
            "family"
        )
    ((size,),) = sizes
    return size
