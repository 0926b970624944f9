"""What is measured, and of which estimators."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from l2o.tasks import task_specs

from .._config import check_types, require, resolved, strict
from ..estimators._backprop import backprop, truncated_backprop
from ..estimators._base import MetaGradient
from ..estimators._episode_lengths import Schedule
from ..estimators._es import nres, pes, truncated_es
from ..estimators._forward import forward_gradient
from ..estimators._full_es import full_es
from ..estimators._inverse_variance import inverse_variance

_GROUP = 8  # pairs of one inverse_variance call, which needs several


class _Kind(NamedTuple):
    make: Callable[..., MetaGradient]
    smoothed: bool = False  # takes std
    windowed: bool = False  # takes truncation: a call is a window
    whole: bool = True  # its mean is the gradient of whole episodes
    draws: bool = True  # splits its key: one for directions, one for the runs
    group: int = 1  # particles of a call


ESTIMATORS = {
    # One level of checkpointing: at these lengths memory is no matter, compiling is.
    "backprop": _Kind(functools.partial(backprop, levels=1), draws=False),
    "truncated_backprop": _Kind(
        truncated_backprop, windowed=True, whole=False, draws=False
    ),
    "full_es": _Kind(full_es, smoothed=True),
    "truncated_es": _Kind(truncated_es, smoothed=True, windowed=True, whole=False),
    "pes": _Kind(pes, smoothed=True, windowed=True),
    "nres": _Kind(nres, smoothed=True, windowed=True),
    "forward_gradient": _Kind(forward_gradient, windowed=True),
    "inverse_variance": _Kind(
        inverse_variance, smoothed=True, windowed=True, whole=False, group=_GROUP
    ),
}


@strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is measured of every estimator. The defaults are a matter of minutes.

    Attributes:
      family: Task family of the inner problems.
      lengths: Inner steps of an episode, increasing; theta matters from 2 on.
      truncation: Inner steps per window of the estimators that truncate.
      std: Standard deviation of the perturbations of theta.
      particles: Episodes per estimator and length.
      runs: Inner runs behind the exponents and behind every point of the slices.
      points: Points of a slice through the meta-loss.
      seed: Seed of everything random.
    """

    family: str = "mlp16"
    lengths: tuple[int, ...] = (2, 5, 10, 20, 50, 100)
    truncation: int = 20
    std: float = 0.01
    particles: int = 128
    runs: int = 8
    points: int = 21
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        resolved("Diagnosis.family", (self.family,))
        require(
            len(task_specs(self.family)) == 1,
            f"Diagnosis.family must be one task, not all of {self.family!r}",
        )
        require(
            len(self.lengths) > 0
            and self.lengths[0] > 0
            and all(
                a < b for a, b in zip(self.lengths, self.lengths[1:], strict=False)
            ),
            f"Diagnosis.lengths must be positive and increasing, not {self.lengths}",
        )
        for name in ("truncation", "std"):
            value = getattr(self, name)
            require(value > 0, f"Diagnosis.{name} must be positive, not {value}")
        require(
            self.particles >= 2 * _GROUP and self.particles % _GROUP == 0,
            f"Diagnosis.particles must be a multiple of {_GROUP} and at least "
            f"{2 * _GROUP}, not {self.particles}",
        )
        require(self.seed >= 0, f"Diagnosis.seed must not be negative: {self.seed}")
        require(self.runs >= 2, f"Diagnosis.runs must be >= 2, not {self.runs}")
        require(self.points >= 3, f"Diagnosis.points must be >= 3, not {self.points}")


def as_told(config: Diagnosis) -> Schedule:
    """Episodes as long as the outer step's number: one program for all lengths."""
    return Schedule(lambda key, step: step, 1, config.lengths[-1])
