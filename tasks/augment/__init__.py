"""Augmentations: wrappers over any family that make another one."""

from ._batch import reduced_batch
from ._data import label_noise, truncated_data
from ._delay import delayed_gradient
from ._directions import random_directions
from ._es import es_gradient
from ._gradient import with_gradient
from ._hazards import nan_gradient, scaled_loss
from ._noise import gradient_noise
from ._normalize import normalized_gradient
from ._precision import reduced_precision
from ._reparam import reparametrize
from ._velo import velo_augmentations

__all__ = [
    "delayed_gradient",
    "es_gradient",
    "gradient_noise",
    "label_noise",
    "nan_gradient",
    "normalized_gradient",
    "random_directions",
    "reduced_batch",
    "reduced_precision",
    "reparametrize",
    "scaled_loss",
    "truncated_data",
    "velo_augmentations",
    "with_gradient",
]
