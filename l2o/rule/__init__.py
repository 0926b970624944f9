"""The parts of a per-parameter update: accumulators, features, network, scales.

`_rule` puts them together, in plain JAX. Imports the modules on top.
"""
