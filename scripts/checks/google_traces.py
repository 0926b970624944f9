"""Traces of google/learned_optimization and amoudgl/celo."""

import ast
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from recorded_trace import Problem, Unsupported, require_known, require_understood

import l2o
from l2o.files import from_config, from_tree, nest, published_class

_USED = (
    "cls",
    "config",
    "num_steps",
    "steps",
    "leaf_order",
    "theta_keys",
    "update_signature",
)
_ARRAYS = (
    "meta",
    "theta",
    "params",
    "grads",
    "loss",
    "state",
)
# A key never influences a published update.
_CALLS = re.compile(
    r"opt\.init\(params, num_steps=\d+\); "
    r"opt\.update\(state, grad, loss=loss(, key=.*)?\)(\s*#.*)?"
)


def google_problem(meta: Mapping[str, Any], trace: Any) -> Problem:
    """A trace of google/learned_optimization or amoudgl/celo."""
    require_understood(meta, trace, _USED, _ARRAYS)
    calls = meta.get("update_signature")
    if calls is not None and not _CALLS.fullmatch(calls):
        raise Unsupported(f"updates called as {calls}")
    names, steps = meta["leaf_order"], meta["steps"]
    published = [
        {name: trace[f"params/{t}/{name}"] for name in names} for t in range(steps + 1)
    ]
    noise = [x for key, x in meta.items() if "noise" in key and isinstance(x, dict)]
    tolerance = {
        name: 2e-6 + 20 * max((floor.get(name, 0.0) for floor in noise), default=0.0)
        for name in names
    }
    bind, theta = _optimizer(meta, trace)
    grads = {name: trace[f"grads/{name}"] for name in names}
    return Problem(bind, theta, published, grads, trace["loss"], tolerance)


def _optimizer(meta, trace):
    if meta["cls"].split(".")[-1] == "NAdamW":
        return _nadamw(meta["config"], meta["num_steps"]), {}
    cls = published_class(meta["cls"])
    if cls is None:
        raise Unsupported(f"class {meta['cls'].split('.')[-1]}")
    tree = nest(
        {
            tuple(meta["theta_keys"][key]): trace[key]
            for key in trace
            if key.startswith("theta/")
        }
    )
    # None is the default of an argument, but of `regex_1d`, which it switches off.
    config = {
        k: v for k, v in meta["config"].items() if v is not None or k == "regex_1d"
    }
    try:
        optimizer = from_config(cls, config)
        theta = from_tree(tree, optimizer)
    except (TypeError, ValueError) as error:
        raise Unsupported(str(error)) from error
    optimizer = l2o.make(
        optimizer.name, **{**optimizer.arguments, **_as_published(optimizer)}
    )
    return lambda theta: optimizer.bind(theta, num_steps=meta["num_steps"]), theta


def _as_published(optimizer):
    """Arguments for what published code does and ours does not by default."""
    return {"untouched": "pushed"} if "untouched" in optimizer.arguments else {}


_NADAMW_NAMES = {
    "learning_rate": "learning_rate",
    "beta1": "b1",
    "beta2": "b2",
    "epsilon": "eps",
    "adamw_weight_decay": "adamw_weight_decay",
    "l2_weight_decay": "l2_weight_decay",
    "use_nesterov": "use_nesterov",
}


def _nadamw(config, num_steps):
    config = {"learning_rate": 1e-4, **config}
    config.pop("use_bias_correction", None)  # the published code overwrites it
    # The list of a thousand configurations has the schedule's arguments beside these.
    beside = {k: config.pop(k) for k in _COSINE[1:] if k in config}
    require_known(config, _NADAMW_NAMES, "NAdamW with")
    rate = config["learning_rate"]
    if beside:
        rate = {"cls": "CosineLearningRateSchedule", "learning_rate": rate, **beside}
    if not isinstance(rate, int | float):
        rate = _schedule(rate, num_steps)
    config["learning_rate"] = rate
    return lambda _: l2o.nadamw_baseline(
        **{_NADAMW_NAMES[k]: v for k, v in config.items()}
    )


_COSINE = (
    "learning_rate",
    "min_learning_rate_mult",
    "constant_fraction",
    "warmup_fraction",
)


def _cosine(num_steps, learning_rate, **rest):
    return l2o.nadamw_schedule(learning_rate, num_steps, **rest)


def _rampup(num_steps, peak_lr=1e-3, warmup_steps=1000):
    def schedule(count):
        step = jnp.maximum(jnp.float32(count), 1)
        return peak_lr * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / step))

    return schedule


def _piecewise(num_steps, times, vals):
    times, vals = (jnp.asarray(x, jnp.float32) for x in (times, vals))
    return lambda count: jnp.interp(jnp.float32(count), times, vals)


def _exponential(num_steps, base_lr, decay_amount):
    return lambda count: base_lr * (1 - decay_amount) ** jnp.float32(count)


# Google's schedules: their constructor arguments in order, those without a default,
# and what makes ours.
_SCHEDULES = {
    "CosineLearningRateSchedule": (_COSINE, _COSINE[:1], _cosine),
    "LinearRampupSqrtDecay": (("peak_lr", "warmup_steps"), (), _rampup),
    "PiecewiseLinear": (("times", "vals"), ("times", "vals"), _piecewise),
    "ExponentialDecay": (
        ("base_lr", "decay_amount"),
        ("base_lr", "decay_amount"),
        _exponential,
    ),
}


def _schedule(recorded: Any, num_steps: int) -> optax.Schedule:
    """The schedule of a recorded name and arguments.

    They are an object with the name under `cls` (or a like key) and the arguments
    beside it or in an object of their own, or a text such as `Name(k=1)`.
    """
    cls, positional, arguments = _named_call(recorded)
    cls = cls.rpartition(".")[2]
    if cls not in _SCHEDULES:
        raise Unsupported(f"NAdamW with the schedule {cls or recorded}")
    names, required, make = _SCHEDULES[cls]
    if len(positional) > len(names):
        raise Unsupported(f"NAdamW with {len(positional)} arguments of {cls}")
    arguments = {**dict(zip(names, positional, strict=False)), **arguments}
    arguments = {k: v for k, v in arguments.items() if v is not None}
    require_known(arguments, names, f"NAdamW with {cls}'s")
    if lacking := [name for name in required if name not in arguments]:
        raise Unsupported(f"NAdamW with {cls}, recorded without {', '.join(lacking)}")
    return make(num_steps, **arguments)


def _named_call(recorded: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """A recorded object's class, positional and keyword arguments."""
    if isinstance(recorded, str):
        try:
            call = ast.parse(recorded, mode="eval").body
            if isinstance(call, ast.Call):
                values = [ast.literal_eval(x) for x in call.args]
                named = {str(x.arg): ast.literal_eval(x.value) for x in call.keywords}
                return ast.unparse(call.func), values, named
        except (SyntaxError, ValueError):
            pass  # such as `<module.Class object at 0x7f>`, which tells no arguments
        return recorded, [], {}
    if not isinstance(recorded, Mapping):
        raise Unsupported(f"NAdamW with the learning rate {recorded}")
    rest = dict(recorded)
    cls = rest.pop(next((k for k in _CLASS_KEYS if k in rest), ""), "")
    inner = rest.pop(next((k for k in _ARGUMENT_KEYS if k in rest), ""), {})
    return str(cls), [], {**inner, **rest}


_CLASS_KEYS = ("cls", "class", "type", "name", "schedule")
_ARGUMENT_KEYS = ("config", "kwargs", "arguments")
