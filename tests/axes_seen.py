"""What `describe_axes` prints, for tests."""

import l2o


def seen(params, axes="inferred"):
    """What `describe_axes` prints: path -> role and shape."""
    lines = l2o.describe_axes(params, axes).splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    return {
        path: (role, tuple(int(n) for n in shape.split(" x ") if n != "scalar"))
        for path, _, role, shape, *_ in rows
    }
