"""What is read and written: frozen folders, weights of others.

`_frozen` is `l2o.load` and `l2o.save`; one module per foreign format. Imports the
registry and what lies below it.
"""

from ._published import from_config as from_config
from ._published import published_class as published_class
from ._pylo import from_pylo as from_pylo
from ._reading import read_json as read_json
from ._reading import reading as reading
from ._recorded import holder_of as holder_of
from ._recorded import with_changes as with_changes
from ._trees import from_tree as from_tree
from ._trees import nest as nest
from ._writing import plain as plain
from ._writing import write_json as write_json
from ._writing import write_whole as write_whole
