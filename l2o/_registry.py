"""The architectures by name, so that a folder on disk can name one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ._base import LearnedOptimizer
from .names import unknown_name
from .optimizers._celo import celo
from .optimizers._celo2 import celo2
from .optimizers._celo2_base import celo2_base
from .optimizers._celo2_velo import celo2_velo
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
from .optimizers._rnn_mlp import rnn_mlp
from .optimizers._rnnprop import rnnprop
from .optimizers._small_fc import small_fc
from .optimizers._velo import velo
from .wrappers._clip import clip
from .wrappers._compact import compact
from .wrappers._extend_horizon import extend_horizon
from .wrappers._float32_updates import float32_updates
from .wrappers._grafted import grafted
from .wrappers._hypergradient import hypergradient
from .wrappers._nominal import nominal
from .wrappers._weight_decay import weight_decay

FACTORIES: dict[str, Callable[..., LearnedOptimizer]] = {
    "celo": celo,
    "celo2": celo2,
    "celo2_base": celo2_base,
    "celo2_velo": celo2_velo,
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
    "rnn_mlp": rnn_mlp,
    "rnnprop": rnnprop,
    "small_fc": small_fc,
    "velo": velo,
}

WRAPPERS: dict[str, Callable[..., LearnedOptimizer]] = {
    "clip": clip,
    "compact": compact,
    "extend_horizon": extend_horizon,
    "float32_updates": float32_updates,
    "grafted": grafted,
    "hypergradient": hypergradient,
    "nominal": nominal,
    "weight_decay": weight_decay,
}


_REMEDIES = {
    "learning_rate": "; to scale its updates, chain `optax.scale(...)` after it",
    "weight_decay": "; to add decay, wrap it in `l2o.weight_decay(optimizer, rate)`",
}


def make(name: str, **arguments: Any) -> LearnedOptimizer:
    """The learned optimizer of that name.

    Args:
      name: a key of `l2o.FACTORIES` or `l2o.WRAPPERS`. An optimizer that is wrapped is
        a mapping with its `name` and `arguments`.
      **arguments: keyword arguments of the factory.

    Raises:
      ValueError: unknown name or argument; the message lists the known ones.

    Example:
      >>> import l2o
      >>> optimizer = l2o.make("small_fc", hidden_size=8)
    """
    factories = FACTORIES | WRAPPERS
    if name not in factories:
        raise ValueError(unknown_name("learned optimizer", name, sorted(factories)))
    known = inspect.signature(factories[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        remedies = [_REMEDIES[x] for x in unknown if x in _REMEDIES]
        inner = _names_of_wrapped(arguments)
        also = f"; `l2o.load` also takes {', '.join(inner)}" if inner else ""
        raise ValueError(
            f"{name} has no argument {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(known)}{also}{''.join(remedies)}"
        )
    if name in WRAPPERS:
        arguments = {key: _unwrapped(value) for key, value in arguments.items()}
    return factories[name](**arguments)


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
