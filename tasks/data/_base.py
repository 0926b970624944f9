"""What a dataset is: four disjoint splits of examples, in memory."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.names import check_known

Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")
SHUFFLE_SEED = 0  # splits are a fact of the dataset, not of a run


class Dataset(NamedTuple):
    """Four disjoint splits; each a dict of arrays with a leading example axis.

    Attributes:
      train: what inner training draws batches of.
      inner_valid: what a meta-objective may be measured on.
      outer_valid: what learning rates and checkpoints are chosen by.
      test: what results are reported on, and nothing is chosen by.
    """

    train: dict[str, Any]
    inner_valid: dict[str, Any]
    outer_valid: dict[str, Any]
    test: dict[str, Any]


class View(NamedTuple):
    """A dataset as one task sees it: fewer training examples, some of them mislabelled.

    Everything but the dataset may be traced, so that tasks that see different views
    share the dataset and the program. Other splits than train are seen as they are.

    Attributes:
      dataset: the whole.
      fraction: only the first `max(1, floor(fraction * n))` of the n training examples
        are drawn.
      label_noise: probability that a training example carries the label of another one,
        always the same.
      key: decides which those are.
    """

    dataset: Dataset
    fraction: Any = 1.0
    label_noise: Any = 0.0
    key: Any = None

    @property
    def train(self) -> dict[str, Any]:
        """The training examples of the whole dataset, for their shapes."""
        return self.dataset.train


def sample_batch(
    dataset: Dataset | View, split: Split, key: jax.Array, batch_size: int
) -> dict[str, jax.Array]:
    """`batch_size` examples of a split, drawn uniformly with replacement.

    Raises:
      ValueError: unknown split, or a batch larger than the split.
    """
    check_known("split", split, SPLITS)
    view = None
    if isinstance(dataset, View):
        view, dataset = dataset, dataset.dataset
    arrays = getattr(dataset, split)
    size = len(next(iter(arrays.values())))
    if batch_size > size:
        raise ValueError(
            f"a batch of {batch_size} is larger than the split {split!r} with {size} "
            "examples: choose a smaller batch_size"
        )
    if view is None or split != "train":
        index = jax.random.randint(key, (batch_size,), 0, size)
        return {name: array[index] for name, array in arrays.items()}
    seen = jnp.maximum(1, jnp.floor(view.fraction * size)).astype(jnp.int32)
    index = jax.random.randint(key, (batch_size,), 0, seen)
    batch = {name: array[index] for name, array in arrays.items()}
    if view.key is not None:
        batch["y"] = arrays["y"][_noisy(view, index, size)]
    return batch


def _noisy(view: View, index: jax.Array, size: int) -> jax.Array:
    """Of which examples those at `index` carry the labels."""

    def one(i):
        k_wrong, k_other = jax.random.split(jax.random.fold_in(view.key, i))
        wrong = jax.random.uniform(k_wrong) < view.label_noise
        return jnp.where(wrong, jax.random.randint(k_other, (), 0, size), i)

    return jax.vmap(one)(index)


def from_arrays(
    arrays: dict[str, np.ndarray],
    sizes: tuple[int, int, int] | None = None,
) -> Dataset:
    """Shuffles examples once (always the same way) and cuts four splits.

    Args:
      arrays: each with the same leading example axis.
      sizes: examples of train, inner_valid and outer_valid; test is the rest. By
        default 70, 10, 10 and 10 percent.

    Raises:
      ValueError: arrays of different lengths, or a split that would be empty.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks import from_arrays
      >>> data = from_arrays({"x": np.zeros((100, 2)), "y": np.zeros(100, int)})
      >>> data.train["x"].shape
      (70, 2)
    """
    lengths = {name: len(x) for name, x in arrays.items()}
    total = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays have different numbers of examples: {lengths}")
    if sizes is None:
        tenth = total // 10
        sizes = (total - 3 * tenth, tenth, tenth)
    if min(sizes) <= 0 or sum(sizes) >= total:
        raise ValueError(
            f"cannot cut train/inner_valid/outer_valid of {sizes} and a test split "
            f"from {total} examples"
        )
    order = np.random.default_rng(SHUFFLE_SEED).permutation(total)
    parts = np.split(order, np.cumsum(sizes))
    return on_device(
        Dataset(*({name: x[part] for name, x in arrays.items()} for part in parts))
    )


def on_device(dataset: Dataset) -> Dataset:
    """The same, as JAX arrays."""
    # Inside a jit these would be tracers, which the callers' caches would then keep.
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.asarray, dataset)
