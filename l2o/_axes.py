"""Which axes of a tensor are a matrix, and how a rule comes to see it so."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from .names import check_known

Role = Literal["hidden", "embedding", "head", "vector"]


class Axes(NamedTuple):
    """What a tensor is, and which of its axes are the rows and columns of a matrix.

    Attributes:
      role: "hidden" and "head" are matrices that are multiplied by activations,
        "embedding" is a table of which a batch uses some rows, and "vector" is
        everything that is no matrix, such as a bias.
      inputs: axes that the product sums over; together the rows.
      outputs: axes of the result; together the columns.
      batch: axes that stack independent matrices.
    """

    role: Role
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()


VECTOR = Axes("vector")
# What a user may say: a spelling, a function of path and shape, or a tree of `Axes`.
AxesArgument = Any
_SPELLINGS = ("inferred", "last_two")

_BIASES = ("bias", "scale", "offset")
_KERNELS = ("kernel", "w", "weight")
_TABLES = re.compile(
    r"embed\w*|wte|wpe|(token|pos|position)_?(embed\w*)?"
    r"|(input|word|tok|token_type|positional|user|item)_?embed\w*"
)
_HEADS = re.compile(r"(lm_?)?head|logits(_dense)?|classifier|unembed\w*")
_INTO_HEADS = re.compile(r"(to_|w)?(q|k|v|qkv)(_proj)?|query|key|value|query_key_value")
_FROM_HEADS = re.compile(r"(to_|w)?o(ut)?(_proj)?|c_proj")
# Gemma's: (heads, model, head) and (parts, heads, model, head).
_EINSUMS = {"q_einsum": 1, "kv_einsum": 2, "qkv_einsum": 2}
_STACKS = re.compile(r"layers|blocks|scan\w*|stack\w*|\w*layer_stack\w*")
_EXPERTS = re.compile(r"(\w+_)?experts")


def infer_axes(
    path: str,
    shape: Sequence[int],
    bias: Sequence[int] | None = None,
    *,
    stack: int | Literal["none"] | None = None,
) -> Axes:
    """The axes of a tensor, from its name and shape.

    It knows the conventions of flax (linen and nnx), haiku and equinox:

    - `kernel` and `w` are (inputs, outputs); of a convolution (height, width, inputs,
      outputs); of attention (model, heads, head) and back.
    - A tensor of four axes that is itself called `conv` something is a convolution.
    - `weight` is (outputs, inputs, height, width), as in equinox and PyTorch.
    - `embedding`, `embeddings` and tables of positions are embeddings.
    - `head`, `logits`, `classifier` and `unembed` are heads.
    - `lora_a` is (inputs, rank) and `lora_b` (rank, outputs), of several axes each.
    - The first axis of `experts` stacks.
    - `bias`, `scale`, `offset` and what has one axis longer than one are vectors.

    A bias tells which axes are outputs, and a bias with one axis more tells of stacked
    layers. Of anything else the last two axes are the matrix and the others stack.

    Args:
      path: names separated by slashes, such as "Block_0/attention/query/kernel".
      shape: of the tensor.
      bias: shape of the bias beside it, if there is one.
      stack: the axis that counts layers, or "none". By default names and the bias tell;
        `axes_of` compares all tensors below a name such as `layers`.

    Example:
      >>> import l2o
      >>> l2o.infer_axes("Conv_0/kernel", (3, 3, 16, 32))
      Axes(role='hidden', inputs=(0, 1, 2), outputs=(3,), batch=())
      >>> l2o.infer_axes("attention/query/kernel", (64, 4, 16))
      Axes(role='hidden', inputs=(0,), outputs=(1, 2), batch=())
    """
    names = _names(path)
    last = names[-1] if names else ""
    shape, bias = tuple(shape), None if bias is None else tuple(bias)
    if sum(n > 1 for n in shape) < 2 or last in _BIASES:
        return VECTOR
    if stack is None and _is_stacked(names, shape, bias):
        stack = 0
    if isinstance(stack, int):
        if bias is not None:
            fits = len(bias) > stack and bias[stack] == shape[stack]
            bias = (*bias[:stack], *bias[stack + 1 :]) if fits else None
        inner = _single(names, (*shape[:stack], *shape[stack + 1 :]), bias)
        return _stacked(inner, stack)
    return _single(names, shape, bias)


def _names(path: str) -> list[str]:
    # What nnx keeps an array in is no name of the user's.
    return re.sub("/(raw_)?value$", "", path.lower()).split("/")


def _stacked(inner: Axes, stack: int) -> Axes:
    """Of several layers in one array, from the axes of one of them."""
    if inner.role == "vector":
        return VECTOR
    inputs, outputs, batch = (
        tuple(i + (i >= stack) for i in part) for part in inner[1:]
    )
    return Axes(inner.role, inputs, outputs, (stack, *batch))


def _stack_name(names: Sequence[str]) -> int | None:
    """Where a name tells of stacked layers."""
    # In a list of layers a number follows the name; in a stack none does.
    followed = [*names[1:], ""]
    for i, (name, after) in enumerate(zip(names[:-1], followed, strict=False)):
        if _STACKS.fullmatch(name) and not after.isdigit():
            return i
    return None


def _is_stacked(
    names: Sequence[str], shape: tuple[int, ...], bias: tuple[int, ...] | None
) -> bool:
    """Whether the first axis counts layers."""
    if names[-1] not in _KERNELS or len(shape) < 3:
        return False
    if bias is not None and len(bias) >= 2 and bias[0] == shape[0]:
        rest = bias[1:]
        if names[-1] == "weight":  # a convolution's bias is (outputs, 1, 1)
            return rest[0] == shape[1] > 1
        return shape[-len(rest) :] == rest
    return _stack_name(names) is not None


def _stack_axes(named: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The argument `stack` of `infer_axes`, of what is below a name such as `layers`.

    The axis is one that has the same length in all of these tensors: the first, or the
    second as in MaxText. A kernel of two axes tells that none are stacked.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in named:
        names = _names(path)
        at = _stack_name(names)
        if at is not None:
            groups.setdefault(tuple(names[: at + 1]), []).append(path)
    found: dict[str, Any] = {}
    for paths in groups.values():
        shapes = [named[path] for path in paths]
        flat = any(len(named[p]) < 3 and _names(p)[-1] in _KERNELS for p in paths)
        axes = [] if flat else [i for i in (0, 1) if _one_length(shapes, i)]
        found |= dict.fromkeys(paths, axes[0] if axes else "none")
    return found


def _one_length(shapes: Sequence[tuple[int, ...]], axis: int) -> bool:
    if any(len(shape) <= axis for shape in shapes):
        return False
    return len({shape[axis] for shape in shapes}) == 1


def _single(
    names: Sequence[str], shape: tuple[int, ...], bias: tuple[int, ...] | None
) -> Axes:
    """Of one layer."""
    rank, last = len(shape), names[-1]
    modules = [x for x in names[:-1] if not x.isdigit()]
    module = modules[-1] if modules else ""
    if sum(n > 1 for n in shape) < 2:
        return VECTOR
    if _is_table(last, module, shape):
        return Axes("embedding", tuple(range(rank - 1)), (rank - 1,))
    if rank > 2 and any(map(_EXPERTS.fullmatch, modules)):
        rest = None if bias is None or len(bias) < 2 else bias[1:]
        return _stacked(_single([last], shape[1:], rest), 0)
    role: Role = "head" if rank == 2 and _HEADS.fullmatch(module) else "hidden"
    if last == "weight":
        return Axes(role, tuple(range(1, rank)), (0,))
    if rank == 2:
        return Axes(role, (0,), (1,))
    outputs = _outputs(last, module, names, shape, bias)
    if not outputs:
        return last_two(shape)
    every = set(range(rank))
    return Axes(role, tuple(sorted(every - set(outputs))), outputs)


def _outputs(
    last: str,
    module: str,
    names: Sequence[str],
    shape: tuple[int, ...],
    bias: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Of a kernel of three axes or more; empty if it is not known."""
    rank = len(shape)
    every = tuple(range(rank))
    if last == "lora_a":
        return every[-1:]
    if last == "lora_b":
        return every[1:]
    if last not in ("kernel", "w"):
        return every[-1:] if "conv" in last and rank > 3 else ()
    if module in _EINSUMS:
        inputs = _EINSUMS[module]
        return tuple(i for i in every if i != inputs)
    if bias is not None and 0 < len(bias) < rank:
        if shape[-len(bias) :] == bias:
            return every[-len(bias) :]
        if bias == shape[-2:-1]:  # flax's ConvTranspose(transpose_kernel=True)
            return every[-2:-1]
    if _INTO_HEADS.fullmatch(module):
        return every[1:]
    known = _FROM_HEADS.fullmatch(module) or module == "attn_vec_einsum"
    if known or rank > 3 or "conv" in "/".join(names):
        return every[-1:]
    return ()


