"""What a neural family samples per task without changing a shape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.names import check_known

from ._orthonormal import orthonormal

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "tanh": jnp.tanh,
    "cos": jnp.cos,
    "sin": jnp.sin,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "leaky_relu": lambda x: jnp.where(x > 0, x, -0.5 * x),
}

# The published twelve, of which two are there twice (relu; swish is silu).
VELO_ACTIVATIONS = (
    "relu", "relu", "relu6", "selu", "tanh", "cos",
    "sin", "sigmoid", "silu", "silu", "gelu", "leaky_relu",
)  # fmt: skip


def _orthogonal(key, shape):
    rows, cols = math.prod(shape[:-1]), shape[-1]
    q = orthonormal(key, max(rows, cols), min(rows, cols))
    return (q if rows >= cols else q.T).reshape(shape)


# Of (key, shape), for a scale of one; what is scaled is the standard deviation.
INITIALIZERS: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    "truncated_normal": lambda key, shape: (
        jax.random.truncated_normal(key, -2, 2, shape) / math.sqrt(_fan_in(shape))
    ),
    "normal": lambda key, shape: (
        jax.random.normal(key, shape) / math.sqrt(_fan_in(shape))
    ),
    "uniform": lambda key, shape: (
        jax.random.uniform(key, shape, minval=-1.0) * math.sqrt(3 / _fan_in(shape))
    ),
    "orthogonal": _orthogonal,
}

VELO_INITIALIZERS = ("orthogonal", "uniform", "normal", "normal", "uniform")


# In flax: what attention's heads are (inputs, heads, width) of, and parameters with
# several axes that are no weights.
_HEADS = ("query", "key", "value")
_NO_WEIGHTS = ("bias", "class_token", "position")


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


class Choices(NamedTuple):
    """A name is the same for all tasks; of several, each task draws one.

    Attributes:
      activation: keys of `ACTIVATIONS`.
      initializer: keys of `INITIALIZERS`, or None for what the model brings.
      init_scale: range of a factor on the initial weights, log-uniform; biases, other
        vectors and learned positions are left alone.
    """

    activation: str | Sequence[str] = "relu"
    initializer: str | Sequence[str] | None = None
    init_scale: tuple[float, float] = (1.0, 1.0)


def check_choices(choices: Choices) -> None:
    """Raises `ValueError` for unknown names and an empty or negative range."""
    for what, names, known in (
        ("activation", choices.activation, ACTIVATIONS),
        ("initializer", choices.initializer, INITIALIZERS),
    ):
        for name in _names(names):
            check_known(what, name, known)
    low, high = choices.init_scale
    if not 0 < low <= high < math.inf:
        raise ValueError(f"init_scale must be 0 < low <= high, not {(low, high)}")


def sample_choices(choices: Choices, key: jax.Array) -> dict[str, Any]:
    """What a task draws; no entry for what does not vary."""
    k_activation, k_initializer, k_scale = jax.random.split(key, 3)
    config = {}
    for name, k, names in (
        ("activation", k_activation, _names(choices.activation)),
        ("initializer", k_initializer, _names(choices.initializer)),
    ):
        if len(names) > 1:
            config[name] = jax.random.randint(k, (), 0, len(names))
    low, high = map(math.log, choices.init_scale)
    if low < high:
        exponent = jax.random.uniform(k_scale, minval=low, maxval=high)
        config["init_scale"] = jnp.exp(exponent)
    return config


def chosen_activation(choices: Choices, config: dict[str, Any]) -> Activation:
    """The activation of a task."""
    functions = [ACTIVATIONS[name] for name in _names(choices.activation)]
    if len(functions) == 1:
        return functions[0]
    return lambda x: pick(config["activation"], [f(x) for f in functions])


def chosen_weights(
    choices: Choices, config: dict[str, Any], key: jax.Array, params: Any
) -> Any:
    """The model's own initial parameters, as the task has them.

    Weights are what has more than one axis, the last one being the outputs; of the
    heads of attention all but the first are.
    """
    names = _names(choices.initializer)
    scale = config.get("init_scale", choices.init_scale[0])

    def one(k, path, x):
        layer, leaf = ("", *(str(part.key) for part in path))[-2:]
        if x.ndim < 2 or leaf in _NO_WEIGHTS:
            return x
        if names:
            heads = layer in _HEADS
            shape = (x.shape[0], math.prod(x.shape[1:])) if heads else x.shape
            drawn = [
                INITIALIZERS[name](k, shape).reshape(x.shape).astype(x.dtype)
                for name in names
            ]
            x = pick(config.get("initializer", 0), drawn)
        return (x * scale).astype(x.dtype)

    if not names and choices.init_scale == (1.0, 1.0):
        return params
    leaves, structure = jax.tree.flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [one(k, *leaf) for k, leaf in zip(keys, leaves, strict=True)]
    )


def pick(index: Any, choices: Sequence[jax.Array]) -> jax.Array:
    """The choice of that index; all are computed, as they are under vmap anyway."""
    if len(choices) == 1:
        return choices[0]
    # select_n fuses with what made the choices, a gather would not.
    return jax.lax.select_n(jnp.broadcast_to(index, choices[0].shape), *choices)


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
