"""What the per-parameter networks see, and how it is normalised.

A *plane* is one feature of one tensor: an array that broadcasts to the tensor's shape.
Features that are constant along an axis (row and column moments) keep size 1 there and
are never expanded.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._accumulators import Accumulators, Axes, inverse_roots

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)

# The groups of planes that VeLO and its successors see, in published order.
FEATURES = (
    "g",
    "clip_g",
    "p",
    "m",
    "rms",
    "m_norm",
    "rsqrt_rms",
    "fac_g",
    "g_norm",
    "row",
    "col",
    "rsqrt_row",
    "rsqrt_col",
    "fac_m",
)
# Those of small_fc, which came before the others.
SMALL_FC_FEATURES = tuple(f for f in FEATURES if f not in ("clip_g", "g_norm"))


def time_embedding(step: jax.Array) -> jax.Array:
    """`tanh(step / tau - 1)` for eleven time scales tau from 1 to 1e5; shape (11,).

    `step` counts updates made before this one. Source: "Understanding and correcting
    pathologies in the training of learned optimizers" (Metz et al., 2019).
    """
    scales = jnp.asarray(TIME_SCALES, jnp.float32)
    return jnp.tanh(step.astype(jnp.float32) / scales - 1)


def inverse_rms(
    plane: jax.Array, eps: float, axes: tuple[int, ...] | None = None
) -> jax.Array:
    """`(mean(plane^2) + eps)^-1/2`: the scale that gives a plane unit second moment.

    The mean over a broadcast plane is the mean over the tensor, because every entry is
    repeated equally often. Over all axes (None) the scale is a scalar, which is handed
    to the network and folded into its first weights instead of being multiplied into
    the plane; over some it keeps their size at 1.
    """
    return lax.rsqrt(jnp.mean(plane * plane, axes, keepdims=axes is not None) + eps)


@jax.custom_jvp
def over_root(x: jax.Array, v: jax.Array) -> jax.Array:
    """`x v^-1/2`, whose derivative is finite where x is zero and v tiny.

    That of the root alone is `v^-3/2`, which overflows float32 at 1e-30.
    """
    return x * lax.rsqrt(v)


@over_root.defjvp
def _over_root_jvp(primals, tangents):
    (x, v), (dx, dv) = primals, tangents
    out = over_root(x, v)
    slope = over_root(over_root(out, v), v)
    return out, dx * lax.rsqrt(v) - 0.5 * slope * dv


def adafactor_features(
    names: Sequence[str],
    grad: jax.Array,
    param: jax.Array,
    accumulators: Accumulators,
    axes: Axes,
    *,
    rms_eps: float = 1e-6,
    vector_eps: float = 0.0,
    fac_g_from: Accumulators | None = None,
    roots: tuple[Any, Any] | None = None,
) -> list[jax.Array]:
    """The planes of the named groups, not normalised.

    | group | planes |
    |---|---|
    | g, clip_g, p | the gradient; clipped to 0.1 in size; the parameter |
    | m, rms | the momenta; the second moments |
    | rsqrt_rms, m_norm, g_norm | `rms^-1/2`; m and g times it |
    | fac_g, fac_m | g and m times the factored `v^-1/2` |
    | row, col, rsqrt_row, rsqrt_col | the factored moment and its `-1/2` power |

    A group has one plane per decay. A vector has its full moment in place of row and
    col.

    Args:
      names: groups of `FEATURES`, in the order wanted.
      grad, param: the gradient and the parameters before the update, float32.
      accumulators: of this tensor; they have already seen `grad`.
      axes: from `factored_axes`.
      rms_eps: added to rms under the root.
      vector_eps: added to a vector's v for fac_m; published optimizers differ.
      fac_g_from: other accumulators for fac_g: where biases are corrected, its are not.
      roots: `inverse_roots` for fac_g and for fac_m, if known.

    Source: "Practical tradeoffs between memory, compute, and performance in learned
    optimizers" (Metz et al., 2022); "VeLO: Training versatile learned optimizers by
    scaling up" (Metz et al., 2022).
    """
    momentum, rms, row, col = accumulators
    if axes is None:
        col = row

    @functools.cache
    def rsqrt_rms():
        return [lax.rsqrt(x + rms_eps) for x in rms]

    def fac_g():
        source = accumulators if fac_g_from is None else fac_g_from
        factors = inverse_roots(source, axes) if roots is None else roots[0]
        return [math.prod(root, start=grad) for root in factors]

    def fac_m():
        if axes is None:
            return [over_root(m, v + vector_eps) for m, v in pairs(momentum, row)]
        factors = inverse_roots(accumulators, axes) if roots is None else roots[1]
        return [math.prod(root, start=m) for m, root in pairs(momentum, factors)]

    groups: dict[str, Callable[[], list[jax.Array]]] = {
        "g": lambda: [grad],
        "clip_g": lambda: [jnp.clip(grad, -0.1, 0.1)],
        "p": lambda: [param],
        "m": lambda: list(momentum),
        "rms": lambda: list(rms),
        "m_norm": lambda: [m * s for m, s in pairs(momentum, rsqrt_rms())],
        "rsqrt_rms": rsqrt_rms,
        "fac_g": fac_g,
        "g_norm": lambda: [grad * s for s in rsqrt_rms()],
        "row": lambda: list(row),
        "col": lambda: list(col),
        "rsqrt_row": lambda: [lax.rsqrt(x + 1e-8) for x in row],
        "rsqrt_col": lambda: [lax.rsqrt(x + 1e-8) for x in col],
        "fac_m": fac_m,
    }
    return [plane for name in names for plane in groups[name]()]


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """The named groups in the order of `FEATURES`.

    Raises:
      ValueError: an unknown group, or none at all.
    """
    if not names:
        raise ValueError(f"features is empty, expected some of {', '.join(FEATURES)}")
    unknown = sorted(set(names) - set(FEATURES))
    if unknown:
        raise ValueError(
            f"unknown features {', '.join(unknown)}; known: {', '.join(FEATURES)}"
        )
    return tuple(name for name in FEATURES if name in names)


def feature_sizes(
    names: Sequence[str], momentum: int, rms: int, second: int
) -> list[int]:
    """Planes per group, for so many decays.

    Raises:
      ValueError: decays that cannot be paired.
    """
    sizes = {
        **dict.fromkeys(("g", "clip_g", "p"), 1),
        "m": momentum,
        **dict.fromkeys(("rms", "rsqrt_rms", "g_norm"), rms),
        **dict.fromkeys(("fac_g", "row", "col", "rsqrt_row", "rsqrt_col"), second),
    }
    if "m_norm" in names:
        sizes["m_norm"] = len(pairs(range(momentum), range(rms)))
    if "fac_m" in names:
        sizes["fac_m"] = len(pairs(range(momentum), range(second)))
    return [sizes[name] for name in names]


def pairs(left: Sequence, right: Sequence) -> list[tuple]:
    """Zips two groups of features; a group of one goes with every member of the other.

    Raises:
      ValueError: the sizes differ and neither is one.
    """
    n = max(len(left), len(right))
    if {len(left), len(right)} - {1, n}:
        raise ValueError(
            f"groups of {len(left)} and {len(right)} accumulators cannot be paired: "
            "give them equally many decays, or one of them a single decay"
        )
    return list(
        zip(
            left if len(left) == n else [*left] * n,
            right if len(right) == n else [*right] * n,
            strict=True,
        )
    )
