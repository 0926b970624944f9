"""Worse data: fewer training examples, wrong labels."""

from collections.abc import Callable
from typing import Any

import jax

from .._base import TaskFamily
from ..data import Dataset, View
from ._strength import Strength, check_share, uniform
from ._wrap import wrap

_SALT_FRACTION = 0x7235C  # these keep the draws apart from the family's own
_SALT_NOISE = 0x1ABE1


def truncated_data(family: TaskFamily, fraction: Strength) -> TaskFamily:
    r"""Training sees only the first `max(1, floor(f n))` of n training examples.

    The other splits stay whole: the task overfits, and its validation loss tells. All
    tasks share the dataset on the device.

    Args:
      family: one whose data are datasets.
      fraction: f; of a pair (low, high) every task draws its own, uniformly. Of several
        truncations the fractions multiply.

    Raises:
      ValueError: a fraction that is not from 0 to 1, or a family without datasets.

    Example:
      >>> from l2o.tasks import image_mlp, truncated_data
      >>> truncated_data(image_mlp(["digits"], (8,)), (0.0, 1.0)).name
      'mlp8/truncated'

    Source: VeLO (Metz et al., 2022), in a fifth of its image MLPs.
    """
    check_share("fraction", fraction)
    _check_datasets("truncated_data", family)

    def view(data, config):
        return _viewed(
            data, lambda v: v._replace(fraction=v.fraction * config["fraction"])
        )

    def draws(key):
        return {"fraction": uniform(key, fraction)}

    return wrap(family, "truncated", _same, draws, _SALT_FRACTION, view)


def label_noise(family: TaskFamily, probability: Strength) -> TaskFamily:
    """Some training examples carry another one's label, the same in every epoch.

    Which ones, and which labels, is drawn once per task. The other splits keep theirs.
    Of C equally frequent labels a share of `probability * (1 - 1/C)` is wrong.

    Args:
      family: one whose data are datasets with labels y.
      probability: that an example is concerned; of a pair (low, high) every task draws
        its own, uniformly.

    Raises:
      ValueError: a probability that is not from 0 to 1, or a family without such data.

    Example:
      >>> from l2o.tasks import image_mlp, label_noise
      >>> label_noise(image_mlp(["digits"], (8,)), 0.2).name
      'mlp8/label-noise'

    Source: Zhang et al. (2017), "Understanding deep learning requires rethinking
    generalization".
    """
    check_share("probability", probability)
    _check_datasets("label_noise", family, "y")

    def view(data, config):
        p = config["probability"]

        def noisier(v):
            # Two noises: wrong unless neither struck.
            both = 1 - (1 - p) * (1 - v.label_noise)
            return v._replace(label_noise=both, key=config["key"])

        return _viewed(data, noisier)

    def draws(key):
        k_probability, k_examples = jax.random.split(key)
        return {"probability": uniform(k_probability, probability), "key": k_examples}

    return wrap(family, "label-noise", _same, draws, _SALT_NOISE, view)


def _same(task, config):
    del config
    return task


def _is_dataset(x: Any) -> bool:
    return isinstance(x, Dataset | View)


def _viewed(data: Any, change: Callable[[View], View]) -> Any:
    """The data with `change` of every dataset's view."""

    def one(x):
        if not _is_dataset(x):
            return x
        return change(x if isinstance(x, View) else View(x))

    return jax.tree.map(one, data, is_leaf=_is_dataset)


def _check_datasets(name: str, family: TaskFamily, entry: str = "") -> None:
    found = [
        x for x in jax.tree.leaves(family.data, is_leaf=_is_dataset) if _is_dataset(x)
    ]
    if not found:
        raise ValueError(
            f"{name} needs a family whose data are datasets of l2o.tasks, and "
            f"{family.name!r} has none: put a Dataset into TaskFamily.data and draw "
            "with sample_batch, or leave it out for this family"
        )
    lacking = [sorted(x.train) for x in found if entry and entry not in x.train]
    if lacking:
        raise ValueError(
            f"{name} needs datasets with {entry!r}; one of {family.name!r} has only "
            f"{', '.join(lacking[0])}: leave it out for this family"
        )
