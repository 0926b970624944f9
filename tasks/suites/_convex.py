"""The problems of Open-L2O and L2O-PA, with their sizes, and other classics."""

from typing import Any

from .._spec import TaskSpec
from ._base import Suite, labelled


def _landscape(name: str) -> TaskSpec:
    return TaskSpec("landscape", {"name": name})


def _scale(name: str, **options: Any) -> TaskSpec:
    return TaskSpec("l2o_scale", {"name": name, **options})


_TOY = {"rows": 20, "dim": 40, "nonzeros": 5}

CONVEX = Suite(
    "convex",
    1,
    "Open-L2O's and L2O-PA's problems with their generators, and test functions",
    labelled(
        {
            "l2o-dm-quadratic10": TaskSpec("open_l2o", {"name": "quadratic"}),
            "l2o-dm-lasso10": TaskSpec("open_l2o", {"name": "lasso"}),
            "l2o-dm-lasso5x10": TaskSpec(
                "open_l2o", {"name": "lasso", "dim": 10, "rows": 5}
            ),
            "l2o-dm-lasso25x50": TaskSpec(
                "open_l2o", {"name": "lasso", "dim": 50, "rows": 25}
            ),
            "l2o-dm-rastrigin2": TaskSpec("open_l2o", {"name": "rastrigin", "dim": 2}),
            "l2o-dm-rastrigin10": TaskSpec("open_l2o", {"name": "rastrigin"}),
            "l2o-scale-quadratic20": _scale("quadratic"),
            "l2o-scale-quadratic100": _scale("quadratic", dim=100),
            "l2o-scale-lasso20": _scale("lasso"),
            "l2o-scale-rastrigin20": _scale("rastrigin"),
            "l2o-pa-lasso": TaskSpec("lasso"),
            "l2o-pa-lasso-toy": TaskSpec("lasso", _TOY),
            "l2o-pa-logistic": TaskSpec("logistic_regression"),
            "l2o-pa-logistic-breast-cancer": TaskSpec(
                "logistic_regression", {"dataset": "breast_cancer"}
            ),
            # What proximal methods want: the gradient leaves out what they have a prox
            # for. To others these look like problems without it.
            "l2o-pa-lasso-prox": TaskSpec("lasso", {"gradient": "smooth"}),
            "l2o-pa-lasso-toy-prox": TaskSpec("lasso", {**_TOY, "gradient": "smooth"}),
            "l2o-pa-logistic-prox": TaskSpec(
                "logistic_regression", {"gradient": "smooth"}
            ),
            "least-squares": TaskSpec("least_squares"),
            "ill-conditioned": TaskSpec("least_squares", {"log10_condition": 3.0}),
            "sparse-coding": TaskSpec("sparse_coding"),
            **{
                name: _landscape(name)
                for name in ("rosenbrock", "ackley", "beale", "booth", "branin")
            },
        }
    ),
    metric="loss",
    split="train",
)
