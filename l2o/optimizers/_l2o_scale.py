"""`l2o_scale`: recurrent networks per coordinate, per tensor and for the problem."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import checked
from .._base import LearnedOptimizer
from .._options import takes
from .._tensors import is_held, map_tensors, sharded_like, square_root, zeros_like
from .._transformation import transformation
from ..names import check_known
from ..recurrent._cell import Weights, linear
from ..rule._rule import Untouched, check_untouched

_SCALES = 4  # averages of the gradient, each over twice the time of the one before
_INPUTS = 3 * _SCALES  # scaled averages, products of neighbours, log squares, log rate
_WEIGHT_SCALE = 0.5
_GATE_BIAS = 2.2
_INPUT_DECAY_LOGIT = 2.2  # sigmoid(2.2) is about 0.9
_SCALE_DECAY_LOGIT = 3.2
_LR_MOMENTUM_LOGIT = 3.2
_MAX_LOG_LR = 33.0


class L2OScaleState(NamedTuple):
    """State of `l2o_scale`: 84 bytes per parameter by default, 80 per tensor."""

    coordinate: Any  # tree, leaves param.shape + (sizes[0],): hidden states
    tensor: Any  # tree, leaves (sizes[1],)
    problem: jax.Array  # (sizes[2],)
    scale_decay: Any  # tree like params, as are the following; all float32
    input_decay: Any
    log_lr: Any
    momentum: tuple[Any, ...]  # the averages of the gradient
    square: tuple[Any, ...]  # their mean squares
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(old={"min_lr": "min_learning_rate", "max_lr": "max_learning_rate"})
def l2o_scale(
    *,
    level_sizes: Sequence[int] = (10, 20, 20),
    min_learning_rate: float = 1e-6,
    max_learning_rate: float = 1e-2,
    global_input: str = "mean",
    seed: int = 0,
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Hierarchical GRUs that choose a direction and a rate per coordinate (L2O-Scale).

    .. math:: h' = \mathrm{GRU}_\theta(x(g), h; H, G), \quad
              H' = \mathrm{GRU}_\theta(\overline{[h', x]}, H; G), \quad
              G' = \mathrm{GRU}_\theta(\overline{H'}, G)

    .. math:: \delta = \frac{w^\top h' + u^\top x}{\mathrm{rms}}, \quad
              \ell = \log \alpha + v^\top h' + b, \quad p \leftarrow p - e^{\ell + c}
              \delta

    with states h per coordinate, H per tensor and G of the problem; a level is biased
    by those above it. The inputs x are four averages of the gradient at doubling time
    scales, each divided by its own running root mean square, their products, their
    relative squares, and log alpha relative to its mean over the problem. alpha follows
    e^l slowly; the decays of averages and squares are read from h' too.

    Args:
      level_sizes: of h, H and G; 8 349 meta-parameters by default.
      min_learning_rate, max_learning_rate: alpha starts between them, log-uniform per
        coordinate times log-uniform per tensor.
      global_input: what G sees. "mean" is the mean of H' over tensors, as described in
        the paper; "last_tensor" is H' of the last tensor alone, as in the published
        code, where a loop variable is used after the loop.
      seed: of the initial alpha. The published ones are drawn anew for every run; here
        `init` is a function of the shapes and this number (and of theta, which has
        the initial h, H and G).
      untouched: what becomes of coordinates that have had no gradient: "held", or
        "pushed" by the networks, as published.

    Raises:
      ValueError: unknown `global_input`, not three levels, or min_learning_rate above
        max_learning_rate.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.l2o_scale()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params))

    Source: "Learned optimizers that scale and generalize" (Wichrowska et al., 2017),
    with the defaults of Open-L2O.
    """
    arguments = checked(l2o_scale, locals())
    check_known("global_input", global_input, ("mean", "last_tensor"))
    if len(level_sizes) != 3:
        raise ValueError(
            f"level_sizes has the sizes of three levels, got {tuple(level_sizes)}"
        )
    if not 0 < min_learning_rate <= max_learning_rate:
        raise ValueError(
            "min_learning_rate must be in (0, max_learning_rate = "
            f"{max_learning_rate}], got {min_learning_rate}"
        )
    holds = check_untouched(untouched)
    sizes = tuple(level_sizes)

    def init_theta(key):
        return _init_theta(key, *sizes)

    def bind(theta, *, num_steps=None):
        del num_steps

        def init_fn(params):
            new_log_lr = functools.partial(
                _initial_log_lr, seed, min_learning_rate, max_learning_rate
            )
            return _init_state(theta["initial"], new_log_lr, params)

        def update_fn(updates, state, params=None, **extra_args):
            del params, extra_args
            return _update(theta, global_input, holds, updates, state)

        return transformation(init_fn, update_fn, name="l2o_scale")

    return LearnedOptimizer(init_theta, bind, "l2o_scale", arguments, ())


