"""What is compared: every architecture, and its variants in size, inputs and state."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import optax

import l2o

Axis = Literal["as it is", "size", "momenta", "features", "state"]

REFERENCE = "optax.adam"
WIDTHS = (4, 8, 16, 32)
LAYERS = (1, 2, 3)
MOMENTA = ((0.9,), (0.9, 0.99, 0.999))
_COMPACT: dict[str, dict[str, Any]] = {
    "bf16": {"momentum": "nearest"},
    "factored": {"momentum": "float32", "second_moment": "factored"},
    "bf16 factored": {"momentum": "nearest", "second_moment": "factored"},
}
# Steps of these are absolute numbers, not scaled by parameters or a rate: all three
# make steps of 0.003. VeLO's published tensor-level network has two million
# weights, for which no small budget is enough.
_BASE: dict[str, dict[str, Any]] = {
    "small_fc": {"step_mult": 3e-3},
    "mlp": {"step_mult": 3e-3},
    "rnn_mlp": {"step_mult": 3e-3},
    "velo": {"lstm_hidden_size": 64, "param_inits": 32},
}
# The first of these that a factory has is its width, its depth, its momenta.
_WIDTH = ("hidden_size", "lstm_hidden_size")


class Variant(NamedTuple):
    """One optimizer of the study.

    Attributes:
      name: the architecture's, and in what it differs: "small_fc w8 l1" (width, hidden
        layers), "m1" (momenta), "-row" (without that group of features), "bf16".
      architecture: its factory.
      axis: in what it differs from the architecture as it is.
      optimizer: what is measured.
    """

    name: str
    architecture: str
    axis: Axis
    optimizer: l2o.LearnedOptimizer


def grid() -> dict[str, Variant]:
    """All variants by name.

    Widths and depths are crossed; everything else is changed one at a time.

    Example:
      >>> from l2o.meta_train.tradeoffs import grid
      >>> [x for x in grid() if x.startswith("nn_adam")]
      ['nn_adam', 'nn_adam w4', 'nn_adam w8', 'nn_adam w16']
    """
    known: dict[str, Variant] = {}
    for architecture in l2o.factories().usable():
        seen = []
        for variant in _variants(architecture):
            # Among the sizes is the one that it has as it is.
            identity = identity_of(variant.optimizer)
            if identity not in seen:
                seen.append(identity)
                known[variant.name] = variant
    return known


def reference() -> Variant:
    """Adam of optax, in the form of the others; its theta is empty."""

    def bind(theta, *, num_steps=None):
        del theta, num_steps
        return optax.with_extra_args_support(optax.adam(1e-3))

    optimizer = l2o.LearnedOptimizer(lambda key: (), bind, REFERENCE)
    return Variant(REFERENCE, REFERENCE, "as it is", optimizer)


def identity_of(optimizer: l2o.LearnedOptimizer) -> dict[str, Any]:
    """Its factory and arguments, as JSON can hold them."""
    return {"name": optimizer.name, "arguments": dict(optimizer.arguments)}


def _variants(architecture: str) -> Iterator[Variant]:
    defaults = l2o.defaults_of(l2o.factories()[architecture])
    base = _BASE.get(architecture, {})

    def changed(suffix: str, axis: Axis, arguments: Mapping[str, Any]) -> Variant:
        name = f"{architecture} {suffix}".strip()
        optimizer = l2o.make(architecture, **{**base, **arguments})
        return Variant(name, architecture, axis, optimizer)

    def first(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in defaults), None)

    as_it_is = changed("", "as it is", {})
    yield as_it_is
    width = first(_WIDTH)
    widths = {f"w{w}": {width: w} for w in WIDTHS} if width else {}
    has_layers = "hidden_layers" in defaults
    depths = {f"l{n}": {"hidden_layers": n} for n in LAYERS} if has_layers else {}
    # What changes one of both comes first: it keeps the shorter name.
    sizes = {**widths, **depths} | {
        f"{w} {n}": {**widths[w], **depths[n]} for w in widths for n in depths
    }
    for suffix, arguments in sizes.items():
        yield changed(suffix, "size", arguments)
    if "momentum_decays" in defaults:
        for decays in MOMENTA:
            yield changed(f"m{len(decays)}", "momenta", {"momentum_decays": decays})
    if "features" in defaults:
        every = defaults["features"]
        for left_out in every:
            rest = tuple(x for x in every if x != left_out)
            yield changed(f"-{left_out}", "features", {"features": rest})
    if "adafactor_decays" in defaults:  # it keeps accumulators
        for suffix, kinds in _COMPACT.items():
            smaller = l2o.compact(as_it_is.optimizer, **kinds)
            yield Variant(f"{architecture} {suffix}", architecture, "state", smaller)
