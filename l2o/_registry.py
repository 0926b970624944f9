"""The architectures by name, so that a folder on disk can name one."""

from collections.abc import Callable, Mapping
from typing import Any

from ._base import LearnedOptimizer
from ._options import defaults_of, old_names_of, translated
from .doors import Door
from .optimizers._celo import celo
from .optimizers._celo2 import celo2
from .optimizers._celo2_base import celo2_base
from .optimizers._celo_adam import celo_adam
from .optimizers._elo import elo
from .optimizers._elo_celo2 import elo_celo2
from .optimizers._l2o_pa import l2o_pa
from .optimizers._l2o_scale import l2o_scale
from .optimizers._learnable import learnable_adam, learnable_sgd, learnable_sgdm
from .optimizers._learnable_muon import learnable_muon
from .optimizers._lstm import lstm
from .optimizers._mlp import mlp
from .optimizers._mulo import mulo
from .optimizers._nn_adam import nn_adam
from .optimizers._normalized_velo import normalized_velo
from .optimizers._rnn_mlp import rnn_mlp
from .optimizers._rnnprop import rnnprop
from .optimizers._small_fc import small_fc
from .optimizers._velo import velo
from .wrappers._clip_gradients import clip_gradients
from .wrappers._compact import compact
from .wrappers._decay_weights import decay_weights
from .wrappers._extend_horizon import extend_horizon
from .wrappers._float32_updates import float32_updates
from .wrappers._grafted import grafted
from .wrappers._hypergradient import hypergradient
from .wrappers._nominal import nominal
from .wrappers._settle import settle
from .wrappers._with_axes import with_axes

_OPTIMIZERS: dict[str, Callable[..., LearnedOptimizer]] = {
    "celo": celo,
    "celo2": celo2,
    "celo2_base": celo2_base,
    "celo_adam": celo_adam,
    "elo": elo,
    "elo_celo2": elo_celo2,
    "l2o_pa": l2o_pa,
    "l2o_scale": l2o_scale,
    "learnable_adam": learnable_adam,
    "learnable_muon": learnable_muon,
    "learnable_sgd": learnable_sgd,
    "learnable_sgdm": learnable_sgdm,
    "lstm": lstm,
    "mlp": mlp,
    "mulo": mulo,
    "nn_adam": nn_adam,
    "normalized_velo": normalized_velo,
    "rnn_mlp": rnn_mlp,
    "rnnprop": rnnprop,
    "small_fc": small_fc,
    "velo": velo,
}

_WRAPPERS: dict[str, Callable[..., LearnedOptimizer]] = {
    "clip_gradients": clip_gradients,
    "compact": compact,
    "decay_weights": decay_weights,
    "extend_horizon": extend_horizon,
    "float32_updates": float32_updates,
    "grafted": grafted,
    "hypergradient": hypergradient,
    "nominal": nominal,
    "settle": settle,
    "with_axes": with_axes,
}


def _check_factory(factory: Any) -> None:
    if not callable(factory):
        raise TypeError(
            f"expected a function that returns a LearnedOptimizer, got {factory!r}"
        )


_Factory = Callable[..., LearnedOptimizer]
FACTORIES: Door[_Factory] = Door(
    "learned optimizer", "l2o.optimizers", _OPTIMIZERS, check=_check_factory
)
WRAPPERS: Door[_Factory] = Door(
    "wrapper", "l2o.wrappers", _WRAPPERS, check=_check_factory
)


def factories() -> Door[_Factory]:
    """The learned optimizers by name: the package's, registered and installed ones.

    Example:
      >>> import l2o
      >>> l2o.factories()["small_fc"] is l2o.small_fc
      True
    """
    return FACTORIES


def wrapper_factories() -> Door[_Factory]:
    """The wrappers by name: the package's, registered and installed ones.

    Example:
      >>> import l2o
      >>> l2o.wrapper_factories()["compact"] is l2o.compact
      True
    """
    return WRAPPERS


def register(name: str, factory: Callable[..., LearnedOptimizer]) -> None:
    """Gives a learned optimizer of one's own a name, for this process.

    From then on `l2o.make`, `l2o.load`, cards and the functions of `l2o.meta_train`
    know it. A distribution that announces it as an entry point of the group
    `l2o.optimizers` is known to every process, and to the `l2o` command.

    Args:
      name: that no other has.
      factory: its keyword arguments are what JSON can hold, as their defaults say; it
        returns a `LearnedOptimizer` that records them (`name`, `arguments`).

    Raises:
      ValueError: the name is taken.
      TypeError: it is no function.

    Example:
      >>> import l2o
      >>> def plain_sgd(learning_rate=0.1):
      ...     made = l2o.learnable_sgd(learning_rate=learning_rate)
      ...     return made._replace(name="plain_sgd")
      >>> l2o.register("plain_sgd", plain_sgd)
      >>> l2o.make("plain_sgd", learning_rate=0.3).arguments
      {'learning_rate': 0.3}
    """
    FACTORIES.register(name, factory)


