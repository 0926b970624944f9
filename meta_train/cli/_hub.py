"""`--download`: the one way in which a command fetches weights."""

from collections.abc import Iterable

import l2o
from l2o.files import is_shipped
from l2o.names import is_hub_id


def fetch(sources: Iterable[str]) -> None:
    """Fetches those that are a hub's ids into its local cache, and checks them.

    Raises:
      FileNotFoundError: one could not be fetched.
      ValueError: what was fetched is not readable.
    """
    for source in sources:
        if is_hub_id(source) and not is_shipped(source):
            l2o.load_unbound(source, download=True)
