"""Traces of PyLO, whose tensors are turned from PyTorch's layout to (..., in, out)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recorded_trace import Problem, Unsupported, require_known, require_understood

import l2o
from l2o.files import from_pylo
from l2o.rule import factored_axes, torch_axes

# Arguments of PyLO's constructors that are more than a name of ours: read one by one.
_READ = {
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
_WITHOUT_EFFECT = {
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
_ARGUMENTS = _READ | _WITHOUT_EFFECT
_DECAYS = {
    "initial_momentum_decays": "momentum_decays",
    "initial_rms_decays": "rms_decays",
    "initial_adafactor_decays": "adafactor_decays",
}
_NAMES = {
    "mulo": {
        **_DECAYS,
        "lr": "learning_rate",
        "exp_mult": "exp_mult",
        "step_mult": "step_mult",
        "max_grad_norm": "max_tensor_norm",
    },
    "elo": {
        **_DECAYS,
        "lr": "learning_rate",
        "weight_decay": "weight_decay",
        "exp_mult": "exp_mult",
    },
    "velo": {**_DECAYS, "exp_mult": "exp_mult", "step_mult": "step_mult"},
}
_NAMES["elo_celo2"] = {
    **_NAMES["elo"],
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
_NAMES["celo2"] = {**_NAMES["elo_celo2"], "adam_eps": "adam_eps"}
# What the classes read from a parameter group at every step. An option of a group that
# only the constructor reads changes nothing there, and so nothing here.
_GROUP_DECAYS = tuple(_DECAYS)
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
_GROUP_OPTIONS = {
    "mulo": ("exp_mult", "step_mult", "max_grad_norm", "weight_decay", *_GROUP_DECAYS),
    "elo": ("exp_mult", "weight_decay", "clip_grad", "clip_norm"),
    "celo2": _GROUP_CELO2,
    "elo_celo2": _GROUP_CELO2,
    "velo": ("exp_mult", "step_mult", "weight_decay", *_GROUP_DECAYS),
}
_CLASSES = {
    "AdafacLO": "mulo",
    "MuLO": "mulo",
    "ELO": "elo",
    "CELO2": "celo2",
    "ELO_CELO2": "elo_celo2",
    "VeLO": "velo",
}


_USED = (
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
_ARRAYS = (
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
_NET = ("activation", "H", "K", "control_mult")  # but the first, theta tells them


def pylo_problem(meta: Mapping[str, Any], trace: Any) -> Problem:
    """A trace of PyLO, whose tensors are turned to (..., in, out)."""
    require_understood(meta, trace, _USED, _ARRAYS)
    require_known(meta["net"], _NET, "a network with")
    cls, _, form = meta["optimizer"].rpartition("_")
    if cls not in _CLASSES or form != "naive":
        raise Unsupported(f"class {meta['optimizer']}")
    names = meta["param_order"]
    bind, theta = _optimizer(cls, meta, trace)
    params = {name: trace[f"params/{name}"] for name in names}
    drift = {name: trace[f"params_f64_minus_f32/{name}"] for name in names}
    published = [
        {name: ours(trace[f"params0/{name}"]) for name in names},
        *(
            {name: ours(params[name][t]) for name in names}
            for t in range(meta["steps"])
        ),
    ]
    grads = {
        name: np.stack([ours(g) for g in trace[f"grads/{name}"]]) for name in names
    }
    tolerance = {
        name: 2e-6 + 20 * float(np.max(np.abs(x), initial=0))
        for name, x in drift.items()
    }
    return Problem(bind, theta, published, grads, trace["losses"], tolerance)


def ours(x: np.ndarray) -> np.ndarray:
    """From (out, in, ...) to (..., in, out)."""
    order = torch_axes(x.ndim)
    return np.transpose(x, [order.index(axis) for axis in range(x.ndim)])


def _our_shape(shape: list[int]) -> tuple[int, ...]:
    return ours(np.empty(shape, bool)).shape


def _optimizer(cls, meta, trace):
    name = _CLASSES[cls]
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
            require_known(own, ("lr", "step_mult", "weight_decay"), "VeLO's group with")
            kwargs = {**kwargs, "step_mult": base.get("step_mult", 1e-3)}
        elif name == "mulo":
            factor = 1.0
            pull = kwargs.get("lr", 1.0) * kwargs.pop("weight_decay", 0.0)
        else:
            factor = 1.0
            pull = 0.0
        norm, offsets, arguments = _arguments(cls, kwargs, own, meta)
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
        return parts[0] if alone else optax.partition(parts, labels)

    joined = l2o.mup(optimizers[0]._replace(bind=bind), scale)
    if any(decay.values()):
        joined = l2o.decay_weights(joined, decay, kind="after")

    def bind_clipped(theta):
        tx = joined.bind(theta, num_steps=num_steps)

        def update(updates, state, params=None, **extra_args):
            # First of all, because PyLO clips nothing where an entry is NaN.
            return tx.update(_clipped(updates, norms), state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return bind_clipped, thetas


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
    read = {"lr", *_GROUP_OPTIONS[name]}
    known = {"params", *read, *_NAMES[name], *_ARGUMENTS}
    for group in recorded:
        require_known(group, known, f"a group of {meta['optimizer']} with")
    groups = [
        ({k: v for k, v in group.items() if k in read}, group["params"])
        for group in recorded
    ]
    if sorted(x for _, params in groups for x in params) != sorted(names):
        raise Unsupported("groups that do not have every parameter once")
    return groups


def _arguments(cls, kwargs, own, meta):
    """The norm to clip to, muLO's decay offsets, and l2o's arguments."""
    name = _CLASSES[cls]
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
            for theirs, ours in _DECAYS.items()
            if theirs in own
        }
    if name == "velo":  # offsets that its constructor folds into the decays
        defaults = l2o.velo().arguments
        for theirs, ours in _DECAYS.items():
            offset = np.float64(kwargs.pop(ours, 0.0))
            start = 1 - np.float64(kwargs.pop(theirs, defaults[ours]))
            arguments[ours] = np.clip(1 - start * np.exp(10 * offset), 0, 1).tolist()
    for key, value in kwargs.items():
        if key in _WITHOUT_EFFECT:
            continue
        if key not in _NAMES[name]:
            raise Unsupported(f"{cls} with {key}")
        arguments[_NAMES[name][key]] = value
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
