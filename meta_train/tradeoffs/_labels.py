"""Names beside points, where they do not lie over each other."""

from collections.abc import Sequence
from typing import Any

from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

_FAR = (7, 15, 26, 40)  # points between a mark and its name
# Diagonals first: a front goes to the right and up.
_DIRECTIONS = (
    *((0.7, 0.7, "left", "bottom"), (0.7, -0.7, "left", "top")),
    *((1, 0, "left", "center"), (-0.7, 0.7, "right", "bottom")),
    *((-1, 0, "right", "center"), (-0.7, -0.7, "right", "top")),
    *((0, 1, "center", "bottom"), (0, -1, "center", "top")),
)
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]
_MARK = 6.0  # half the width that a mark is kept free, in pixels


def label(
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    order: Sequence[int],
) -> None:
    """Writes each name near its point, unless there is no room.

    Args:
      axes: with everything drawn and limits set.
      points: in units of the data.
      names: of all.
      order: indices, the most important first.
    """
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    marks = [
        Bbox.from_extents(x - _MARK, y - _MARK, x + _MARK, y + _MARK)
        for x, y in axes.transData.transform(points)
    ]
    taken = list(marks)
    for i in order:
        for far in _FAR:
            placed = _try(axes, points[i], names[i], far, taken, inside, renderer)
            if placed is not None:
                taken.append(placed)
                break


def _try(axes, point, name, far, taken, inside, renderer) -> Bbox | None:
    for dx, dy, horizontal, vertical in _DIRECTIONS:
        text = axes.annotate(
            name,
            point,
            (dx * far, dy * far),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=8,
            path_effects=_HALO,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6"}
            if far > _FAR[0]
            else None,
        )
        text.set_in_layout(False)
        text.update_positions(renderer)
        # Without the line to the point.
        box = super(type(text), text).get_window_extent(renderer)
        within = all(inside.contains(x, y) for x, y in box.corners())
        if within and not any(box.overlaps(other) for other in taken):
            return box
        text.remove()
    return None
