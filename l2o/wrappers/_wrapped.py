"""What all wrappers share: how theta, needs and records are joined."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._base import LearnedOptimizer


def wrapped(
    name: str,
    parts: Mapping[str, LearnedOptimizer],
    arguments: Mapping[str, Any],
    bind: Any,
    init_more: Any = None,
) -> LearnedOptimizer:
    """Joins theta, needs and what is recorded of the parts.

    A single part called "optimizer" keeps its theta; others are entries of the new one.
    """
    alone = parts.get("optimizer")

    def init_theta(key):
        if alone is not None:
            return alone.init_theta(key)
        keys = jax.random.split(key, len(parts) + 1)
        theta = {
            part: inner.init_theta(k)
            for (part, inner), k in zip(parts.items(), keys[1:], strict=True)
        }
        return {**theta, **(init_more(keys[0]) if init_more else {})}

    if alone is not None:
        frozen = alone.frozen
    else:
        frozen = tuple(f"{part}/{k}" for part, x in parts.items() for k in x.frozen)
    needs = {need: None for x in parts.values() for need in x.needs}
    starts: dict[str, tuple[str, ...]] = {}
    for part, inner in reversed(list(parts.items())):
        prefix = "" if alone is not None else f"{part}/"
        starts |= {k: tuple(prefix + x for x in v) for k, v in inner.starts.items()}
    # `load` gives an argument to the outermost optimizer that has one of its name.
    starts = {k: v for k, v in starts.items() if k not in arguments}
    specs = {
        part: {"name": x.name, "arguments": dict(x.arguments)}
        for part, x in parts.items()
    }
    rebuildable = all(x.name for x in parts.values())
    return LearnedOptimizer(
        init_theta,
        bind,
        name if rebuildable else "",
        {**specs, **arguments} if rebuildable else {},
        tuple(needs),
        frozen,
        starts,
    )


def with_need(need: str, needs: tuple[str, ...]) -> tuple[str, ...]:
    return needs if need in needs else (*needs, need)


def wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
