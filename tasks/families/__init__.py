"""Task families, one file each."""

from ._composite import Composite, relative_error
from ._image_mlp import image_mlp
from ._l2o_scale import l2o_scale
from ._landscapes import LANDSCAPES, landscape
from ._lasso import lasso, lasso_problem
from ._least_squares import least_squares
from ._logistic import logistic_problem, logistic_regression
from ._matmul import matmul_algorithm
from ._noisy_quadratic import log_quadratic, noisy_mean, noisy_quadratic
from ._open_l2o import open_l2o
from ._proximal import fista, ista, prox_l1
from ._quadratic import quadratic
from ._sparse_coding import sparse_coding
from ._zipf_table import zipf_table

__all__ = [
    "LANDSCAPES",
    "Composite",
    "fista",
    "image_mlp",
    "ista",
    "l2o_scale",
    "landscape",
    "lasso",
    "lasso_problem",
    "least_squares",
    "log_quadratic",
    "logistic_problem",
    "logistic_regression",
    "matmul_algorithm",
    "noisy_mean",
    "noisy_quadratic",
    "open_l2o",
    "prox_l1",
    "quadratic",
    "relative_error",
    "sparse_coding",
    "zipf_table",
]
