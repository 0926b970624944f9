"""Checkpoints of a run: every leaf of its state, saved by orbax."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Orbax reports every phase of every save; errors still reach us as exceptions.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints in a folder; saving is asynchronous and atomic.

    A state is any pytree of arrays. On disk it is flat: one array per leaf, named by
    its path in the tree, so that restoring does not depend on classes.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "counters": ocp.JsonCheckpointHandler(),
            },
        )
        self._folder = folder

    def save(self, step: int, state: Any, counters: dict[str, float]) -> None:
        """Saves in the background; an error of the last save is raised here.

        Raises:
          OSError: the disk is full or the folder cannot be written.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_flatten(state)),
                counters=ocp.args.JsonSave(counters),
            ),
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, float]]:
        """The newest checkpoint, as (step, state, counters).

        Args:
          like: a state of the same structure, shapes and dtypes.

        Raises:
          ValueError: the checkpoint holds another state.
        """
        step = self._manager.latest_step()
        assert step is not None
        expected = _flatten(like)
        names = set(self._manager.item_metadata(step).state.keys())
        if names != set(expected):
            difference = sorted(names ^ set(expected))[:3]
            raise ValueError(
                f"the checkpoint {self._folder / str(step)} was written by another "
                f"version or configuration (differs in {', '.join(difference)}); "
                "start in another folder"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(expected),
                counters=ocp.args.JsonRestore(),
            ),
        )
        return step, _unflatten(restored.state, like), dict(restored.counters)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises its error if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self._manager.close()


def _flatten(state: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _raw(leaf)
        for path, leaf in leaves
    }


def _unflatten(flat: dict[str, jax.Array], like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    names = _flatten(like)
    restored = [
        jax.random.wrap_key_data(flat[name]) if _is_key(leaf) else flat[name]
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def state_bytes(state: Any) -> int:
    """Bytes of all leaves."""
    return sum(np.dtype(x.dtype).itemsize * x.size for x in _flatten(state).values())
