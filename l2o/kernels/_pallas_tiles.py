"""A tensor in blocks and tiles: how it is cut, and how a kernel goes over all of it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from ..rule._accumulators import Axes
from ..rule._rule import Rule

BLOCK = {"tpu": 32, "gpu": 8, "cpu": 4}  # tiles, at most
_GPU_TILE = 512  # elements; four per thread


class Cut(NamedTuple):
    """How the kernels see a tensor and cut it; hashable.

    Attributes:
      platform: a key of `BLOCK`.
      shape: (A, rows, columns).
      turned: the last axis is that of the rows.
      factored: over rows and columns.
      row_of_rows: of the factored moments `row` has an entry per row, `col` per column.
      apart: each of the A matrices is normalised apart.
      tile: rows and columns that a kernel computes at a time.
      block: those of a step of its grid, a whole number of tiles.
    """

    platform: str
    shape: tuple[int, int, int]
    turned: bool
    factored: bool
    row_of_rows: bool
    apart: bool
    tile: tuple[int, int]
    block: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        a, rows, columns = self.shape
        return a, pl.cdiv(rows, self.block[0]), pl.cdiv(columns, self.block[1])

    def view(self, x: jax.Array) -> jax.Array:
        """A tensor in this shape."""
        a, rows, columns = self.shape
        if self.turned:
            return x.reshape(a, columns, rows).mT
        return x.reshape(self.shape)

    def original(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The tensor of that shape from its `view`."""
        return (x.mT if self.turned else x).reshape(shape)

    def sides(
        self, row: Sequence[jax.Array], col: Sequence[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Planes of rows and of columns, stacked: (A, rows, n) and (A, n, columns)."""
        a, rows, columns = self.shape
        x, y = (row, col) if self.row_of_rows else (col, row)
        return (
            jnp.concatenate([plane.reshape(a, rows, 1) for plane in x], 2),
            jnp.concatenate([plane.reshape(a, 1, columns) for plane in y], 1),
        )


def cut_of(platform: str, rule: Rule, shape: tuple[int, ...], axes: Axes) -> Cut:
    """How a platform's kernels cut a tensor of this shape."""
    a, rows, columns = 1, 1, math.prod(shape)
    turned = row_of_rows = apart = False
    if axes is not None:
        first, last = sorted(axes)
        a, rows, columns = math.prod(shape[:first]), shape[first], shape[last]
        # XLA turns narrow matrices, because a TPU's memory has columns by 128.
        turned = platform != "gpu" and columns < 128 <= rows
        # `row` is reduced over the second of `axes`.
        row_of_rows = (axes[0] == first) != turned
        apart = len(shape) > 2 and rule.normalized_axes != "all"
    if turned:
        rows, columns = columns, rows
    if platform == "gpu":
        # Triton's arrays have powers of two; what lies outside is masked.
        height = min(_power_of_two(rows), 4)
        width = min(_power_of_two(columns), _GPU_TILE // height)
        height = min(_power_of_two(rows), _GPU_TILE // width)
        tiles = pl.cdiv(rows, height), pl.cdiv(columns, width)
    else:
        # A TPU's register holds (8, 128). A block is no larger than the tensor.
        height = min(rows, 8)
        width = columns if columns < 128 else min(columns // 128 * 128, 256)
        tiles = rows // height, columns // width
    across = min(tiles[1], 4)
    down = min(tiles[0], BLOCK[platform] // across)
    return Cut(
        platform,
        (a, rows, columns),
        turned,
        axes is not None,
        row_of_rows,
        apart,
        (height, width),
        (height * down, width * across),
    )


def _power_of_two(size: int) -> int:
    """The next one."""
    return 1 << (size - 1).bit_length()


class Tile(NamedTuple):
    """Where a kernel computes.

    Attributes:
      rows, columns: slices of a block.
      inside: which elements are in the tensor; None for all.
      masked: whether those that are not must not be read or written.
    """

    rows: Any
    columns: Any
    inside: jax.Array | None
    masked: bool

    def load(self, ref: Any) -> jax.Array:
        if not self.masked:
            return ref[self.rows, self.columns]
        from jax.experimental.pallas import triton

        at = ref.at[self.rows, self.columns]
        return triton.load(at, mask=self.inside, other=0.0)

    def store(self, ref: Any, value: jax.Array) -> None:
        if not self.masked:
            ref[self.rows, self.columns] = value
            return
        from jax.experimental.pallas import triton

        triton.store(ref.at[self.rows, self.columns], value, mask=self.inside)

    def square(self, value: jax.Array) -> jax.Array:
        return self.within(value * value)

    def within(self, value: jax.Array) -> jax.Array:
        """0 outside of the tensor."""
        return value if self.inside is None else jnp.where(self.inside, value, 0.0)

    def side(self, x: Any, y: Any, k: int) -> tuple[jax.Array, jax.Array]:
        """The k-th planes of `Cut.sides`."""
        return x[self.rows, pl.ds(k, 1)], y[pl.ds(k, 1), self.columns]


def each_tile(
    cut: Cut, body: Callable[[Tile, list], list], carry: list[jax.Array]
) -> list[jax.Array]:
    """The carry after `carry = body(tile, carry)` for all tiles of a block."""
    (height, width), (_, *ends) = cut.tile, cut.shape
    down, across = cut.block[0] // height, cut.block[1] // width
    starts = [pl.program_id(1) * cut.block[0], pl.program_id(2) * cut.block[1]]

    def step(i, j, carry):
        offsets = _multiple(i, height), _multiple(j, width)
        inside = None
        for axis in range(2):
            if ends[axis] % cut.block[axis]:
                index = lax.broadcasted_iota(jnp.int32, cut.tile, axis)
                within = starts[axis] + offsets[axis] + index < ends[axis]
                inside = within if inside is None else inside & within
        # Triton does not know where a tensor ends.
        masked = cut.platform == "gpu" and inside is not None
        rows, columns = map(pl.ds, offsets, cut.tile)
        return body(Tile(rows, columns, inside, masked), carry)

    def row_of_tiles(i, carry):
        return loop(across, lambda j, carry: step(i, j, carry), carry)

    return loop(down, row_of_tiles, carry)


def loop(
    count: int, body: Callable[[Any, Any], Any], carry: Any, unrolled: int = 1
) -> Any:
    """The carry after `carry = body(i, carry)` for all i < count."""
    if count <= unrolled:
        for i in range(count):
            carry = body(i, carry)
        return carry
    return lax.fori_loop(np.int32(0), np.int32(count), body, carry)


def _multiple(k: Any, size: int) -> Any:
    return k * size if isinstance(k, int) else pl.multiple_of(k * size, size)


def call(
    kernel: Callable[..., None],
    cut: Cut,
    operands: tuple[jax.Array, tuple, Any],
    outputs: int,
    sums: int,
    aliases: dict[int, int],
) -> list[jax.Array]:
    """Runs a kernel on every block.

    Args:
      operands: scalars of shape (1 or A, 1, n); tensors of `cut.shape`; two from
        `Cut.sides` if factored, else more tensors.
      outputs: how many of `cut.shape`.
      sums: how many numbers per block, in an array of shape (*grid, 1, sums).
      aliases: positions of operands that are overwritten, and of the outputs.
    """
    scalars, views, second = operands
    params, memory = _compiler(cut.platform)
    (height, width), apart = cut.block, len(scalars) > 1
    whole = pl.BlockSpec((None, height, width), lambda a, i, j: (a, i, j))
    numbers = pl.BlockSpec(
        (None, *scalars.shape[1:]),
        lambda a, i, j: (a if apart else 0, 0, 0),
        memory_space=memory,
    )
    if cut.factored:
        second = _padded(cut, *second)
        n = second[0].shape[-1]
        of_second: tuple[Any, ...] = (
            pl.BlockSpec((None, height, n), lambda a, i, j: (a, i, 0)),
            pl.BlockSpec((None, n, width), lambda a, i, j: (a, 0, j)),
        )
    else:
        of_second = tuple(whole for _ in second)
    # Inside of `jax.shard_map` the outputs vary over the axes that any operand does.
    kinds = [jax.typeof(x).manual_axis_type for x in jax.tree.leaves(operands)]
    varying = frozenset().union(*(kind.varying for kind in kinds))
    like = functools.partial(
        jax.ShapeDtypeStruct,
        dtype=jnp.float32,
        manual_axis_type=jax.sharding.ManualAxisType(varying=varying),
    )
    shapes = [like(cut.shape)] * outputs
    specs = [whole] * outputs
    if sums:
        shapes.append(like((*cut.grid, 1, sums)))
        specs.append(
            pl.BlockSpec(
                (None, None, None, 1, sums),
                lambda a, i, j: (a, i, j, 0, 0),
                memory_space=memory,
            )
        )
    return pl.pallas_call(
        kernel,
        shapes,
        grid=cut.grid,
        in_specs=(numbers, jax.tree.map(lambda _: whole, views), of_second),
        out_specs=specs,
        input_output_aliases=aliases,
        compiler_params=params,
        interpret=cut.platform == "cpu",
    )(scalars, views, second)


def _compiler(platform: str) -> tuple[Any, Any]:
    """Its parameters, and the memory of scalars."""
    # Not every jaxlib has both of these.
    if platform == "tpu":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(dimension_semantics=("parallel",) * 3), tpu.SMEM
    if platform == "gpu":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=4), None
    return None, None


def _padded(cut: Cut, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """To whole blocks: so what is read of `Cut.sides` needs no mask."""
    _, *sizes = cut.shape
    rows, columns = (-n % b for n, b in zip(sizes, cut.block, strict=True))
    return (
        jnp.pad(x, ((0, 0), (0, rows), (0, 0))),
        jnp.pad(y, ((0, 0), (0, 0), (0, columns))),
    )