def _init_theta(
    key: jax.Array, size: int, tensor_size: int, problem_size: int
) -> dict[str, Any]:
    """Weights of the three levels, and of what is read from the lowest."""
    keys = iter(jax.random.split(key, 16))

    def initial(n):
        return jax.random.uniform(next(keys), (n,), jnp.float32, -1, 1)

    return {
        "coordinate": _init_gru(next(keys), _INPUTS, size),
        "tensor": _init_gru(next(keys), size + _INPUTS, tensor_size),
        "problem": _init_gru(next(keys), tensor_size, problem_size),
        "initial": {
            "coordinate": initial(size),
            "tensor": initial(tensor_size),
            "problem": initial(problem_size),
        },
        "bias": {
            "tensor_to_coordinate": _init(next(keys), tensor_size, 3 * size),
            "problem_to_coordinate": _init(next(keys), problem_size, 3 * size),
            "problem_to_tensor": _init(next(keys), problem_size, 3 * tensor_size),
        },
        "direction": _init(next(keys), size, 1)["w"],
        "shortcut": 0.25 + 0.1 * _init(next(keys), _SCALES, 1)["w"] / _WEIGHT_SCALE,
        "scale_decay": _init(next(keys), size, 1, _SCALE_DECAY_LOGIT),
        "input_decay": _init(next(keys), size, 1, _INPUT_DECAY_LOGIT),
        "log_lr": optax.tree.zeros_like(_init(next(keys), size, 1)),
        "log_lr_momentum": jnp.float32(_LR_MOMENTUM_LOGIT),
        "log_lr_offset": jnp.float32(-1),
    }


def _init_state(
    initial: dict[str, jax.Array],
    new_log_lr: Callable[[int, tuple[int, ...]], jax.Array],
    params: Any,
) -> L2OScaleState:
    """The first state.

    Args:
      initial: h, H and G.
      new_log_lr: `(index, shape) -> log alpha` of one tensor.
      params: to be optimized.
    """
    leaves = jax.tree.leaves(params)
    structure: Any = jax.tree.structure(params)

    def tree(new):
        return structure.unflatten(
            [
                sharded_like(new(i, jnp.shape(leaf)), leaf)
                for i, leaf in enumerate(leaves)
            ]
        )

    def start(level, shape=()):
        # A buffer of its own for every leaf, so that states can be donated.
        return jnp.zeros((*shape, initial[level].size), jnp.float32) + initial[level]

    return L2OScaleState(
        coordinate=tree(lambda _, shape: start("coordinate", shape)),
        tensor=structure.unflatten([start("tensor") for _ in leaves]),
        problem=start("problem"),
        # Decays of zero: the first averages and squares are the gradient's.
        scale_decay=zeros_like(params, jnp.float32),
        input_decay=zeros_like(params, jnp.float32),
        log_lr=tree(new_log_lr),
        momentum=tuple(zeros_like(params, jnp.float32) for _ in range(_SCALES)),
        square=tuple(zeros_like(params, jnp.float32) for _ in range(_SCALES)),
    )


