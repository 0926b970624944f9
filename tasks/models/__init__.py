"""Models by name: flax modules, and haiku functions where they are recurrent."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from l2o.names import unknown_name

from .._adapters import Functions, haiku_functions, linen_functions
from ._gpt import GPT as GPT
from ._images import MLP as MLP
from ._images import ConvNet as ConvNet
from ._images import Mixer as Mixer
from ._images import ResNet as ResNet
from ._images import ViT as ViT
from ._images import haiku_resnet as haiku_resnet
from ._layers import Activation as Activation
from ._layers import Conv as Conv
from ._layouts import Decoder as Decoder
from ._layouts import DepthwiseNet as DepthwiseNet
from ._layouts import Experts as Experts
from ._layouts import OutInNet as OutInNet
from ._sequences import GraphConv as GraphConv
from ._sequences import SignalConv as SignalConv
from ._sequences import Transformer as Transformer
from ._sequences import recurrent as recurrent
from ._unet import UNet as UNet

MODELS: dict[str, Callable[..., Any]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "resnet": ResNet,
    "haiku_resnet": haiku_resnet,
    "vit": ViT,
    "mixer": Mixer,
    "transformer": Transformer,
    "gpt": GPT,
    "signal_conv": SignalConv,
    "graph_conv": GraphConv,
    "recurrent": recurrent,
    "decoder": Decoder,
    "depthwise": DepthwiseNet,
    "out_in": OutInNet,
    "experts": Experts,
}


def make_model(
    name: str, outputs: int, options: Mapping[str, Any]
) -> Callable[[Activation], Functions]:
    """`activation -> (init, apply)` of a model.

    Args:
      name: a key of `MODELS`.
      outputs: logits.
      options: the model's own.

    Raises:
      ValueError: unknown name or option; the message lists the known ones.
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    implied = ("outputs", "activation", "parent", "name")
    known = [
        option
        for option in inspect.signature(MODELS[name]).parameters
        if option not in implied
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"the model {name} has no option {', '.join(unknown)}; known: "
            f"{', '.join(known)}"
        )
    build = functools.partial(MODELS[name], outputs, **options)

    def functions(activation: Activation) -> Functions:
        model = build(activation)
        if isinstance(model, nn.Module):
            return linen_functions(model)
        return haiku_functions(model)

    return functions


__all__ = ["MODELS", "make_model"]
