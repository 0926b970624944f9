"""The per-parameter update as Pallas kernels, for GPUs and TPUs.

As in `cpp/kernels.h` memory is read in three passes: XLA sums g^2 over rows and
columns; `_accumulate` updates momenta and second moments and sums the squares of the
features; `_apply` computes the features again and applies the network. A tensor is seen
as (A, rows, columns), factored over the last two; a vector is one row and not factored.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .._tensors import finite_gradient
from ..rule._accumulators import (
    Accumulators,
    Axes,
    Decays,
    factored_axes,
    inverse_roots,
    update_accumulators,
    update_moment,
)
from ..rule._features import (
    FEATURES,
    adafactor_features,
    feature_sizes,
    inverse_rms,
    pairs,
)
from ..rule._rule import Rule, Shared, Tensor, held

_WITHOUT_CLIP = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))
# Features of a factored tensor's rows, of its columns, and those that need both.
_OF_ROW = ("row", "rsqrt_row")
_OF_COL = ("col", "rsqrt_col")
_OF_BOTH = ("fac_g", "fac_m")
_BLOCK = {"tpu": 32, "gpu": 8, "cpu": 4}  # tiles, at most
_GPU_TILE = 512  # elements; four per thread


def supports(rule: Rule, tensor: Tensor, nn: Any) -> bool:
    """Whether the kernels know this rule for a tensor of this shape.

    Args:
      nn: weights with a first axis; the hidden layers may have any size.
    """
    if rule.features not in (FEATURES, _WITHOUT_CLIP) or not rule.normalize_input:
        return False
    if rule.activation != "relu" or rule.precondition or rule.aggregate_mag:
        return False
    if rule.bias_correction or len(nn) != 6:
        return False
    if rule.param_scale and (rule.param_scale_bound is not None or rule.normalize_step):
        return False
    shape = tensor.grad.shape
    axes = factored_axes(shape, rule.factoring)
    if axes is None:
        return True
    a, b = sorted(axes)
    if math.prod(shape[a + 1 : b]) * math.prod(shape[b + 1 :]) != 1:
        return False
    if len(shape) == 2 or rule.normalized_axes == "all":
        return True
    # What is normalised apart must be what is factored.
    return rule.normalized_axes == "last" and a == len(shape) - 2


def update(
    rule: Rule, tensors: Sequence[Tensor], nn: Any, scale: jax.Array, shared: Shared
) -> list[tuple[jax.Array, Accumulators]]:
    """As `update_tensors`, for a rule and tensors that `supports` accepts."""

    def one(i, tensor):
        network, factor = jax.tree.map(lambda x: x[i % len(x)], (nn, scale))
        return _update_one(_platform(), rule, tensor, network, factor, shared)

    return [one(i, tensor) for i, tensor in enumerate(tensors)]


def _platform() -> str:
    """Whose kernels are traced; those for CPUs are interpreted."""
    name = jax.default_backend()
    return name if name in _BLOCK else "cpu"


class _Cut(NamedTuple):
    """How the kernels see a tensor and cut it; hashable.

    Attributes:
      platform: of `_platform`.
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


