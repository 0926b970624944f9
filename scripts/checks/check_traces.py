"""Replays recorded outputs of published optimizers through l2o.

    python scripts/checks/check_traces.py tests/traces [FOLDER ...]

A trace is an .npz file with a published class and its constructor arguments (`meta`),
its meta-parameters, gradients, losses, and the parameters after every update: of
google/learned_optimization and amoudgl/celo, or of PyLO, whose tensors are turned from
PyTorch's layout to (..., in, out) first. For each this prints `ok` or `differs` with
the largest difference and its tolerance, `unsupported` with the reason, or `error`
where the file is damaged. Whatever a trace says is used or named as unsupported: a
constructor argument, an option of a group, a schedule, an unknown entry. The exit
status is 1 if a trace differs or is damaged.

Tolerance of a tensor: 2e-6 absolute plus 20 times the trace's own noise, which is how
far the published code moves its own result when gradients change by 1e-7 relative, when
it runs without jit, or in float64. That is round-off amplified by the updates; a wrong
epsilon, feature order or axis is orders of magnitude above it.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o.files import from_config, from_pylo, from_tree, nest, published_class
from l2o.rule import factored_axes, torch_axes


class Replay(NamedTuple):
    """A trace beside what l2o makes of it; tensors in l2o's layout."""

    meta: dict[str, Any]
    trace: Any
    published: list[dict[str, np.ndarray]]  # parameters before and after each update
    history: list[dict[str, jax.Array]]  # parameters after each update
    state: Any  # l2o's state after the last
    tolerance: dict[str, float]  # per tensor


class Problem(NamedTuple):
    """What a trace records, in l2o's terms."""

    bind: Callable[[Any], optax.GradientTransformationExtraArgs]
    theta: Any
    published: list[dict[str, np.ndarray]]
    grads: dict[str, np.ndarray]  # first axis: steps
    losses: np.ndarray
    tolerance: dict[str, float]


class Unsupported(Exception):
    """l2o has no such class or option, or a trace says what this script cannot read."""


# What a trace says of itself that no number depends on. Seeds and recipes made the
# arrays that are stored; `grad_edit` is in the gradients, `patches` in the outputs.
_ABOUT = re.compile(
    "name|note|problem|problem_seed|theta_init|theta_size|theta_shapes|theta_stored|"
    "theta_recipe|feat_step|goes_through_mlp|argsort_forced_stable|grad_edit|patches|"
    "movement_.*|max_total_move|rms_update_per_step|fp32_vs_fp64_.*|noise_.*|"
    "jax|numpy|torch|backend|machine|device|dtype|cpu_.*|peers|.*_commit"
)


def replay(path: Path) -> Replay:
    """Makes the trace's updates with l2o.

    Raises:
      Unsupported: l2o lacks the class, an option or the layout of theta, or the trace
        has an entry that this script does not know.
    """
    with np.load(path, allow_pickle=False) as file:
        trace = dict(file)
    meta = json.loads(str(trace["meta"]))
    problem = _google(meta, trace) if "cls" in meta else _pylo(meta, trace)

    @jax.jit
    def step(theta, params, state, grads, loss):
        tx = problem.bind(theta)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, problem.published[0])
    state = problem.bind(problem.theta).init(params)
    history = []
    for t in range(meta["steps"]):
        grads = {name: jnp.asarray(g[t]) for name, g in problem.grads.items()}
        params, state = step(problem.theta, params, state, grads, problem.losses[t])
        history.append(params)
    return Replay(meta, trace, problem.published, history, state, problem.tolerance)


def differences(result: Replay) -> dict[str, tuple[float, float, float]]:
    """name -> (largest difference, tolerance, largest movement), over all updates."""
    out = {}
    for name, tolerance in result.tolerance.items():
        theirs = [params[name] for params in result.published]
        difference = max(
            _distance(np.asarray(ours[name]), their)
            for ours, their in zip(result.history, theirs[1:], strict=True)
        )
        moved = max(_distance(their, theirs[0]) for their in theirs)
        out[name] = (difference, tolerance, moved)
    return out


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """The largest difference; infinite where only one of the two is a number."""
    same = np.isnan(x) & np.isnan(y)
    gap = np.where(same, 0.0, np.abs(x.astype(np.float64) - y))
    return float(np.max(np.nan_to_num(gap, nan=np.inf), initial=0.0))


