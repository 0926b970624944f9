"""Estimators of meta-gradients, and the unrolls that they are made of.

`l2o.meta_train` has them all. Imports `_mesh`.
"""
