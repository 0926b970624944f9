"""Datasets: what is found offline, and what was prepared on this machine."""

from ._base import Dataset as Dataset
from ._base import View as View
from ._base import from_arrays as from_arrays
from ._base import sample_batch as sample_batch
from ._images import digits as digits
from ._images import patches as patches
from ._registry import DATASETS as DATASETS
from ._registry import load as load
from ._registry import load_all as load_all
from ._text import python_docs as python_docs
from ._text import text_fingerprint as text_fingerprint
