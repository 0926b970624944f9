"""`python -m l2o.meta_train`: the `l2o` command."""

import sys

from .cli._main import main

sys.exit(main())
