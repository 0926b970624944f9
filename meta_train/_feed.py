"""Data of a run that are renewed: chunk after chunk, from where a checkpoint was."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from l2o.tasks import Stream, TaskFamily


class Feed:
    """The data of one part of a run, as each of its outer steps sees them."""

    def __init__(
        self,
        data: Any,
        stream: Stream | None,
        put: Callable[[Any], Any],
        counters: dict[str, float],
        name: str,
    ) -> None:
        """Goes on where the counter says.

        Args:
          data: on the devices; what they stay without a stream.
          stream: renews them.
          put: from NumPy arrays to where the data are.
          counters: of the run, for its checkpoints.
          name: of the counter of chunks; without a stream there is none.
        """
        self._data, self._put = data, put
        self._counters, self._name = counters, name
        self._chunks: Iterator[Any] | None = None
        if stream is not None:
            counters.setdefault(name, 0.0)
            self._chunks = stream.chunks(int(counters[name]))

    def take(self) -> Any:
        """The data of the next outer step.

        The copy to the devices is begun, not waited for: steps that are in flight run
        meanwhile.
        """
        if self._chunks is None:
            return self._data
        chunk = next(self._chunks)
        self._counters[self._name] += 1
        return jax.tree.map(
            lambda old, new: self._put(new) if isinstance(new, np.ndarray) else old,
            self._data,
            chunk,
        )

    def close(self) -> None:
        """Stops reading ahead."""
        self._chunks = None


def side_by_side(families: Sequence[TaskFamily]) -> Stream | None:
    """Of families that take every outer step together; None if none has a stream."""
    if all(family.stream is None for family in families):
        return None

    def chunks(cursor: int) -> Iterator[Any]:
        return zip(
            *(
                itertools.repeat(family.data)
                if family.stream is None
                else family.stream.chunks(cursor)
                for family in families
            ),
            strict=False,
        )

    return Stream(tuple(family.data for family in families), chunks)
