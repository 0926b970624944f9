"""Meta-training: estimators of meta-gradients, the outer loop, evaluation."""

try:
    from ._run import run as run
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"l2o.meta_train needs {error.name}: pip install 'l2o[train]'"
    ) from error

from ._backprop import backprop as backprop
from ._backprop import truncated_backprop as truncated_backprop
from ._base import PARTICLES as PARTICLES
from ._base import Info as Info
from ._base import MetaGradient as MetaGradient
from ._combine import accumulate as accumulate
from ._combine import average as average
from ._config import Config as Config
from ._config import Evaluation as Evaluation
from ._config import Following as Following
from ._diagnose import Diagnosis as Diagnosis
from ._diagnose import Findings as Findings
from ._diagnose import diagnose as diagnose
from ._diagnosis_report import diagnose_source as diagnose_source
from ._dynamics import largest_singular_value as largest_singular_value
from ._dynamics import lyapunov_exponent as lyapunov_exponent
from ._dynamics import spectral_radius as spectral_radius
from ._es import ESState as ESState
from ._es import gpes as gpes
from ._es import nres as nres
from ._es import pes as pes
from ._es import truncated_es as truncated_es
from ._follow import follow as follow
from ._forward import ForwardState as ForwardState
from ._forward import forward_gradient as forward_gradient
from ._full_es import full_es as full_es
from ._implicit import implicit as implicit
from ._inverse_variance import inverse_variance as inverse_variance
from ._mesh import ProcessLost as ProcessLost
from ._mesh import Topology as Topology
from ._mesh import initialize as initialize
from ._mesh import make_mesh as make_mesh
from ._mesh import place as place
from ._mesh import run_shardings as run_shardings
from ._objective import Objective as Objective
from ._outer import Outer as Outer
from ._outer import OuterInfo as OuterInfo
from ._outer import make_outer_step as make_outer_step
from ._outer import outer_optimizer as outer_optimizer
from ._population import Population as Population
from ._population import best_member as best_member
from ._population import exchange as exchange
from ._population import make_population as make_population
from ._population import make_population_step as make_population_step
from ._problem import Bilevel as Bilevel
from ._problem import learn_hyperparameters as learn_hyperparameters
from ._problem import learn_optimizer as learn_optimizer
from ._remat import checkpointed_scan as checkpointed_scan
from ._run import Result as Result
from ._schedules import Schedule as Schedule
from ._schedules import constant as constant
from ._schedules import growing as growing
from ._schedules import log_uniform as log_uniform
from ._unroll import InnerState as InnerState
from ._unroll import inner_init as inner_init
from ._unroll import inner_step as inner_step
from ._unroll import unroll as unroll
from .evaluation import evaluate as evaluate
