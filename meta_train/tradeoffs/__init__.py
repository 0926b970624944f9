"""Memory, compute and performance of learned optimizers, measured together."""

from ._figures import figures as figures
from ._grid import Variant as Variant
from ._grid import grid as grid
from ._pareto import pareto as pareto
from ._rows import load_study as load_study
from ._scales import SCALES as SCALES
from ._study import Options as Options
from ._study import study as study
