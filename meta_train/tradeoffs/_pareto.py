"""The Pareto front."""

import numpy as np


def pareto(points: np.ndarray) -> list[int]:
    """Indices of the points that no other dominates, by their first column.

    One dominates another if it is nowhere larger and somewhere smaller; so of equal
    points all stay. What is not finite is never on the front.

    Args:
      points: (n, d), the lower the better in every column.

    Example:
      >>> import numpy as np
      >>> from l2o.meta_train.tradeoffs import pareto
      >>> pareto(np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 2.0]]))
      [1, 0]
    """
    points = np.asarray(points, float)
    finite = np.isfinite(points).all(-1)
    nowhere_larger = (points[:, None] <= points[None]).all(-1)
    somewhere_smaller = (points[:, None] < points[None]).any(-1)
    dominates = nowhere_larger & somewhere_smaller & finite[:, None]
    front = np.flatnonzero(finite & ~dominates.any(0))
    return [int(i) for i in front[np.lexsort(points[front].T[::-1])]]
