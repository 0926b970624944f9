"""What is read and written: frozen folders, weights of others.

`_frozen` is `l2o.load` and `l2o.save`; one module per foreign format. Imports the
registry and what lies below it.
"""
