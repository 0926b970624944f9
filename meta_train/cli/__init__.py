"""The `l2o` command."""