def _cut(platform: str, rule: Rule, shape: tuple[int, ...], axes: Axes) -> _Cut:
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
    down = min(tiles[0], _BLOCK[platform] // across)
    return _Cut(
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


# Compiled, so that tensors of one shape are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _update_one(
    platform: str,
    rule: Rule,
    tensor: Tensor,
    nn: dict[str, jax.Array],
    scale: jax.Array,
    shared: Shared,
) -> tuple[jax.Array, Accumulators]:
    old, shape = tensor.accumulators, tensor.grad.shape
    axes = factored_axes(shape, rule.factoring)
    cut = _cut(platform, rule, shape, axes)
    rows = _rows_of_w0(rule, axes, old)
    names = _seen_by_kernels(tuple(rows), axes)

    reduced = update_accumulators(
        Accumulators(row=old.row, col=old.col),
        finite_gradient(tensor.grad, rule.grad_bound),
        Decays(second=shared.decays.second),
        axes,
    )
    second = _second(rule, cut, axes, reduced)
    views = jax.tree.map(cut.view, (tensor.grad, tensor.param, old.momentum, old.rms))
    momentum, rms, sums = _accumulate(rule, cut, names, shared.decays, views, second)

    means = _means(cut, sums)
    scales = lax.rsqrt(means + rule.norm_eps)
    w0 = nn["w0"][np.concatenate([rows[name] for name in names])] * scales[..., None]
    b0 = nn["b0"]
    if shared.constants is not None:
        b0 = b0 + _matmul(shared.constants, nn["w0"][sum(map(len, rows.values())) :])
    if axes is not None:
        seen = tensor._replace(accumulators=reduced)
        second = _with_hidden(rule, cut, axes, seen, second, nn["w0"], rows)
    factor, decay = -scale, jnp.asarray(shared.weight_decay, jnp.float32)
    if rule.param_scale:
        square = means[:, names.index("p")]  # The groups before have one plane each.
        factor = factor * jnp.sqrt(jnp.mean(square) + 1e-9)
    scalars = _packed(factor, decay, b0, w0, nn)
    views = *views[:2], momentum, rms
    widths = len(nn["b0"]), len(nn["b1"])
    update, *of_step = _apply(rule, cut, names, widths, scalars, views, second)
    if rule.normalize_step:
        total, kept = jnp.split(_totals(cut, *of_step), 2, 1)
        inverse = lax.rsqrt(total / jnp.maximum(kept, 1.0) + rule.norm_eps)
        update = factor * inverse[..., None] * update - decay * views[1]

    update, momentum, rms = jax.tree.map(
        lambda x: cut.original(x, shape), (update, momentum, rms)
    )
    return update, Accumulators(momentum, rms, reduced.row, reduced.col)


def _rows_of_w0(rule: Rule, axes: Axes, old: Accumulators) -> dict[str, np.ndarray]:
    """Per group of features that the tensor has."""
    names = rule.vector_features if axes is None else rule.features
    ends = np.cumsum(
        feature_sizes(names, len(old.momentum), len(old.rms), len(old.row))
    )
    return dict(zip(names, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))


def _seen_by_kernels(names: tuple[str, ...], axes: Axes) -> tuple[str, ...]:
    """Groups of planes as large as the tensor, in the order of `_planes`."""
    if axes is None:
        return names
    apart = _OF_ROW + _OF_COL + _OF_BOTH
    return tuple(n for n in names if n not in apart) + _OF_BOTH


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


def _second(rule: Rule, cut: _Cut, axes: Axes, moments: Accumulators) -> Any:
    """What kernels see of second moments: factored their roots, else the moments."""
    if axes is None:
        return tuple(row.reshape(cut.shape) for row in moments.row)
    roots = inverse_roots(moments, axes, fused_row_mean=rule.fused_row_mean)
    return _sides(cut, *zip(*roots, strict=True))


def _sides(
    cut: _Cut, row: Sequence[jax.Array], col: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Planes of rows and of columns, stacked: (A, rows, n) and (A, n, columns)."""
    a, rows, columns = cut.shape
    x, y = (row, col) if cut.row_of_rows else (col, row)
    return (
        jnp.concatenate([plane.reshape(a, rows, 1) for plane in x], 2),
        jnp.concatenate([plane.reshape(a, 1, columns) for plane in y], 1),
    )


def _with_hidden(
    rule: Rule,
    cut: _Cut,
    axes: Any,
    tensor: Tensor,
    roots: tuple[jax.Array, jax.Array],
    w0: jax.Array,
    rows: dict[str, np.ndarray],
) -> tuple[jax.Array, jax.Array]:
    """The roots, and after them what rows and columns add to the hidden layer."""
    groups = _OF_ROW, _OF_COL
    x, y = _sides(cut, *(adafactor_features(g, *tensor, axes) for g in groups))
    w_x, w_y = (w0[np.concatenate([rows[name] for name in g])] for g in groups)
    if not cut.row_of_rows:
        w_x, w_y = w_y, w_x
    lead = () if cut.apart else (0,)
    x = x * inverse_rms(x, rule.norm_eps, (*lead, 1))
    y = y * inverse_rms(y, rule.norm_eps, (*lead, 2))
    return (
        jnp.concatenate([roots[0], _matmul(x, w_x)], 2),
        jnp.concatenate([roots[1], _matmul(w_y.T, y)], 1),
    )


def _means(cut: _Cut, sums: jax.Array) -> jax.Array:
    """Per plane, of the sums of blocks: (A, planes), or (1, planes) over all."""
    a, rows, columns = cut.shape
    return _totals(cut, sums) / (rows * columns * (1 if cut.apart else a))


def _totals(cut: _Cut, sums: jax.Array) -> jax.Array:
    """Of sums of blocks: (A, n), or (1, n) over all."""
    totals = jnp.sum(sums[..., 0, :], (1, 2))
    return totals if cut.apart else jnp.sum(totals, 0, keepdims=True)


def _packed(
    factor: jax.Array,
    decay: jax.Array,
    b0: jax.Array,
    w0: jax.Array,
    nn: dict[str, jax.Array],
) -> jax.Array:
    """The scalars of `_apply` in the order of `_network`; shape (1 or A, 1, n)."""
    # Networks may have more outputs than the direction and the magnitude.
    rest = [nn["b1"], nn["w1"], nn["b2"][:2], nn["w2"][:, :2]]

    def one(w0):
        parts = [factor, decay, b0, w0, *rest]
        return jnp.concatenate([x.reshape(-1) for x in parts])[None]

    return jax.vmap(one)(w0)


class _Tile(NamedTuple):
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
        """The k-th planes of `_sides`."""
        return x[self.rows, pl.ds(k, 1)], y[pl.ds(k, 1), self.columns]


def _each_tile(
    cut: _Cut, body: Callable[[_Tile, list], list], carry: list[jax.Array]
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
        return body(_Tile(rows, columns, inside, masked), carry)

    def row_of_tiles(i, carry):
        return _loop(across, lambda j, carry: step(i, j, carry), carry)

    return _loop(down, row_of_tiles, carry)


def _loop(
    count: int, body: Callable[[Any, Any], Any], carry: Any, unrolled: int = 1
) -> Any:
    if count <= unrolled:
        for i in range(count):
            carry = body(i, carry)
        return carry
    return lax.fori_loop(np.int32(0), np.int32(count), body, carry)


def _multiple(k: Any, size: int) -> Any:
    return k * size if isinstance(k, int) else pl.multiple_of(k * size, size)


def _planes(
    rule: Rule,
    cut: _Cut,
    names: tuple[str, ...],
    grad: jax.Array,
    param: jax.Array,
    momentum: Sequence[jax.Array],
    rms: Sequence[jax.Array],
    second: Sequence[jax.Array],
) -> list[jax.Array]:
    """Those of `_seen_by_kernels`.

    Args:
      second: per decay the factored `v^-1/2`, or the moment of a vector.
    """
    alone = tuple(name for name in names if not cut.factored or name not in _OF_BOTH)
    planes = adafactor_features(
        alone,
        grad,
        param,
        Accumulators(tuple(momentum), tuple(rms), tuple(second)),
        None,
        rms_eps=rule.rms_eps,
        vector_eps=rule.vector_eps,
    )
    if cut.factored:
        planes += [grad * root for root in second]
        planes += [m * root for m, root in pairs(momentum, second)]
    return planes


def _accumulate(
    rule: Rule,
    cut: _Cut,
    names: tuple[str, ...],
    decays: Decays,
    views: tuple,
    second: Any,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], jax.Array]:
    """The new momenta and second moments, and per block the planes' sums of squares.

    Args:
      views: gradient, parameter, momenta and second moments, of `cut.shape`.
      second: from `_second`.
    """
    _, _, momentum, rms = views
    n, moments = len(momentum), len(momentum) + len(rms)
    seconds = second[0].shape[-1] if cut.factored else len(second)
    scalars = jnp.concatenate(
        [jnp.asarray(d, jnp.float32).reshape(-1) for d in (decays.momentum, decays.rms)]
    )
    # Operands of the kernel: the scalars, the gradient, the parameter, the moments.
    aliases = {3 + i: i for i in range(moments)}
    *new, sums = _call(
        functools.partial(_accumulate_kernel, rule, cut, names),
        cut,
        (scalars[None, None], views, second),
        moments,
        sum(feature_sizes(names, n, len(rms), seconds)),
        aliases,
    )
    return tuple(new[:n]), tuple(new[n:]), sums


def _accumulate_kernel(rule, cut, names, decays, views, second, *outputs):
    grad_ref, param_ref, momentum_refs, rms_refs = views
    *new_refs, sums_ref = outputs
    n = len(momentum_refs)

    def body(tile, totals):
        grad = finite_gradient(tile.load(grad_ref), rule.grad_bound)
        new = [
            update_moment(tile.load(ref), grad if i < n else grad * grad, decays[0, i])
            for i, ref in enumerate((*momentum_refs, *rms_refs))
        ]
        for ref, value in zip(new_refs, new, strict=True):
            tile.store(ref, value)
        if cut.factored:
            x, y = second
            sides = [tile.side(x, y, k) for k in range(x.shape[-1])]
            seen = [row * column for row, column in sides]
        else:
            seen = [tile.load(ref) for ref in second]
        planes = _planes(
            rule, cut, names, grad, tile.load(param_ref), new[:n], new[n:], seen
        )
        return [t + tile.square(x) for t, x in zip(totals, planes, strict=True)]

    zeros = [jnp.zeros(cut.tile, jnp.float32)] * sums_ref.shape[-1]
    for k, total in enumerate(_each_tile(cut, body, zeros)):
        sums_ref[0, k] = jnp.sum(total)


def _apply(
    rule: Rule,
    cut: _Cut,
    names: tuple[str, ...],
    widths: tuple[int, int],
    scalars: jax.Array,
    views: tuple,
    second: Any,
) -> list[jax.Array]:
    """The updates; or steps that are yet to be normalised, with their sums.

    These are, per block, of their squares, and the number of those not held.

    Args:
      widths: of the hidden layers.
      scalars: from `_packed`.
      views: as for `_accumulate`, the moments new.
      second: from `_with_hidden` if factored.
    """
    kernel = functools.partial(_apply_kernel, rule, cut, names, widths)
    return _call(kernel, cut, (scalars, views, second), 1, 2 * rule.normalize_step, {})


def _apply_kernel(rule, cut, names, widths, scalars, views, second, *outputs):
    grad_ref, param_ref, momentum_refs, rms_refs = views

    def body(tile, totals):
        added = [0.0] * widths[0]
        if cut.factored:
            x, y = second
            roots = x.shape[-1] - widths[0]
            sides = [tile.side(x, y, k) for k in range(x.shape[-1])]
            seen = [row * column for row, column in sides[:roots]]
            added = [row + column for row, column in sides[roots:]]
        else:
            seen = [tile.load(ref) for ref in second]
        param = tile.load(param_ref)
        grad = finite_gradient(tile.load(grad_ref), rule.grad_bound)
        momentum, rms = (
            tuple(tile.load(ref) for ref in refs) for refs in (momentum_refs, rms_refs)
        )
        planes = _planes(rule, cut, names, grad, param, momentum, rms, seen)
        direction, magnitude = _network(scalars, widths, planes, added)
        step = direction * jnp.exp(magnitude * rule.exp_mult)
        kept = jnp.ones_like(step)
        still = held(rule, grad, Accumulators(momentum, rms))
        if still is not None:
            step, kept = (jnp.where(still, 0.0, x) for x in (step, kept))
        if not rule.normalize_step:
            tile.store(outputs[0], scalars[0, 0] * step - scalars[0, 1] * param)
            return []
        tile.store(outputs[0], step)
        return [totals[0] + tile.square(step), totals[1] + tile.within(kept)]

    zeros = [jnp.zeros(cut.tile, jnp.float32)] * (2 * rule.normalize_step)
    for k, total in enumerate(_each_tile(cut, body, zeros)):
        outputs[1][0, k] = jnp.sum(total)


def _network(
    scalars: Any, widths: tuple[int, int], planes: list[jax.Array], added: Sequence[Any]
) -> list[jax.Array]:
    """The network's outputs.

    The first hidden layer takes a plane at a time; each unit of the second goes into
    the outputs at once. So only the first is ever held.

    Args:
      widths: of the hidden layers.
      added: to the first layer.
    """
    first, second = widths
    b0 = 2  # Positions; of the scalars the first are for the update.
    w0 = b0 + first
    b1 = w0 + len(planes) * first
    w1 = b1 + second
    b2 = w1 + first * second
    w2 = b2 + 2

    hidden = [scalars[0, b0 + k] + x for k, x in enumerate(added)]
    for i, plane in enumerate(planes):
        hidden = [
            h + plane * scalars[0, w0 + i * first + k] for k, h in enumerate(hidden)
        ]
    hidden = [jax.nn.relu(h) for h in hidden]

    def through(k, outputs):
        unit = scalars[0, b1 + k]
        for i, h in enumerate(hidden):
            unit = unit + h * scalars[0, w1 + i * second + k]
        unit = jax.nn.relu(unit)
        return [y + unit * scalars[0, w2 + 2 * k + o] for o, y in enumerate(outputs)]

    outputs = [jnp.full(planes[0].shape, scalars[0, b2 + o]) for o in range(2)]
    # Where it was unrolled, a GPU's compiler took two minutes for 32 units.
    return _loop(second, through, outputs, unrolled=8)


def _call(
    kernel: Callable[..., None],
    cut: _Cut,
    operands: tuple[jax.Array, tuple, Any],
    outputs: int,
    sums: int,
    aliases: dict[int, int],
) -> list[jax.Array]:
    """Runs a kernel on every block.

    Args:
      operands: scalars of shape (1 or A, 1, n); tensors of `cut.shape`; `_second`.
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


def _padded(cut: _Cut, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """To whole blocks: so what is read of `_sides` needs no mask."""
    _, *sizes = cut.shape
    rows, columns = (-n % b for n, b in zip(sizes, cut.block, strict=True))
    return (
        jnp.pad(x, ((0, 0), (0, rows), (0, 0))),
        jnp.pad(y, ((0, 0), (0, 0), (0, columns))),
    )
