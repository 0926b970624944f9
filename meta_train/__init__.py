"""Meta-training: estimators of meta-gradients, the outer loop, evaluation."""

try:
    from .training._run import run as run
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"l2o.meta_train needs {error.name}: pip install 'l2o[train]'"
    ) from error

from ._config import Config as Config
from ._config import Evaluation as Evaluation
from ._config import Following as Following
from ._mesh import PARTICLES as PARTICLES
from ._mesh import Topology as Topology
from ._mesh import make_mesh as make_mesh
from ._mesh import place as place
from ._mesh import run_shardings as run_shardings
from ._processes import ProcessLost as ProcessLost
from ._processes import initialize as initialize
from .diagnosis._diagnose import Diagnosis as Diagnosis
from .diagnosis._diagnose import Findings as Findings
from .diagnosis._diagnose import diagnose as diagnose
from .diagnosis._dynamics import largest_singular_value as largest_singular_value
from .diagnosis._dynamics import lyapunov_exponent as lyapunov_exponent
from .diagnosis._dynamics import spectral_radius as spectral_radius
from .diagnosis._report import diagnose_source as diagnose_source
from .estimators._backprop import backprop as backprop
from .estimators._backprop import truncated_backprop as truncated_backprop
from .estimators._base import Info as Info
from .estimators._base import MetaGradient as MetaGradient
from .estimators._combine import accumulate as accumulate
from .estimators._combine import average as average
from .estimators._episode_lengths import Schedule as Schedule
from .estimators._episode_lengths import constant as constant
from .estimators._episode_lengths import growing as growing
from .estimators._episode_lengths import log_uniform as log_uniform
from .estimators._es import ESState as ESState
from .estimators._es import gpes as gpes
from .estimators._es import nres as nres
from .estimators._es import pes as pes
from .estimators._es import truncated_es as truncated_es
from .estimators._forward import ForwardState as ForwardState
from .estimators._forward import forward_gradient as forward_gradient
from .estimators._full_es import full_es as full_es
from .estimators._implicit import implicit as implicit
from .estimators._inverse_variance import inverse_variance as inverse_variance
from .estimators._objective import Objective as Objective
from .estimators._problem import Bilevel as Bilevel
from .estimators._problem import learn_hyperparameters as learn_hyperparameters
from .estimators._problem import learn_optimizer as learn_optimizer
from .estimators._remat import checkpointed_scan as checkpointed_scan
from .estimators._unroll import InnerState as InnerState
from .estimators._unroll import inner_init as inner_init
from .estimators._unroll import inner_step as inner_step
from .estimators._unroll import unroll as unroll
from .evaluation import evaluate as evaluate
from .evaluation._follow import follow as follow
from .training._outer import Outer as Outer
from .training._outer import OuterInfo as OuterInfo
from .training._outer import make_outer_step as make_outer_step
from .training._outer import outer_optimizer as outer_optimizer
from .training._population import Population as Population
from .training._population import best_member as best_member
from .training._population import exchange as exchange
from .training._population import make_population as make_population
from .training._population import make_population_step as make_population_step
from .training._run import Result as Result
