"""The parts of optimizers that carry a recurrent state per tensor or per entry.

Imports the modules on top.
"""
