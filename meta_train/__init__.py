"""Meta-training: estimators of meta-gradients, the outer loop, evaluation."""

try:
    from .training._run import run as run
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"l2o.meta_train needs {error.name}: pip install 'l2o[train]'"
    ) from error

from ._config import Config, Evaluation, Following
from ._mesh import PARTICLES, Topology, make_mesh, place, run_shardings
from ._processes import ProcessLost, initialize
from .diagnosis._diagnose import Findings, diagnose
from .diagnosis._dynamics import (
    largest_singular_value,
    lyapunov_exponent,
    spectral_radius,
)
from .diagnosis._report import diagnose_source
from .diagnosis._settings import Diagnosis
from .estimators._backprop import backprop, truncated_backprop
from .estimators._base import Info, MetaGradient
from .estimators._combine import accumulate, average
from .estimators._episode_lengths import Schedule, constant, growing, log_uniform
from .estimators._es import ESState, gpes, nres, pes, truncated_es
from .estimators._forward import ForwardState, forward_gradient
from .estimators._full_es import full_es
from .estimators._implicit import implicit
from .estimators._inverse_variance import inverse_variance
from .estimators._objective import Objective
from .estimators._problem import Bilevel, learn_hyperparameters, learn_optimizer
from .estimators._remat import checkpointed_scan
from .estimators._unroll import InnerState, inner_init, inner_step, unroll
from .evaluation import evaluate
from .evaluation._follow import follow
from .training._outer import Outer, OuterInfo, make_outer_step, outer_optimizer
from .training._population import (
    Population,
    best_member,
    exchange,
    make_population,
    make_population_step,
)
from .training._run import Result

__all__ = [
    "PARTICLES",
    "Bilevel",
    "Config",
    "Diagnosis",
    "ESState",
    "Evaluation",
    "Findings",
    "Following",
    "ForwardState",
    "Info",
    "InnerState",
    "MetaGradient",
    "Objective",
    "Outer",
    "OuterInfo",
    "Population",
    "ProcessLost",
    "Result",
    "Schedule",
    "Topology",
    "accumulate",
    "average",
    "backprop",
    "best_member",
    "checkpointed_scan",
    "constant",
    "diagnose",
    "diagnose_source",
    "evaluate",
    "exchange",
    "follow",
    "forward_gradient",
    "full_es",
    "gpes",
    "growing",
    "implicit",
    "initialize",
    "inner_init",
    "inner_step",
    "inverse_variance",
    "largest_singular_value",
    "learn_hyperparameters",
    "learn_optimizer",
    "log_uniform",
    "lyapunov_exponent",
    "make_mesh",
    "make_outer_step",
    "make_population",
    "make_population_step",
    "nres",
    "outer_optimizer",
    "pes",
    "place",
    "run",
    "run_shardings",
    "spectral_radius",
    "truncated_backprop",
    "truncated_es",
    "unroll",
]
