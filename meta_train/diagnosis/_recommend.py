"""What to meta-train with, from all that was measured."""

from collections.abc import Sequence
from typing import NamedTuple

from ._compare import Cell
from ._probes import Dynamics
from ._settings import ESTIMATORS, Diagnosis


class Recommendation(NamedTuple):
    """What to meta-train with."""

    estimator: str
    truncation: int | None  # None: whole episodes
    sentence: str


def recommend(
    cells: Sequence[Cell],
    crossing: float | None,
    dynamics: Dynamics,
    config: Diagnosis,
) -> Recommendation:
    """The cheapest of what is usable at the longest length, and why."""
    longest = [c for c in cells if c.length == config.lengths[-1]]
    usable = sorted((c for c in longest if c.usable), key=lambda c: c.price)
    length = config.lengths[-1]
    if not usable:
        return Recommendation(
            "full_es",
            None,
            f"Use full_es with a larger std or shorter episodes: at T = {length} every "
            "estimator has particles that are not finite, or a bias that is "
            "significant.",
        )
    # Within the errors of variances the one with the shorter calls.
    close = [c for c in usable if c.price <= 1.05 * usable[0].price]
    best = min(close, key=lambda c: c.inner_steps / c.calls)
    windowed = ESTIMATORS[best.estimator].windowed
    rest = [c for c in usable if c not in close]
    reason = (
        f"at T = {length} its variance x inner steps, {best.price:.2g}, is the lowest "
        "of the estimators without significant bias"
    )
    if rest and best.price > 0:
        reason += f" ({rest[0].estimator}: {rest[0].price / best.price:.2g} times that)"
    exponent, error = dynamics.exponent
    reason += (
        "; backprop's variance "
        + (
            f"stays below that of full_es up to T = {length}"
            if crossing is None
            else f"passes that of full_es at T = {crossing:.0f}"
        )
        + f", and the leading Lyapunov exponent is {exponent:+.3f} ± {error:.3f} per "
        f"step, a factor of e^{exponent * length:.1f} in {length} steps"
    )
    if crossing is not None and exponent > 2 * error:
        reason += f"; backpropagate through no more than {crossing:.0f} steps"
    how = (
        f"with windows of {config.truncation} steps"
        if windowed
        else f"over whole episodes of {length} steps"
    )
    return Recommendation(
        best.estimator,
        config.truncation if windowed else None,
        f"Use {best.estimator} {how}: {reason}.",
    )
