"""Task families, one file each."""

from ._composite import Composite as Composite
from ._composite import relative_error as relative_error
from ._image_mlp import image_mlp as image_mlp
from ._l2o_scale import l2o_scale as l2o_scale
from ._landscapes import LANDSCAPES as LANDSCAPES
from ._landscapes import landscape as landscape
from ._lasso import lasso as lasso
from ._lasso import lasso_problem as lasso_problem
from ._least_squares import least_squares as least_squares
from ._logistic import logistic_problem as logistic_problem
from ._logistic import logistic_regression as logistic_regression
from ._matmul import matmul_algorithm as matmul_algorithm
from ._noisy_quadratic import log_quadratic as log_quadratic
from ._noisy_quadratic import noisy_mean as noisy_mean
from ._noisy_quadratic import noisy_quadratic as noisy_quadratic
from ._open_l2o import open_l2o as open_l2o
from ._proximal import fista as fista
from ._proximal import ista as ista
from ._proximal import prox_l1 as prox_l1
from ._quadratic import quadratic as quadratic
from ._sparse_coding import sparse_coding as sparse_coding
