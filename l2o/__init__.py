"""Learned optimizers as ordinary optax transformations."""

from ._base import LearnedOptimizer as LearnedOptimizer
from ._base import stable_dtypes as stable_dtypes
from ._frozen import load as load
from ._frozen import load_theta as load_theta
from ._frozen import read_card as read_card
from ._frozen import save as save
from ._frozen import shipped as shipped
from ._hyper import learnable_adam as learnable_adam
from ._hyper import learnable_sgd as learnable_sgd
from ._hyper import learnable_sgdm as learnable_sgdm
from ._mlp import mlp as mlp
from ._registry import FACTORIES as FACTORIES
from ._registry import make as make
from ._small_fc import small_fc as small_fc
