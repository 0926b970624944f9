"""VeLO's mixture of augmentations."""

import math

import numpy as np

from .._spec import Augmentation

_RANGES = ((1e-3, 1e3), (1e-2, 1e2), (0.1, 10.0))
_LEVELS = ("none", "none", "global", "global", "tensor", "tensor", "parameter")


def velo_augmentations(
    rng: np.random.Generator, *, smaller_batches: bool = True
) -> tuple[Augmentation, ...]:
    """Draws augmentations with VeLO's probabilities and ranges, in its order.

    ============================  ====  ==============================================
    `reparametrize`               5/7   level global 2/7, tensor 2/7, parameter 1/7;
                                        scale in one of three ranges around 1
    `es_gradient`                 .08   std in (.001, .1) per task, pairs of 1 to 16
    `reduced_batch`               .2    fraction uniform in (.01, 1)
    `reduced_precision`           .2    bfloat16
    `normalized_gradient`         .05
    `random_directions`           .08   count log-uniform in [1, 1024), sign or not
    `delayed_gradient`            .05   `max(1, d - 1)`, d log-uniform in [1, 8)
    ============================  ====  ==============================================

    Every draw is a recipe for one compiled program. Scales of reparametrisation and
    ES's std are drawn anew by every task; what the program depends on is drawn here.

    Args:
      rng: of the host.
      smaller_batches: False leaves `reduced_batch` out, as VeLO does where the inner
        task trains learned optimizers; the other draws stay the same.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks import TaskSpec, velo_augmentations
      >>> drawn = velo_augmentations(np.random.default_rng(0))
      >>> spec = TaskSpec("quadratic", {"dim": 3}, drawn)

    Source: VeLO (Metz et al., 2022); google/learned_optimization,
    research/general_lopt/tasks/parametric.py.
    """

    # Every number is drawn, used or not, so that no choice moves the later ones.
    def log_integer(low: int, high: int) -> int:
        drawn = math.floor(math.exp(rng.uniform(math.log(low), math.log(high))))
        return min(max(drawn, low), high - 1)

    level = _LEVELS[rng.integers(len(_LEVELS))]
    scale_range = _RANGES[rng.integers(len(_RANGES))]
    pairs = 2 ** int(rng.integers(5))
    fraction = float(rng.uniform(0.01, 1))
    count, sign = log_integer(1, 1024), bool(rng.integers(2))
    delay = max(1, log_integer(1, 8) - 1)
    es, batch, precision, normalized, directions, delayed = rng.uniform(size=6)
    candidates = (
        (
            level != "none",
            Augmentation("reparametrize", {"level": level, "scale_range": scale_range}),
        ),
        (es < 0.08, Augmentation("es_gradient", {"std": (1e-3, 0.1), "pairs": pairs})),
        (
            batch < 0.2 and smaller_batches,
            Augmentation("reduced_batch", {"fraction": fraction}),
        ),
        (precision < 0.2, Augmentation("reduced_precision")),
        (normalized < 0.05, Augmentation("normalized_gradient")),
        (
            directions < 0.08,
            Augmentation("random_directions", {"count": count, "sign": sign}),
        ),
        (delayed < 0.05, Augmentation("delayed_gradient", {"delay": delay})),
    )
    return tuple(augmentation for happens, augmentation in candidates if happens)
