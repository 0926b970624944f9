"""Meta-training: estimators of meta-gradients and the outer loop."""

from ._base import Info as Info
from ._base import MetaGradient as MetaGradient
from ._pes import PESState as PESState
from ._pes import pes as pes
from ._schedules import Schedule as Schedule
from ._schedules import constant as constant
from ._schedules import log_uniform as log_uniform
from ._unroll import InnerState as InnerState
from ._unroll import inner_init as inner_init
from ._unroll import inner_step as inner_step
from ._unroll import unroll as unroll
