"""Costs that need no clock: read from shapes and from compiled programs."""

from typing import Any

import jax

import l2o

from ._program import Program, abstract, chosen_backend, update_program

_SIDES = (256, 512)  # of matrices whose states are compared
# Small enough that no optimizer loops over parts of it: a loop's body counts once.
_COUNTED = 256
_LARGE = 1000


def count_costs(optimizer: l2o.LearnedOptimizer) -> dict[str, Any]:
    r"""Sizes and FLOPs of an optimizer; exact for a version of JAX and a platform.

    .. math:: S(2r, 2c) - S(2r, c) - S(r, 2c) + S(r, c) = b\, r c

    where a state of S bytes grows with b per parameter, beside what grows with rows
    and columns. FLOPs are XLA's, of the plain JAX update of a 256 x 256 matrix and of
    its parameters, without what a 2 x 2 matrix takes, too, over the parameters.

    Returns:
      `meta_parameters`; `state_bytes` per parameter; `tensor_bytes`, of a 2 x 2 matrix
      beside them; `flops` per parameter; `tensor_flops`, of a 2 x 2 matrix;
      `temporary_bytes` per parameter of a 1000 x 1000 matrix, as updates are compiled
      here, and `xla_temporary_bytes` with plain JAX; `kernels`, whether the former has
      any.
    """
    small, twice = _SIDES
    theta, _, tiny = abstract(optimizer, (2, 2))
    both, tall = (_state(optimizer, (twice, c)) for c in (twice, small))
    wide, least = (_state(optimizer, (small, c)) for c in (twice, small))
    # Over (2r - r) (2c - c) = r c parameters.
    state_bytes = (both - tall - wide + least) / small**2
    few, many = _flops(optimizer, 2), _flops(optimizer, _COUNTED)
    large = (_LARGE, _LARGE)
    here = update_program(optimizer, large, chosen_backend())
    plain = update_program(optimizer, large, "xla") if here.kernels else here
    return {
        "meta_parameters": sum(x.size for x in jax.tree.leaves(theta)),
        "state_bytes": state_bytes,
        "tensor_bytes": _bytes(tiny) - 4 * state_bytes,
        "flops": (many - few) / (_COUNTED**2 - 4),
        "tensor_flops": few,
        "temporary_bytes": _temporaries(here),
        "xla_temporary_bytes": _temporaries(plain),
        "kernels": here.kernels,
    }


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _state(optimizer: l2o.LearnedOptimizer, shape: tuple[int, int]) -> int:
    return _bytes(abstract(optimizer, shape)[2])


def _flops(optimizer: l2o.LearnedOptimizer, side: int) -> float:
    # In a native kernel XLA sees nothing.
    program = update_program(optimizer, (side, side), "xla")
    return float(program.compiled.cost_analysis()["flops"])


def _temporaries(program: Program) -> float:
    return program.compiled.memory_analysis().temp_size_in_bytes / _LARGE**2
