"""Tables that scikit-learn brings, standardised."""

import functools

import jax
import numpy as np

from ._base import Dataset, from_arrays

_MISSING = "the {} dataset needs scikit-learn: pip install 'l2o[train]'"


def _table(name: str) -> Dataset:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING.format(name)) from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    labels = np.issubdtype(y.dtype, np.integer)
    y = y.astype(np.int32) if labels else y.astype(np.float32).reshape(len(x), -1)
    raw = from_arrays({"x": x.astype(np.float32), "y": y})
    x, y = raw.train["x"], raw.train["y"]

    def standardised(split):
        split = {**split, "x": (split["x"] - x.mean(0)) / x.std(0)}
        if not labels:
            split["y"] = (split["y"] - y.mean(0)) / y.std(0)
        return split

    # As `on_device`: a cached tracer would outlive its jit.
    with jax.ensure_compile_time_eval():
        return Dataset(*map(standardised, raw))


@functools.cache
def breast_cancer() -> Dataset:
    """569 tumours: 30 measurements, malignant or benign (UCI; scikit-learn).

    x: (n, 30) float32 of mean 0 and deviation 1 in train; y: (n,) int32 in {0, 1}.
    70 / 10 / 10 / 10 percent.
    """
    return _table("breast_cancer")


@functools.cache
def wine() -> Dataset:
    """178 wines: 13 measurements, three cultivars (UCI; scikit-learn).

    x: (n, 13) float32 of mean 0 and deviation 1 in train; y: (n,) int32. 70 / 10 / 10 /
    10 percent: 127 / 17 / 17 / 17.
    """
    return _table("wine")


@functools.cache
def iris() -> Dataset:
    """150 flowers: 4 measurements, three species (Fisher, 1936; scikit-learn).

    x: (n, 4) float32 of mean 0 and deviation 1 in train; y: (n,) int32. 70 / 10 / 10 /
    10 percent: 105 / 15 / 15 / 15.
    """
    return _table("iris")


@functools.cache
def diabetes() -> Dataset:
    """442 patients: 10 measurements, progression a year later (scikit-learn).

    x: (n, 10), y: (n, 1), float32 of mean 0 and deviation 1 in train. 70 / 10 / 10 / 10
    percent.
    """
    return _table("diabetes")
