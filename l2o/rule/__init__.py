"""The parts of a per-parameter update: accumulators, features, network, scales.

`_rule` puts them together, in plain JAX. Imports the modules on top.
"""

from ._accumulators import factored_axes as factored_axes
from ._accumulators import torch_axes as torch_axes
from ._features import FEATURES as FEATURES
from ._features import SMALL_FC_FEATURES as SMALL_FC_FEATURES
from ._features import feature_sizes as feature_sizes
from ._newton_schulz import NS_COEFFS as NS_COEFFS
from ._newton_schulz import newton_schulz as newton_schulz
from ._schedule import warmup_cosine as warmup_cosine
