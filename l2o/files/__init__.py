"""What is read and written: frozen folders, weights of others.

`_frozen` is `l2o.load` and `l2o.save`; one module per foreign format. Imports the
registry and what lies below it.
"""

from .._registry import present_arguments, told_arguments
from ._frozen import is_shipped
from ._published import from_config, published_class
from ._pylo import from_pylo
from ._reading import read_json, reading
from ._recorded import holder_of, with_changes
from ._trees import from_tree, nest
from ._writing import plain, write_json, write_whole

__all__ = [
    "from_config",
    "from_pylo",
    "from_tree",
    "holder_of",
    "is_shipped",
    "nest",
    "plain",
    "present_arguments",
    "published_class",
    "read_json",
    "reading",
    "told_arguments",
    "with_changes",
    "write_json",
    "write_whole",
]
