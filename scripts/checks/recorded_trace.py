"""What a recorded trace says, in l2o's terms, and what of it must be understood."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax


class Problem(NamedTuple):
    """What a trace records, in l2o's terms."""

    bind: Callable[[Any], optax.GradientTransformationExtraArgs]
    theta: Any
    published: list[dict[str, np.ndarray]]
    grads: dict[str, np.ndarray]  # first axis: steps
    losses: np.ndarray
    tolerance: dict[str, float]


class Unsupported(Exception):
    """l2o has no such class or option, or a trace says what this script cannot read."""


# What a trace says of itself that no number depends on. Seeds and recipes made the
# arrays that are stored; `grad_edit` is in the gradients, `patches` in the outputs.
_ABOUT = re.compile(
    "name|note|problem|problem_seed|theta_init|theta_size|theta_shapes|theta_stored|"
    "theta_recipe|feat_step|goes_through_mlp|argsort_forced_stable|grad_edit|patches|"
    "movement_.*|max_total_move|rms_update_per_step|fp32_vs_fp64_.*|noise_.*|"
    "jax|numpy|torch|backend|machine|device|dtype|cpu_.*|peers|.*_commit"
)


def require_known(names: Collection[str], known: Collection[str], what: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise Unsupported(f"{what} {', '.join(unknown)}")


def require_understood(
    meta: Mapping[str, Any], trace: Any, used: Collection[str], arrays: Collection[str]
) -> None:
    """Refuses entries and arrays of a trace that may change its numbers unseen."""
    rest = [key for key in meta if not _ABOUT.fullmatch(key)]
    require_known(rest, used, "a trace with the entry")
    kinds = {key.partition("/")[0] for key in trace}
    require_known(kinds, arrays, "a trace with the arrays")