def _require_known(names: Collection[str], known: Collection[str], what: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise Unsupported(f"{what} {', '.join(unknown)}")


def _require_understood(
    meta: Mapping[str, Any], trace: Any, used: Collection[str], arrays: Collection[str]
) -> None:
    """Refuses entries and arrays of a trace that may change its numbers unseen."""
    rest = [key for key in meta if not _ABOUT.fullmatch(key)]
    _require_known(rest, used, "a trace with the entry")
    kinds = {key.partition("/")[0] for key in trace}
    _require_known(kinds, arrays, "a trace with the arrays")


_GOOGLE_USED = (
    "cls",
    "config",
    "num_steps",
    "steps",
    "leaf_order",
    "theta_keys",
    "update_signature",
)
_GOOGLE_ARRAYS = (
    "meta",
    "theta",
    "params",
    "grads",
    "loss",
    "state",
)
# A key never influences a published update.
_GOOGLE_CALLS = re.compile(
    r"opt\.init\(params, num_steps=\d+\); "
    r"opt\.update\(state, grad, loss=loss(, key=.*)?\)(\s*#.*)?"
)


def _google(meta: Mapping[str, Any], trace: Any) -> Problem:
    """A trace of google/learned_optimization or amoudgl/celo."""
    _require_understood(meta, trace, _GOOGLE_USED, _GOOGLE_ARRAYS)
    calls = meta.get("update_signature")
    if calls is not None and not _GOOGLE_CALLS.fullmatch(calls):
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
    bind, theta = _google_optimizer(meta, trace)
    grads = {name: trace[f"grads/{name}"] for name in names}
    return Problem(bind, theta, published, grads, trace["loss"], tolerance)


def _google_optimizer(meta, trace):
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
    _require_known(config, _NADAMW_NAMES, "NAdamW with")
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
    _require_known(arguments, names, f"NAdamW with {cls}'s")
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


# Arguments of PyLO's constructors that are more than a name of ours: read one by one.
_PYLO_READ = {
    "num_steps",
    "is_embedding",
    "use_adamw_for_1d",
    "adam_betas",
    "clip_grad",
    "clip_norm",
    "momentum_decays",
    "rms_decays",
    "adafactor_decays",
    "weight_decay",
    "step_mult",
}
# Those that change no number.
_PYLO_WITHOUT_EFFECT = {
    "concat_weights",
    "make_separate_weights",
    "split_weights",
    "clip_grad",  # of AdafacLO and VeLO; the others' is read above
    "mup_lrs",
    "input_size",
    "hidden_size",
    "hidden_layers",
    "ff_hidden_size",
    "ff_hidden_layers",
    "hf_key",
    "hf_key_rnn",
    "hf_key_mlp",
    "checkpoint_path",
    "network",
    "param_inits",
    "lstm_hidden_size",
    "impl",
}
_PYLO_ARGUMENTS = _PYLO_READ | _PYLO_WITHOUT_EFFECT
_PYLO_DECAYS = {
    "initial_momentum_decays": "momentum_decays",
    "initial_rms_decays": "rms_decays",
    "initial_adafactor_decays": "adafactor_decays",
}
_PYLO_NAMES = {
    "mulo": {
        **_PYLO_DECAYS,
        "lr": "learning_rate",
        "exp_mult": "exp_mult",
        "step_mult": "step_mult",
        "max_grad_norm": "max_tensor_norm",
    },
    "elo": {
        **_PYLO_DECAYS,
        "lr": "learning_rate",
        "weight_decay": "weight_decay",
        "exp_mult": "exp_mult",
    },
    "velo": {**_PYLO_DECAYS, "exp_mult": "exp_mult", "step_mult": "step_mult"},
}
_PYLO_NAMES["elo_celo2"] = {
    **_PYLO_NAMES["elo"],
    "adam_lr_mult": "mult_1d",
    "adam_weight_decay": "weight_decay_1d",
    "grad_clip_val": "gradient_bound",
    "rmsmult": "step_mult",
    **{
        name: name
        for name in (
            "orthogonalize",
            "param_scale_mult",
            "ns_coeffs",
            "ns_iters",
            "ns_eps",
        )
    },
}
_PYLO_NAMES["celo2"] = {**_PYLO_NAMES["elo_celo2"], "adam_eps": "adam_eps"}
# What the classes read from a parameter group at every step. An option of a group that
# only the constructor reads changes nothing there, and so nothing here.
_GROUP_DECAYS = tuple(_PYLO_DECAYS)
_GROUP_CELO2 = (
    "weight_decay",
    "adam_lr_mult",
    "adam_weight_decay",
    "use_adamw_for_1d",
    "orthogonalize",
    "clip_grad",
    "clip_norm",
    "exp_mult",
    "rmsmult",
    "param_scale_mult",
    "grad_clip_val",
    "is_embedding",
)
_PYLO_GROUP_OPTIONS = {
    "mulo": ("exp_mult", "step_mult", "max_grad_norm", "weight_decay", *_GROUP_DECAYS),
    "elo": ("exp_mult", "weight_decay", "clip_grad", "clip_norm"),
    "celo2": _GROUP_CELO2,
    "elo_celo2": _GROUP_CELO2,
    "velo": ("exp_mult", "step_mult", "weight_decay", *_GROUP_DECAYS),
}
_PYLO_CLASSES = {
    "AdafacLO": "mulo",
    "MuLO": "mulo",
    "ELO": "elo",
    "CELO2": "celo2",
    "ELO_CELO2": "elo_celo2",
    "VeLO": "velo",
}


_PYLO_USED = (
    "optimizer",
    "constructor_kwargs",
    "param_order",
    "shapes",
    "base_shapes",
    "steps",
    "net",
    "factored_dims",
    "groups_arg",
    "param_groups_after_construction",
)
_PYLO_ARRAYS = (
    "meta",
    "theta",
    "params",
    "params0",
    "params_f64_minus_f32",
    "grads",
    "losses",
    "feat",
    "state",
    "control",
    "lr_mult",
    "lstm_c",
    "lstm_h",
    "rnn_in",
)
_PYLO_NET = ("activation", "H", "K", "control_mult")  # but the first, theta tells them


def _pylo(meta: Mapping[str, Any], trace: Any) -> Problem:
    """A trace of PyLO, whose tensors are turned to (..., in, out)."""
    _require_understood(meta, trace, _PYLO_USED, _PYLO_ARRAYS)
    _require_known(meta["net"], _PYLO_NET, "a network with")
    cls, _, form = meta["optimizer"].rpartition("_")
    if cls not in _PYLO_CLASSES or form != "naive":
        raise Unsupported(f"class {meta['optimizer']}")
    names = meta["param_order"]
    bind, theta = _pylo_optimizer(cls, meta, trace)
    params = {name: trace[f"params/{name}"] for name in names}
    drift = {name: trace[f"params_f64_minus_f32/{name}"] for name in names}
    published = [
        {name: _ours(trace[f"params0/{name}"]) for name in names},
        *(
            {name: _ours(params[name][t]) for name in names}
            for t in range(meta["steps"])
        ),
    ]
    grads = {
        name: np.stack([_ours(g) for g in trace[f"grads/{name}"]]) for name in names
    }
    tolerance = {
        name: 2e-6 + 20 * float(np.max(np.abs(x), initial=0))
        for name, x in drift.items()
    }
    return Problem(bind, theta, published, grads, trace["losses"], tolerance)


def _ours(x: np.ndarray) -> np.ndarray:
    """From (out, in, ...) to (..., in, out)."""
    order = torch_axes(x.ndim)
    return np.transpose(x, [order.index(axis) for axis in range(x.ndim)])


def _our_shape(shape: list[int]) -> tuple[int, ...]:
    return _ours(np.empty(shape, bool)).shape


def _pylo_optimizer(cls, meta, trace):
    name = _PYLO_CLASSES[cls]
    groups = _groups(name, meta)
    arrays = {
        key.removeprefix("theta/").removeprefix("rnn.").removeprefix("mlp."): trace[key]
        for key in trace
        if key.startswith("theta/")
    }
    if not arrays:
        raise Unsupported("a trace without theta")
    base = dict(meta["constructor_kwargs"])
    optimizers, thetas, labels, scale, decay, norms = {}, {}, {}, {}, {}, {}
    for i, (own, params) in enumerate(groups):
        kwargs = {k: v for k, v in {**base, **own}.items() if v is not None}
        if name == "velo":
            # One LSTM for all groups: what differs must be a factor of the steps.
            ratio = kwargs.pop("step_mult", 1e-3) / base.get("step_mult", 1e-3)
            rate = kwargs.pop("lr", 1e-3)
            factor, pull = rate * ratio, rate * kwargs.pop("weight_decay", 0.0)
            # Not a factor either way.
            _require_known(
                own, ("lr", "step_mult", "weight_decay"), "VeLO's group with"
            )
            kwargs = {**kwargs, "step_mult": base.get("step_mult", 1e-3)}
        elif name == "mulo":
            factor = 1.0
            pull = kwargs.get("lr", 1.0) * kwargs.pop("weight_decay", 0.0)
        else:
            factor = 1.0
            pull = 0.0
        norm, offsets, arguments = _pylo_arguments(cls, kwargs, own, meta)
        try:
            optimizer, theta = from_pylo(name, {**arrays, **offsets}, **arguments)
        except (TypeError, ValueError) as error:
            raise Unsupported(str(error)) from error
        optimizers[i], thetas[i] = optimizer, theta
        for param in params:
            labels[param], norms[param] = i, norm
            scale[param], decay[param] = factor, pull
    if cls == "MuLO":
        multipliers = _multipliers(meta)
        scale = {param: scale[param] * c for param, c in multipliers.items()}
        decay = {param: decay[param] * c for param, c in multipliers.items()}
    num_steps = base.get("num_steps", 10_000)

    def bind(theta, *, num_steps=None):
        parts = {
            i: optimizer.bind(theta[i], num_steps=num_steps)
            for i, optimizer in optimizers.items()
        }
        alone = name == "velo" or len(parts) == 1
        tx = parts[0] if alone else optax.partition(parts, labels)

        def update(updates, state, params=None, **extra_args):
            return tx.update(_clipped(updates, norms), state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    joined = l2o.mup(optimizers[0]._replace(bind=bind), scale)
    if any(decay.values()):
        joined = l2o.decay_weights(joined, decay, kind="after")
    return lambda theta: joined.bind(theta, num_steps=num_steps), thetas


def _groups(name, meta):
    """The parameter groups: pairs of what each sets and its parameters.

    Of the classes that fill in a group's options when they are made, those they filled
    in: a decay of Adam's that is not given is the constructor's, not the group's own.

    Raises:
      Unsupported: an option that the class does not have, or parameters that are in no
        group or in two.
    """
    names = meta["param_order"]
    recorded = meta.get("groups_arg") or [{"params": names}]
    if name in ("elo", "celo2", "elo_celo2"):
        recorded = meta["param_groups_after_construction"]
    read = {"lr", *_PYLO_GROUP_OPTIONS[name]}
    known = {"params", *read, *_PYLO_NAMES[name], *_PYLO_ARGUMENTS}
    for group in recorded:
        _require_known(group, known, f"a group of {meta['optimizer']} with")
    groups = [
        ({k: v for k, v in group.items() if k in read}, group["params"])
        for group in recorded
    ]
    if sorted(x for _, params in groups for x in params) != sorted(names):
        raise Unsupported("groups that do not have every parameter once")
    return groups


def _pylo_arguments(cls, kwargs, own, meta):
    """The norm to clip to, muLO's decay offsets, and l2o's arguments."""
    name = _PYLO_CLASSES[cls]
    arguments: dict[str, Any] = {"layout": _layout(meta), "untouched": "pushed"}
    offsets, norm = {}, None
    kwargs.pop("num_steps", None)
    embedding = kwargs.pop("is_embedding", False)
    if name in ("celo2", "elo_celo2"):
        # Vectors go to Adam anyway; a pattern that finds nothing, or everything.
        arguments["regex_1d"] = ".*" if embedding else "(?!)"
        if not kwargs.pop("use_adamw_for_1d", True):
            arguments["regex_1d"] = None
        arguments["activation"] = meta["net"].get("activation", "relu")
        arguments["max_norm"] = None  # the norm is over all groups: `_clipped`
    if name == "celo2":
        arguments["variant"] = "pylo"
        betas = kwargs.pop("adam_betas", (0.9, 0.95))
        arguments["adam_b1"], arguments["adam_b2"] = betas
    if name in ("elo", "celo2", "elo_celo2"):
        clip = kwargs.pop("clip_grad", name == "elo_celo2")
        bound = kwargs.pop("clip_norm", 1.0)
        norm = bound if clip else None
    if name == "mulo":
        keys = ("momentum_decays", "rms_decays", "adafactor_decays")
        offsets = {k: np.float32(kwargs.pop(k)) for k in keys if k in kwargs}
        # A group's own decays are what is used, without an offset.
        offsets |= {
            ours: np.zeros(len(own[theirs]), np.float32)
            for theirs, ours in _PYLO_DECAYS.items()
            if theirs in own
        }
    if name == "velo":  # offsets that its constructor folds into the decays
        defaults = l2o.velo().arguments
        for theirs, ours in _PYLO_DECAYS.items():
            offset = np.float64(kwargs.pop(ours, 0.0))
            start = 1 - np.float64(kwargs.pop(theirs, defaults[ours]))
            arguments[ours] = np.clip(1 - start * np.exp(10 * offset), 0, 1).tolist()
    for key, value in kwargs.items():
        if key in _PYLO_WITHOUT_EFFECT:
            continue
        if key not in _PYLO_NAMES[name]:
            raise Unsupported(f"{cls} with {key}")
        arguments[_PYLO_NAMES[name][key]] = value
    return norm, offsets, arguments


def _clipped(grads, norms):
    """Scales each gradient so that the norm of all would be its group's bound."""
    norm = optax.tree.norm(grads)
    return {
        name: grad
        if norms[name] is None
        else grad * jnp.where(norm > norms[name], norms[name] / norm, 1.0)
        for name, grad in grads.items()
    }


def _layout(meta):
    """The layout whose axes the trace says were used."""
    for rule in ("torch", "torch_velo", "torch_native"):
        for name, axes in meta["factored_dims"].items():
            shape = _our_shape(meta["shapes"][name])
            ours = factored_axes(shape, rule)
            if axes is not None:
                order = torch_axes(len(shape))
                axes = order[axes[0]], order[axes[1]]
            if ours != axes:
                break
        else:
            return rule
    raise Unsupported(f"factored axes {meta['factored_dims']}")


def _multipliers(meta):
    def structs(shapes):
        return {
            name: jax.ShapeDtypeStruct(_our_shape(shapes[name]), jnp.float32)
            for name in meta["param_order"]
        }

    return l2o.mup_multipliers(structs(meta["shapes"]), structs(meta["base_shapes"]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Replays recorded traces through l2o.")
    parser.add_argument("folders", nargs="+", type=Path)
    paths = [p for f in parser.parse_args().folders for p in sorted(f.rglob("*.npz"))]
    if not paths:
        print("no .npz files there", file=sys.stderr)
        return 2
    print("| trace | result | largest difference | its tolerance | movement |")
    print("|---|---|---|---|---|")
    failed = False
    for path in paths:
        try:
            found = differences(replay(path))
        except Unsupported as reason:
            print(f"| {path.stem} | unsupported: {reason} | | | |", flush=True)
            continue
        except Exception as error:  # one broken file must not hide the others
            words = " ".join(str(error).split())[:120]
            print(f"| {path.stem} | error: {words or error!r} | | | |", flush=True)
            failed = True
            continue
        worst = max(found.values(), key=lambda x: x[0] / x[1])
        ok = worst[0] <= worst[1]
        failed |= not ok
        print(
            f"| {path.stem} | {'ok' if ok else 'differs'} | {worst[0]:.1e} | "
            f"{worst[1]:.1e} | {worst[2]:.1e} |",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