def _is_table(last: str, module: str, shape: tuple[int, ...]) -> bool:
    if sum(n > 1 for n in shape) != 2 or last in ("kernel", "w"):
        return False
    name = module if last == "weight" else last
    return _TABLES.fullmatch(name) is not None


def last_two(shape: Sequence[int]) -> Axes:
    """The last two axes as the matrix, whatever the tensor is: as Celo2 published."""
    rank = len(shape)
    if rank < 2:
        return VECTOR
    return Axes("hidden", (rank - 2,), (rank - 1,), tuple(range(rank - 2)))


def check_axes(name: str, axes: Any) -> None:
    """Raises `ValueError` for what cannot be axes; `name` asks."""
    if isinstance(axes, str):
        good = axes in _SPELLINGS
    else:
        leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, Axes))
        good = callable(axes) or all(isinstance(x, Axes) for x in leaves)
    if not good:
        raise ValueError(
            f"{name} needs axes to be {' or '.join(map(repr, _SPELLINGS))}, a function "
            f"of path and shape, or a tree of `Axes`, got {axes!r}"
        )


def axes_of(params: Any, axes: AxesArgument = "inferred") -> Any:
    """A tree like `params` with the `Axes` of every tensor.

    Args:
      params: a tree of arrays or of their shapes (`jax.eval_shape`).
      axes: "inferred" reads names and shapes, see `infer_axes`. "last_two" takes the
        last two axes of everything. A function `(path, shape) -> Axes` is asked for
        every tensor; where it returns None, axes are inferred. A tree of `Axes` like
        `params` is taken as it is.

    Raises:
      ValueError: an unknown spelling, axes that the tensor does not have or that are
        named twice or not at all, or a tree of another structure.

    Example:
      >>> import jax, l2o
      >>> params = {"conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), "float32")}}
      >>> l2o.axes_of(params)["conv"]["kernel"].inputs
      (0, 1, 2)
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    structure: Any = jax.tree.structure(params)
    paths = [_path(path) for path, _ in leaves]
    shapes = [tuple(jnp.shape(leaf)) for _, leaf in leaves]
    check_axes("axes_of", axes)
    if axes == "last_two":
        found = [last_two(shape) for shape in shapes]
    elif axes == "inferred" or callable(axes):
        found = _inferred(dict(zip(paths, shapes, strict=True)), axes)
    else:
        try:
            found = structure.flatten_up_to(axes)
        except ValueError as error:
            raise ValueError(
                "axes must be a tree like the parameters, with an `Axes` for each"
            ) from error
    for path, shape, each in zip(paths, shapes, found, strict=True):
        _check(path, shape, each)
    return structure.unflatten(found)


def _inferred(named: Mapping[str, tuple[int, ...]], axes: AxesArgument) -> list[Any]:
    """Of every tensor, by its path; a function of the user's is asked first."""
    stacks = _stack_axes(named)
    beside = {"/".join(_names(path)): shape for path, shape in named.items()}
    found = []
    for path, shape in named.items():
        told = axes(path, shape) if callable(axes) else None
        *modules, last = _names(path)
        bias = beside.get("/".join([*modules, "b" if last == "w" else "bias"]))
        inferred = infer_axes(path, shape, bias, stack=stacks.get(path))
        found.append(inferred if told is None else told)
    return found


