"""Task families, one file each."""

from ._image_mlp import image_mlp as image_mlp
from ._quadratic import quadratic as quadratic