# What files of 0.0 call them.
_RENAMED = {
    "celo2_velo": "normalized_velo",
    "clip": "clip_gradients",
    "weight_decay": "decay_weights",
}


def is_known(name: str) -> bool:
    """Whether there is a learned optimizer or a wrapper of that name, new or old."""
    name = _RENAMED.get(name, name)
    return name in FACTORIES or name in WRAPPERS


def find_factory(name: str) -> Callable[..., LearnedOptimizer]:
    """Of a learned optimizer or a wrapper, by its name or an older one.

    Raises:
      ValueError: there is none of that name; or see `Door`.
    """
    name = _RENAMED.get(name, name)
    if name in WRAPPERS and name in FACTORIES:
        raise ValueError(
            f"{name!r} is a wrapper of {WRAPPERS.origin(name)} and a learned optimizer "
            f"of {FACTORIES.origin(name)}: uninstall one of them, or rename it there"
        )
    return WRAPPERS[name] if name in WRAPPERS else FACTORIES.find(name)


_REMEDIES = {
    "learning_rate": "; to scale its updates, chain `optax.scale(...)` after it",
    "weight_decay": "; to add decay, wrap it in `l2o.decay_weights(optimizer, ...)`",
}


def make(name: str, **arguments: Any) -> LearnedOptimizer:
    """The learned optimizer of that name.

    Args:
      name: of `l2o.factories()` or `l2o.wrapper_factories()`. An optimizer that is
        wrapped is a mapping with its `name` and `arguments`.
      **arguments: keyword arguments of the factory, by their present names or by those
        that older files have.

    Raises:
      ValueError: unknown name or argument; the message lists the known ones.

    Example:
      >>> import l2o
      >>> optimizer = l2o.make("small_fc", hidden_size=8)
    """
    factory = find_factory(name)
    arguments = translated(factory, arguments)
    known = defaults_of(factory)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        remedies = [_REMEDIES[x] for x in unknown if x in _REMEDIES]
        inner = _names_of_wrapped(arguments)
        also = f"; `l2o.load` also takes {', '.join(inner)}" if inner else ""
        raise ValueError(
            f"{name} has no argument {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(known)}{also}{''.join(remedies)}"
        )
    if _RENAMED.get(name, name) in WRAPPERS:
        arguments = {key: _unwrapped(value) for key, value in arguments.items()}
    return factory(**arguments)


def present_arguments(name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of an optimizer's arguments, by their present names.

    Args:
      name: of the optimizer, as `make` takes it; those of an unknown one stay.
      arguments: its own, and in them those of what it wraps.

    Raises:
      ValueError: an argument that has no counterpart now.
    """
    if not isinstance(name, str) or not is_known(name):
        return dict(arguments)
    factory = find_factory(name)
    absent = getattr(factory, "absent_arguments", {})
    result = {**absent, **translated(factory, arguments)}
    for key, value in result.items():
        if _is_wrapped(value):
            inner = present_arguments(value["name"], value["arguments"])
            result[key] = {"name": value["name"], "arguments": inner}
    return result


def told_arguments(name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `present_arguments`: without what goes without saying.

    So what an optimizer is called does not change when its factory gets an argument.

    Args:
      name, arguments: as there, by their present names.
    """
    if not isinstance(name, str) or not is_known(name):
        return dict(arguments)
    absent = getattr(find_factory(name), "absent_arguments", {})
    result = {}
    for key, value in arguments.items():
        if key in absent and type(value) is type(absent[key]) and value == absent[key]:
            continue
        if _is_wrapped(value):
            inner = told_arguments(value["name"], value["arguments"])
            value = {"name": value["name"], "arguments": inner}
        result[key] = value
    return result


def present_names(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments to be changed, those that were only renamed by their present names."""
    old = old_names_of(find_factory(name))
    moved = {old: new for old, new in old.items() if isinstance(new, str)}
    return {moved.get(k, k): v for k, v in arguments.items()}


def _names_of_wrapped(arguments: Mapping[str, Any]) -> list[str]:
    """Names of arguments of what is wrapped, each once."""
    inner = [x["arguments"] for x in arguments.values() if _is_wrapped(x)]
    names = [k for x in inner for k, v in x.items() if not _is_wrapped(v)]
    deeper = [name for x in inner for name in _names_of_wrapped(x)]
    return list(dict.fromkeys([*names, *deeper]))


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"name", "arguments"}


def _unwrapped(value: Any) -> Any:
    if _is_wrapped(value):
        return make(value["name"], **value["arguments"])
    return value