def _update(
    theta: Any, global_input: str, holds: bool, updates: Any, state: L2OScaleState
) -> tuple[Any, L2OScaleState]:
    """All tensors, then the level of the problem."""
    log_lrs = jax.tree.leaves(state.log_lr)
    used = [i for i, x in enumerate(log_lrs) if x.size]
    if not used:
        return updates, state
    mean_lr = sum(jnp.sum(x) for x in log_lrs) / sum(x.size for x in log_lrs)
    updates, hidden, tensor, decays, log_lr, momentum, square = map_tensors(
        functools.partial(_update_tensor, theta, state.problem, mean_lr, holds),
        updates,
        updates,
        (state.coordinate,),
        (state.tensor,),
        (state.scale_decay, state.input_decay),
        (state.log_lr,),
        state.momentum,
        state.square,
    )
    tensors = [jax.tree.leaves(tensor[0])[i] for i in used]
    return updates, L2OScaleState(
        coordinate=hidden[0],
        tensor=tensor[0],
        problem=_next_problem(theta, global_input, tensors, state.problem),
        scale_decay=decays[0],
        input_decay=decays[1],
        log_lr=log_lr[0],
        momentum=momentum,
        square=square,
    )


def _update_tensor(theta, problem, mean_lr, holds, grad, _, *slots):
    """The update of one tensor, and what follows in its slots."""
    (hidden,), (tensor,), decays, (log_lr,), momentum, square = slots
    # A scalar comes as one coordinate; its hidden state is not reshaped.
    hidden = hidden.reshape(*grad.shape, -1)
    scale_decay, input_decay = decays
    momentum = _update_momentum(momentum, grad, input_decay)
    square = tuple(
        _update_square(s, m, scale_decay) for s, m in zip(square, momentum, strict=True)
    )
    scaled = [
        jnp.arcsinh(m * lax.rsqrt(s + 1e-16))
        for m, s in zip(momentum, square, strict=True)
    ]
    inputs = _features(scaled, square, log_lr - mean_lr)
    hidden = _next_coordinates(theta, inputs, hidden, tensor, problem)
    tensor = _next_tensor(theta, inputs, hidden, tensor, problem)
    direction = _direction(theta, hidden, scaled)
    decays = _next_decays(theta, hidden)
    step_lr, log_lr = _next_log_lr(theta, hidden, log_lr)
    step = jnp.exp(step_lr + theta["log_lr_offset"]) * direction
    if holds:
        step = jnp.where(is_held(momentum[0]), 0.0, step)
    return -step, (hidden,), (tensor,), decays, (log_lr,), momentum, square


def _next_coordinates(theta, inputs, hidden, tensor, problem):
    """`h' = GRU(x, h; H, G)` of the coordinates of a tensor."""
    above = linear(theta["bias"]["tensor_to_coordinate"], tensor)
    above += linear(theta["bias"]["problem_to_coordinate"], problem)
    return _gru(theta["coordinate"], inputs, hidden, above)


def _next_tensor(theta, inputs, hidden, tensor, problem):
    """`H' = GRU(mean([h', x]), H; G)`."""
    means = jnp.concatenate([hidden, inputs], -1)
    means = jnp.mean(means, range(means.ndim - 1))
    above = linear(theta["bias"]["problem_to_tensor"], problem)
    return _gru(theta["tensor"], means, tensor, above)


def _next_problem(theta, global_input, tensors, problem):
    """`G' = GRU(mean(H'), G)`, the mean over all tensors or of the last alone."""
    if global_input == "last_tensor":
        tensors = tensors[-1:]
    below = jnp.mean(jnp.stack(tensors), 0)
    return _gru(theta["problem"], below, problem)


