"""The wrappers, one file each: a learned optimizer in, one with a property more out.

`l2o` has them all. Imports `rule` and the modules on top.
"""
