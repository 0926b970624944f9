"""Memory, compute and performance of learned optimizers, measured together."""

from ._figures import figures
from ._grid import Variant, grid
from ._pareto import pareto
from ._rows import load_study
from ._scales import SCALES
from ._study import Options, study

__all__ = [
    "SCALES",
    "Options",
    "Variant",
    "figures",
    "grid",
    "load_study",
    "pareto",
    "study",
]
