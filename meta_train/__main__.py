"""`python -m l2o.meta_train`: the `l2o` command."""

import sys

from ._cli import main

sys.exit(main())
