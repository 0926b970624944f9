"""The parts of a per-parameter update: accumulators, features, network, scales.

`_rule` puts them together, in plain JAX. Imports the modules on top.
"""

from ._accumulators import factored_axes, torch_axes
from ._features import FEATURES, SMALL_FC_FEATURES, feature_sizes
from ._newton_schulz import NS_COEFFS, newton_schulz
from ._schedule import warmup_cosine

__all__ = [
    "FEATURES",
    "NS_COEFFS",
    "SMALL_FC_FEATURES",
    "factored_axes",
    "feature_sizes",
    "newton_schulz",
    "torch_axes",
    "warmup_cosine",
]