def _path(path: Sequence[Any]) -> str:
    names = (
        next(
            str(getattr(key, name))
            for name in ("key", "name", "idx")
            if hasattr(key, name)
        )
        for key in path
    )
    # Haiku's module names have slashes of their own.
    return "/".join(name.strip("/") for name in names)


def _check(path: str, shape: tuple[int, ...], axes: Any) -> None:
    if not isinstance(axes, Axes):
        raise ValueError(f"axes of {path}: expected an `Axes`, got {axes!r}")
    check_known(f"role of {path}", axes.role, get_args(Role))
    if axes.role == "vector":
        return
    named = sorted((*axes.batch, *axes.inputs, *axes.outputs))
    if named != list(range(len(shape))) or not axes.inputs or not axes.outputs:
        raise ValueError(
            f"axes of {path}: every axis of {shape} must be named once, with at least "
            f"one of inputs and one of outputs, not {axes}"
        )


def view_shape(shape: Sequence[int], axes: Axes, *, tables: bool = True) -> tuple:
    """The shape of what `view` returns."""
    if len(shape) < 2 or axes.role == "vector" or _flat(axes, tables):
        return (math.prod(shape),) if len(shape) > 1 else tuple(shape)
    parts = [tuple(shape[i] for i in part) for part in axes[1:]]
    inputs, outputs, batch = parts
    return (*batch, math.prod(inputs), math.prod(outputs))


def _flat(axes: Axes, tables: bool) -> bool:
    return axes.role == "embedding" and not tables


def describe_axes(params: Any, axes: AxesArgument = "inferred") -> str:
    """A table: how every tensor of a model is seen, before anything is trained.

    Args:
      params, axes: as in `axes_of`.

    Example:
      >>> import jax, l2o
      >>> shape = jax.ShapeDtypeStruct((3, 3, 8, 16), "float32")
      >>> print(l2o.describe_axes({"conv": {"kernel": shape}}))
      tensor       shape           role    seen as  fan-in  fan-out
      conv/kernel  3 x 3 x 8 x 16  hidden  72 x 16      72       16
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    described = jax.tree.leaves(
        axes_of(params, axes), is_leaf=lambda x: isinstance(x, Axes)
    )
    rows = [("tensor", "shape", "role", "seen as", "fan-in", "fan-out")]
    for (path, leaf), each in zip(leaves, described, strict=True):
        shape = jnp.shape(leaf)
        seen = view_shape(shape, each)
        fans = ("-", "-") if len(seen) < 2 else tuple(map(str, seen[-2:]))
        text = [" x ".join(map(str, s)) or "scalar" for s in (shape, seen)]
        rows.append((_path(path), text[0], each.role, text[1], *fans))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i > 3 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
