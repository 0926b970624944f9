"""Augmentations: wrappers over any family that make another one."""

from ._reparam import reparametrize as reparametrize
