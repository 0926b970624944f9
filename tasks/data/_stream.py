"""Data larger than a device's memory: a window of them, renewed as training goes on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._base import SHUFFLE_SEED, Dataset, on_device

MISSING_GRAIN = "streams need grain: pip install 'l2o[data]'"


class Stream(NamedTuple):
    """Data of which the device holds a window, another one at every outer step.

    Attributes:
      window: chunk 0, on the device. Evaluations and diagnoses see no other.
      chunks: `cursor -> iterator` over chunks cursor, cursor + 1, and so on without
        end. Each is a function of its number alone, so that the cursor is all that a
        checkpoint needs, and has the structure, shapes and dtypes of `window`. What
        stays are the very arrays of `window`; what is renewed may be NumPy arrays.
    """

    window: Any
    chunks: Callable[[int], Iterator[Any]]


def stream(
    source: Any,
    examples: int,
    *,
    held_out: Dataset | None = None,
    seed: int = 0,
    transform: Callable[[Any], dict[str, np.ndarray]] | None = None,
    ahead: int = 2,
) -> Stream:
    """A `Dataset` whose training split is a window of `examples` out of many more.

    The source is gone through in a shuffled order, another one in each epoch. Chunk i
    holds examples `i * examples` to `(i + 1) * examples` of that endless sequence, in
    the order of the source, which batches drawn from a window do not depend on.

    Args:
      source: a dict of arrays with a leading example axis, such as memory-mapped ones;
        or anything with `len`, and `source[i]` or `source.__getitems__(indices)` that
        give dicts of arrays, such as a data source of tensorflow-datasets.
      examples: size of the window.
      held_out: its other splits than train are the stream's, in memory. By default each
        of them has `examples` of the source, drawn at random (always the same way),
        which the stream then leaves out.
      seed: of the order.
      transform: from what was read to a dict of arrays with a leading example axis: a
        dict of arrays for a dict of arrays, else a list of examples, which are stacked
        by default.
      ahead: chunks read ahead, each by a thread of its own.

    Raises:
      ValueError: a source with fewer examples than the window and its splits.
      ModuleNotFoundError: grain is not installed.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks import stream
      >>> arrays = {"x": np.zeros((1000, 8, 8, 1), np.uint8), "y": np.arange(1000) % 10}
      >>> photos = stream(
      ...     arrays, 100, transform=lambda d: {**d, "x": np.float32(d["x"]) / 255}
      ... )
      >>> photos.window.train["x"].shape
      (100, 8, 8, 1)
      >>> first = next(photos.chunks(cursor=7))
    """
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING_GRAIN) from error

    size, read = _reader(source)
    aside = 0 if held_out is not None else 3 * examples
    if not 0 < examples <= size - aside:
        raise ValueError(
            f"cannot take windows of {examples} examples"
            f"{f' and {aside} held-out ones' if aside else ''} from {size}"
        )

    def load(index: np.ndarray) -> dict[str, np.ndarray]:
        # Neighbours are read from a disk at once.
        batch = read(np.sort(index))
        if transform is not None:
            return transform(batch)
        return batch if isinstance(batch, dict) else stacked(batch)

    order = grain.MapDataset.range(size).shuffle(seed=SHUFFLE_SEED)
    if held_out is None:
        parts = order[:aside].batch(examples)
        held_out = Dataset({}, *(load(parts[i]) for i in range(3)))
    shuffled = order[aside:].seed(seed).shuffle().repeat()
    chunks_of = shuffled.batch(examples, batch_fn=np.asarray).map(load)
    window = on_device(held_out._replace(train=chunks_of[0]))

    def chunks(cursor: int) -> Iterator[Dataset]:
        options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        with contextlib.closing(
            iter(chunks_of[cursor:].to_iter_dataset(options))
        ) as iterator:
            for train in iterator:
                yield window._replace(train=train)

    return Stream(window, chunks)


def _reader(source: Any) -> tuple[int, Callable[[np.ndarray], Any]]:
    """The number of examples, and `indices -> examples`."""
    if isinstance(source, Mapping):
        lengths = {name: len(x) for name, x in source.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays have different numbers of examples: {lengths}")
        size = next(iter(lengths.values()))
        return size, lambda index: {name: x[index] for name, x in source.items()}

    def read(index):
        if hasattr(source, "__getitems__"):
            return source.__getitems__(index.tolist())
        return [source[i] for i in index.tolist()]

    return len(source), read


def stacked(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Examples along a new leading axis."""
    return {name: np.stack([x[name] for x in examples]) for name in examples[0]}
