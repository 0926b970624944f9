"""What factories accept: every argument is checked once, by its type and its name."""

import functools
import math
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._options import hints_of

# Numbers without a rule of their own are finite.
_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(
        (
            "adam_eps",
            "decay_per_step",
            "decay_strength",
            "eps",
            "eps_root",
            "fade",
            "learning_rate",
            "margin",
            "mult_1d",
            "ns_eps",
            "ns_iters",
            "power",
            "rho",
            "seed",
            "settle",
            "state_scale",
            "weight_decay",
            "weight_decay_1d",
        ),
        (">= 0", lambda x: x >= 0),
    ),
    **dict.fromkeys(
        (
            "factor_bound",
            "gain",
            "gradient_bound",
            "lipschitz",
            "max_learning_rate",
            "max_norm",
            "max_tensor_norm",
            "min_learning_rate",
            "param_scale_bound",
            "preprocess_scale",
            "step_size",
        ),
        ("> 0", lambda x: x > 0),
    ),
    **dict.fromkeys(
        ("adam_b1", "adam_b2", "b1", "b2", "decay", "momentum"),
        ("from 0 to less than 1", lambda x: 0 <= x < 1),
    ),
    **dict.fromkeys(
        (
            "adafactor_decays",
            "momentum_decays",
            "rms_decay",
            "rms_decays",
            "rnn_state_decay",
        ),
        ("from 0 to 1", lambda x: 0 <= x <= 1),
    ),
    **dict.fromkeys(
        (
            "from_lstm_size",
            "from_mlp_size",
            "hidden_layers",
            "hidden_size",
            "level_sizes",
            "lstm_hidden_size",
            "lstm_to_ff",
            "max_steps",
            "param_inits",
        ),
        (">= 1", lambda x: x >= 1),
    ),
}


def checked(
    factory: Callable[..., Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A factory's `locals()` as JSON has them, each of its type and in its range.

    Options, which the factory takes as `**options`, are among them.
    Tuples become lists and scalar arrays become numbers. A traced number is not
    checked, and stays.

    Raises:
      ValueError: an argument of another type or out of range; the message names the
        factory, the argument and what was expected.
    """
    given = {**arguments, **arguments.get("options", {})}
    result = {}
    for name, hint in _hints(factory).items():
        value = _unboxed(given[name])
        expected = _mismatch(hint, name, value)
        if expected is not None:
            got = "None" if value is None else f"{value!r}"
            raise ValueError(
                f"{factory.__name__} needs {name} to be {expected}, got {got}"
            )
        result[name] = value
    return result


def check_number(what: str, name: str, value: Any) -> None:
    """Raises `ValueError` unless the value is a number that `name` may be.

    Args:
      what: who asks; the message begins with it.
      name: of an argument; decides the range.
      value: to be checked; a traced number is not.
    """
    expected = _mismatch(float, name, _unboxed(value))
    if expected is not None:
        raise ValueError(f"{what} needs {name} to be {expected}, got {value!r}")


def check_num_steps(what: str, num_steps: Any, name: str = "num_steps") -> None:
    """Raises `ValueError` unless the length of a run is a whole number of steps.

    Args:
      what: who asks; the message begins with it.
      num_steps: to be checked; a traced number is not.
      name: of the argument.
    """
    value = _unboxed(num_steps)
    if _is_traced_number(value):
        return
    if not _is_number(value) or not math.isfinite(value):
        found = "is not a number of steps"
    elif value < 1:
        found = "is less than one step"
    elif value != int(value):
        found = "is not a whole number of steps"
    else:
        return
    raise ValueError(
        f"{what} needs {name} >= 1, the number of updates of the training run; "
        f"{num_steps!r} {found}"
    )


def log_of(factory: str, name: str, value: Any) -> Any:
    """The logarithm at which a meta-parameter starts.

    Raises:
      ValueError: the number is zero or less.
    """
    if isinstance(value, jax.Array):
        return jnp.log(value)
    if value <= 0:
        raise ValueError(
            f"{factory} needs {name} to be a number > 0, because theta holds its "
            f"logarithm, got {value!r}"
        )
    return math.log(value)


@functools.cache
def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    return hints_of(factory)


def _unboxed(value: Any) -> Any:
    if type(value) in (tuple, list):  # an optimizer is a tuple too
        return [_unboxed(x) for x in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | jax.Array) and not _is_traced(value):
        is_number = value.ndim == 0 and jnp.issubdtype(value.dtype, np.number)
        return value.item() if is_number else value
    return value


def _mismatch(hint: Any, name: str, value: Any) -> str | None:
    """What was expected, where the value is something else."""
    kind = _kind(hint)
    if kind.optional and value is None:
        return None
    if kind.name == "schedule" and callable(value):
        return None
    if kind.name in ("number", "schedule", "integer"):
        rule, holds = _RULES.get(name, ("", lambda x: True))
        noun = "a whole number" if kind.name == "integer" else "a finite number"
        expected = f"{noun} {rule}".strip()
        if kind.many:
            expected = f"a list of numbers, each {expected}"
        if kind.name == "schedule":
            expected += " or an optax schedule"
        if kind.optional:
            expected += " or None"
        values = value if kind.many else [value]
        if kind.many and not isinstance(value, list):
            return expected
        is_right = _is_integer if kind.name == "integer" else _is_number
        good = all(
            _is_traced_number(x) or (is_right(x) and math.isfinite(x) and holds(x))
            for x in values
        )
        return None if good else expected
    if kind.name == "flag" and not isinstance(value, bool):
        return "True or False" + " or None" * kind.optional
    if kind.name == "text":
        values = value if kind.many else [value]
        if not isinstance(values, list) or not all(isinstance(x, str) for x in values):
            return "a list of strings" if kind.many else "a string"
    return None


class _Kind(typing.NamedTuple):
    """What an annotation asks for.

    Attributes:
      name: "number", "schedule", "integer", "flag", "text" or "other", which factories
        check themselves.
      many: whether for a list of them.
      optional: whether None is right too.
    """

    name: str
    many: bool
    optional: bool


def _kind(hint: Any) -> _Kind:
    if hint == optax.ScalarOrSchedule:
        return _Kind("schedule", False, False)
    parts = typing.get_args(hint)
    if type(None) in parts:
        (rest, *others) = [x for x in parts if x is not type(None)]
        kind = _Kind("other", False, True) if others else _kind(rest)
        return kind._replace(optional=True)
    origin = typing.get_origin(hint)
    if origin in (tuple, Sequence):
        kind = _kind(parts[0])
        return kind._replace(many=True) if kind.name != "other" else kind
    if origin is Literal and all(isinstance(x, str) for x in parts):
        return _Kind("text", False, False)
    names = {float: "number", int: "integer", bool: "flag", str: "text"}
    return _Kind(names.get(hint, "other"), False, False)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _is_traced_number(value: Any) -> bool:
    return (
        _is_traced(value)
        and value.ndim == 0
        and jnp.issubdtype(value.dtype, jnp.number)
    )
