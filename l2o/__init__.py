"""Learned optimizers as ordinary optax transformations."""

from importlib import metadata as _metadata
from typing import Any as _Any

from ._available import Available, available
from ._axes import Axes, axes_of, describe_axes, infer_axes
from ._base import LearnedOptimizer, trainable
from ._options import defaults_of
from ._registry import factories, make, register, wrapper_factories
from ._runs import cool_down, extend_run, skipped_steps, steps_left
from ._transformation import transformation, without_skipping
from .files._frozen import load, load_unbound, read_card, save, shipped
from .kernels._backend import Backend, backend, chosen_backend, native_kernels
from .names import renamed as _renamed
from .optimizers._celo import CeloState, celo
from .optimizers._celo2 import Celo2State, celo2
from .optimizers._celo2_base import Celo2BaseState, celo2_base
from .optimizers._celo_adam import CeloAdamState, celo_adam
from .optimizers._elo import elo
from .optimizers._elo_celo2 import elo_celo2
from .optimizers._l2o_pa import L2OPAState, l2o_pa
from .optimizers._l2o_scale import L2OScaleState, l2o_scale
from .optimizers._learnable import learnable_adam, learnable_sgd, learnable_sgdm
from .optimizers._learnable_muon import LearnableMuonState, learnable_muon
from .optimizers._lstm import LSTMOptimizerState, lstm
from .optimizers._mlp import MLPState, mlp
from .optimizers._mulo import mulo
from .optimizers._nadamw import NAdamWState, nadamw_baseline, nadamw_schedule
from .optimizers._nn_adam import NNAdamState, nn_adam
from .optimizers._normalized_velo import NormalizedVeLOState, normalized_velo
from .optimizers._rnn_mlp import RNNMLPState, rnn_mlp
from .optimizers._rnnprop import RNNPropState, rnnprop
from .optimizers._small_fc import SmallFCState, small_fc
from .optimizers._velo import VeLOOptions, VeLOState, velo
from .recurrent._options import ScheduleOptions
from .rule._options import Celo2Options, NetworkOptions, RuleOptions
from .wrappers._clip_gradients import clip_gradients
from .wrappers._compact import CompactState, compact
from .wrappers._decay_weights import decay_weights
from .wrappers._extend_horizon import HorizonState, extend_horizon
from .wrappers._float32_updates import float32_updates
from .wrappers._grafted import GraftedState, grafted
from .wrappers._hypergradient import HypergradientState, hypergradient
from .wrappers._mup import mup, mup_multipliers
from .wrappers._nominal import NominalState, nominal
from .wrappers._settle import SettleState, settle
from .wrappers._with_axes import with_axes

__version__ = _metadata.version("l2o")


def _stable_dtypes(init: _Any, update: _Any) -> _Any:
    return transformation(init, update, name="update")


__getattr__ = _renamed(
    "l2o",
    {
        "FACTORIES": ("l2o.factories()", lambda: dict(factories())),
        "WRAPPERS": ("l2o.wrapper_factories()", lambda: dict(wrapper_factories())),
        "celo2_velo": ("l2o.normalized_velo", lambda: normalized_velo),
        "clip": ("l2o.clip_gradients", lambda: clip_gradients),
        "load_theta": ("l2o.load_unbound", lambda: load_unbound),
        "nadamw": ("l2o.nadamw_baseline", lambda: nadamw_baseline),
        "stable_dtypes": ("l2o.transformation", lambda: _stable_dtypes),
        "weight_decay": ("l2o.decay_weights", lambda: decay_weights),
    },
)


__all__ = [
    "Available",
    "Axes",
    "Backend",
    "Celo2BaseState",
    "Celo2Options",
    "Celo2State",
    "CeloAdamState",
    "CeloState",
    "CompactState",
    "GraftedState",
    "HorizonState",
    "HypergradientState",
    "L2OPAState",
    "L2OScaleState",
    "LSTMOptimizerState",
    "LearnableMuonState",
    "LearnedOptimizer",
    "MLPState",
    "NAdamWState",
    "NNAdamState",
    "NetworkOptions",
    "NominalState",
    "NormalizedVeLOState",
    "RNNMLPState",
    "RNNPropState",
    "RuleOptions",
    "ScheduleOptions",
    "SettleState",
    "SmallFCState",
    "VeLOOptions",
    "VeLOState",
    "__version__",
    "available",
    "axes_of",
    "backend",
    "celo",
    "celo2",
    "celo2_base",
    "celo_adam",
    "chosen_backend",
    "clip_gradients",
    "compact",
    "cool_down",
    "decay_weights",
    "defaults_of",
    "describe_axes",
    "elo",
    "elo_celo2",
    "extend_horizon",
    "extend_run",
    "factories",
    "float32_updates",
    "grafted",
    "hypergradient",
    "infer_axes",
    "l2o_pa",
    "l2o_scale",
    "learnable_adam",
    "learnable_muon",
    "learnable_sgd",
    "learnable_sgdm",
    "load",
    "load_unbound",
    "lstm",
    "make",
    "mlp",
    "mulo",
    "mup",
    "mup_multipliers",
    "nadamw_baseline",
    "nadamw_schedule",
    "native_kernels",
    "nn_adam",
    "nominal",
    "normalized_velo",
    "read_card",
    "register",
    "rnn_mlp",
    "rnnprop",
    "save",
    "settle",
    "shipped",
    "skipped_steps",
    "small_fc",
    "steps_left",
    "trainable",
    "transformation",
    "velo",
    "with_axes",
    "without_skipping",
    "wrapper_factories",
]
