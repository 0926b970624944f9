"""The per-parameter update as fast programs, and what chooses among them.

`_dispatch` is what optimizers call; `cpp/` has the sources of the native kernels.
Imports `rule` and the modules on top.
"""
