"""The learned optimizers, one file each.

A factory returns a `LearnedOptimizer`; `l2o` has them all. Imports `kernels`,
`wrappers`, `rule`, `recurrent` and the modules on top.
"""
