"""Augmentations: wrappers over any family that make another one."""

from ._batch import reduced_batch as reduced_batch
from ._data import label_noise as label_noise
from ._data import truncated_data as truncated_data
from ._delay import delayed_gradient as delayed_gradient
from ._directions import random_directions as random_directions
from ._es import es_gradient as es_gradient
from ._gradient import with_gradient as with_gradient
from ._hazards import nan_gradient as nan_gradient
from ._hazards import scaled_loss as scaled_loss
from ._noise import gradient_noise as gradient_noise
from ._normalize import normalized_gradient as normalized_gradient
from ._precision import reduced_precision as reduced_precision
from ._reparam import reparametrize as reparametrize
from ._velo import velo_augmentations as velo_augmentations
