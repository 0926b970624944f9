"""The `l2o` command."""

from ._process import configure_process as configure_process
from ._process import share_cores as share_cores
