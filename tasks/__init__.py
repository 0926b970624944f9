"""Inner problems for meta-training and evaluation, from data that needs no download."""

from ._adapters import from_haiku as from_haiku
from ._adapters import from_linen as from_linen
from ._adapters import from_nnx as from_nnx
from ._base import SPLITS as SPLITS
from ._base import Split as Split
from ._base import Task as Task
from ._base import TaskFamily as TaskFamily
from ._base import clipped as clipped
from ._base import stateless as stateless
from ._data import Dataset as Dataset
from ._data import digits as digits
from ._data import from_arrays as from_arrays
from ._data import patches as patches
from ._data import python_docs as python_docs
from ._data import sample_batch as sample_batch
from ._data import text_fingerprint as text_fingerprint
from ._image_mlp import cross_entropy as cross_entropy
from ._image_mlp import image_mlp as image_mlp
from ._quadratic import quadratic as quadratic
from ._registry import FAMILIES as FAMILIES
from ._registry import HELDOUT as HELDOUT
from ._registry import make_family as make_family
from ._reparam import reparametrize as reparametrize
