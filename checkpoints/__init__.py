"""Pretrained learned optimizers, one folder each; load them with `l2o.load`."""
