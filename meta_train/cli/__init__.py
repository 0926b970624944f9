"""The `l2o` command."""

from ._process import configure_process, share_cores

__all__ = [
    "configure_process",
    "share_cores",
]