def _direction(theta, hidden, scaled):
    """delta, whose mean square over the tensor is one."""
    direction = _project(theta["direction"], hidden)
    direction += _project(theta["shortcut"], jnp.stack(scaled, -1))
    return direction * lax.rsqrt(jnp.mean(direction**2) + 1e-16)


def _next_decays(theta, hidden):
    """Those of the squares and of the averages, for the next update."""
    return (
        jax.nn.sigmoid(linear(theta["scale_decay"], hidden)[..., 0]),
        jax.nn.sigmoid(linear(theta["input_decay"], hidden)[..., 0]),
    )


def _next_log_lr(theta, hidden, log_lr):
    """l, the logarithm of this update's rate, and log alpha, which follows it."""
    step_lr = log_lr + linear(theta["log_lr"], hidden)[..., 0]
    # Clipped in value but not in gradient, so that theta can leave the bounds.
    step_lr += lax.stop_gradient(jnp.clip(step_lr, -_MAX_LOG_LR, _MAX_LOG_LR) - step_lr)
    keep = jax.nn.sigmoid(theta["log_lr_momentum"])
    return step_lr, keep * log_lr + (1 - keep) * step_lr


def _initial_log_lr(seed, min_learning_rate, max_learning_rate, index, shape):
    key = jax.random.fold_in(jax.random.key(seed), index)
    # Half of the range each, in logarithms.
    low, high = math.log(min_learning_rate) / 2, math.log(max_learning_rate) / 2
    log_lr = sum(
        jax.random.uniform(k, s, jnp.float32, low, high)
        for k, s in zip(jax.random.split(key), (shape, ()), strict=True)
    )
    return jnp.clip(log_lr, -_MAX_LOG_LR, _MAX_LOG_LR)


def _update_momentum(momentum, grad, decay):
    new = []
    for m in momentum:
        new.append((1 - decay) * grad + decay * m)
        # The first decay is zero, where the root has no derivative.
        decay = square_root(decay)
    return tuple(new)


def _update_square(square, x, decay):
    return (1 - decay) * (x * x + 1e-12) + decay * square


def _features(scaled, square, relative_lr):
    products = [a * b for a, b in itertools.pairwise(scaled)]
    logs = [jnp.log(s + 1e-16) for s in square]
    mean = sum(logs) / _SCALES
    return jnp.stack(
        [*scaled, *products, *(log - mean for log in logs), relative_lr], -1
    )


def _gru(
    theta: dict[str, Weights],
    x: jax.Array,
    hidden: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """One step of a GRU; `bias`, shape (3 size,), is added to both gates and candidate.

    `r, u = sigmoid(...)`, `c = tanh(W [x, r h] + ...)`, `h' = u h + (1 - u) c`.
    """
    bias = jnp.float32(0) if bias is None else bias
    r, u, c = jnp.split(jnp.broadcast_to(bias, (3 * hidden.shape[-1],)), 3)
    gates = linear(theta["gates"], jnp.concatenate([x, hidden], -1))
    gates = jax.nn.sigmoid(gates + jnp.concatenate([r, u]))
    r, u = jnp.split(gates, 2, -1)
    x = jnp.concatenate([x, r * hidden], -1)
    candidate = jnp.tanh(linear(theta["candidate"], x) + c)
    return u * hidden + (1 - u) * candidate


def _init_gru(key, inputs, size):
    keys = jax.random.split(key)
    return {
        "gates": _init(keys[0], inputs + size, 2 * size, _GATE_BIAS),
        "candidate": _init(keys[1], inputs + size, size),
    }


def _init(key, inputs, outputs, bias=0.0):
    w = jax.random.normal(key, (inputs, outputs), jnp.float32)
    return {
        "w": _WEIGHT_SCALE / math.sqrt(inputs) * w,
        "b": jnp.full(outputs, bias, jnp.float32),
    }


def _project(w, x):
    return jnp.matmul(x, w, precision=lax.Precision.HIGHEST)[..., 0]
