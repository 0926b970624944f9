"""Data of a run that are renewed: chunk after chunk, from where a checkpoint was."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

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
          put: from arrays of the host to where the data are.
          counters: of the run, for its checkpoints.
          name: of the counter of chunks; without a stream there is none.
        """
        self._data, self._put = data, put
        self._counters, self._name = counters, name
        self._chunks: Iterator[Any] | None = None
        self._stream = stream  # keeps alive what `_kept` has the ids of
        if stream is not None:
            self._kept = {id(x) for x in jax.tree.leaves(stream.window)}
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
            lambda old, new: old if id(new) in self._kept else self._put(new),
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
