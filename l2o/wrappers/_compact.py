"""`compact`: an optimizer whose state takes less memory."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._base import LearnedOptimizer
from .._transformation import transformation
from ..names import check_known
from ..rule._accumulators import Accumulators
from ._wrapped import wrapped

Momentum = Literal["float32", "nearest", "stochastic"]
SecondMoment = Literal["full", "factored"]

_KEPT_BITS = np.uint32(0xFFFF0000)  # of a float32, which are a bfloat16


class CompactState(NamedTuple):
    """State of `compact`."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    state: Any  # of the optimizer, with smaller accumulators


def compact(
    optimizer: LearnedOptimizer,
    *,
    momentum: Momentum = "stochastic",
    second_moment: SecondMoment = "full",
) -> LearnedOptimizer:
    r"""Keeps momenta in bfloat16, second moments as rows and columns.

    .. math:: m \leftarrow \mathrm{round}(\beta m + (1 - \beta) g), \quad
              v \approx \frac{r c^\top}{\mathrm{mean}(r)}

    Between updates a parameter of a matrix takes, for the accumulators of small_fc,
    VeLO and Celo (three momenta, one second moment),

    | momentum | second_moment | bytes |
    |---|---|---|
    | "float32" | "full" | 16, as without |
    | "float32" | "factored" | 12 |
    | "nearest", "stochastic" | "full" | 10 |
    | "nearest", "stochastic" | "factored" | 6 |

    The optimizer itself still computes in float32. What that does to its steps and to
    final losses is in docs/performance.md.

    Args:
      optimizer: one that keeps `Accumulators`: small_fc, elo, mulo, velo, celo,
        celo2_base, celo2 or a wrapper of those.
      momentum: "nearest" rounds to the nearest bfloat16. That stops a slow momentum
        from changing: of 0.999 a step is a thousandth, half a unit in its last place
        two to four thousandths. "stochastic" rounds up as often as it takes for the
        mean to be right; its random bits depend on the count of updates alone.
      second_moment: "factored" drops the second moments of single parameters and
        rebuilds them before each update from the rows and columns of the last decay;
        a vector's are kept as its rows anyway, and its own are dropped.

    Raises:
      ValueError: an unknown kind; the optimizer keeps no accumulators that this makes
        smaller.

    Example:
      >>> import l2o
      >>> optimizer = l2o.compact(l2o.small_fc(), second_moment="factored")

    Source: stochastic rounding: "Deep learning with limited numerical precision" (Gupta
    et al., 2015); factored moments: Adafactor (Shazeer & Stern, 2018).
    """
    for value, known in ((momentum, Momentum), (second_moment, SecondMoment)):
        check_known("kind", value, get_args(known))
    factored = second_moment == "factored"

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def compacted(state, count):
            def one(x):
                if not isinstance(x, Accumulators):
                    return x
                if momentum == "nearest":
                    rounded = optax.tree.cast(x.momentum, jnp.bfloat16)
                    x = x._replace(momentum=rounded)
                elif momentum == "stochastic":
                    key = jax.random.fold_in(jax.random.key(0), count)
                    x = _rounded_by_chance(x, key)
                return x._replace(rms=()) if factored else x

            return _map_accumulators(one, state)

        def restored(state):
            def one(x):
                if not isinstance(x, Accumulators):
                    return x
                if momentum != "float32":
                    x = x._replace(momentum=optax.tree.cast(x.momentum, jnp.float32))
                return x._replace(rms=(_rebuilt(x),)) if factored else x

            return _map_accumulators(one, state)

        def init_fn(params):
            state = tx.init(params)
            _check(state, factored)
            count = jnp.zeros([], jnp.int32)
            return CompactState(count, compacted(state, count))

        def update_fn(updates, state, params=None, **extra_args):
            updates, new = tx.update(
                updates, restored(state.state), params, **extra_args
            )
            count = optax.safe_increment(state.count)
            return updates, CompactState(count, compacted(new, count))

        return transformation(init_fn, update_fn, name="compact", finite=False)

    arguments = {"momentum": momentum, "second_moment": second_moment}
    return wrapped("compact", {"optimizer": optimizer}, arguments, bind)


def _map_accumulators(f: Any, state: Any) -> Any:
    return jax.tree.map(f, state, is_leaf=lambda x: isinstance(x, Accumulators))


def _check(state: Any, factored: bool) -> None:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Accumulators))
    found = [x for x in leaves if isinstance(x, Accumulators)]
    if not found:
        raise ValueError(
            "compact: this optimizer keeps no accumulators; those of small_fc, elo, "
            "mulo, velo, celo, celo2_base and celo2 can be made smaller"
        )
    if factored and any(len(x.rms) != 1 or not x.row for x in found):
        raise ValueError(
            "compact: second_moment='factored' replaces one second moment by factored "
            "ones, but this optimizer has "
            f"{len(found[0].rms)} and {len(found[0].row)}: give it one rms_decay and "
            "some adafactor_decays, or use second_moment='full'"
        )


def _rounded_by_chance(x: Accumulators, key: jax.Array) -> Accumulators:
    """With momenta in bfloat16."""
    if not x.momentum:
        return x
    leaves = [jax.tree.leaves(tree) for tree in x.momentum]
    structure = jax.tree.structure(x.momentum[0])
    small: list[list[jax.Array]] = [[] for _ in leaves]
    for i, moments in enumerate(zip(*leaves, strict=True)):
        # One draw for all momenta of a tensor: each is right in the mean.
        bits = jax.random.bits(jax.random.fold_in(key, i), moments[0].shape, jnp.uint16)
        for group, moment in zip(small, moments, strict=True):
            group.append(stochastic_bfloat16(moment, bits))
    return x._replace(momentum=tuple(jax.tree.unflatten(structure, s) for s in small))


def stochastic_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """One of the two bfloat16 next to x, whose mean over uniform bits is x.

    Args:
      x: float32.
      bits: uint16, of its shape.
    """
    x = jnp.asarray(x, jnp.float32)
    raw = lax.bitcast_convert_type(x, jnp.uint32) + bits
    rounded = lax.bitcast_convert_type(raw & _KEPT_BITS, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _rebuilt(x: Accumulators) -> Any:
    """Second moments from the rows and columns of the last decay."""

    def product(row, col):
        if row.ndim < 2:
            return row
        reduced = tuple(axis for axis, n in enumerate(col.shape) if n == 1)
        mean = jnp.mean(row, reduced, keepdims=True)
        # Rows of zeros have a mean of zero.
        return row * (col / jnp.where(mean > 0, mean, 1))

    return jax.tree.map(product, x.row[-1], x.col[-1])
