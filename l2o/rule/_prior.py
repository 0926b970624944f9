"""Weights with which a rule is a known optimizer before it is meta-trained."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..names import check_known
from ._accumulators import Decays
from ._features import feature_sizes
from ._rule import Rule

Init = Literal["random", "adam", "nadam"]
_DIRECTIONS = {"adam": ("m_norm",), "nadam": ("m_norm", "g_norm")}  # their sum


def check_init(init: str, rule: Rule, hidden_size: int) -> None:
    """Raises `ValueError` if it is unknown, or does not fit the rule."""
    known = ("random", *_DIRECTIONS)
    check_known("init", init, known)
    if init == "random":
        return
    needed = _DIRECTIONS[init]
    if (
        rule.activation != "relu"
        or not set(needed) <= set(rule.features)
        or hidden_size < 2
    ):
        features = " and ".join(f'"{name}"' for name in needed)
        raise ValueError(
            f'init "{init}" needs activation "relu", hidden_size >= 2 and of the '
            f"features {features}"
        )


def apply_init(
    init: str, nn: dict[str, jax.Array], rule: Rule, decays: Decays
) -> dict[str, Any]:
    """The network, for "adam" and "nadam" with two hidden units that hand that through.

    It is the first plane of "m_norm", or the sum of those of "m_norm" and "g_norm". The
    other units keep their weights, but nothing of them reaches the output: they are
    there to be used.
    """
    if init == "random":
        return nn
    sizes = feature_sizes(rule.features, *map(len, decays))
    planes = [sum(sizes[: rule.features.index(name)]) for name in _DIRECTIONS[init]]
    both = jnp.array([1.0, -1.0], jnp.float32)  # relu(x) - relu(-x) is x
    last = len(nn) // 2 - 1
    new = dict(nn)
    new["w0"] = nn["w0"].at[:, :2].set(0.0).at[jnp.array(planes), :2].set(both)
    for layer in range(1, last):
        identity = jnp.eye(2, dtype=jnp.float32)
        new[f"w{layer}"] = nn[f"w{layer}"].at[:, :2].set(0.0).at[:2, :2].set(identity)
    new[f"w{last}"] = jnp.zeros_like(nn[f"w{last}"]).at[:2, 0].set(both)
    return new
