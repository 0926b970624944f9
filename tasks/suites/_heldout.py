"""Tasks that nothing is meta-trained on."""

from typing import Any

from .._spec import TaskSpec
from ._base import Suite, labelled


def _supervised(model: str, dataset: str, **options: Any) -> TaskSpec:
    return TaskSpec("supervised", {"model": model, "datasets": (dataset,), **options})


HELDOUT_SMALL = Suite(
    "heldout/small",
    1,
    "other models on other data than train/fast, minutes on two cores",
    labelled(
        {
            "conv-glyphs": _supervised("conv", "glyphs", data={"size": 12}),
            "conv-layernorm-glyphs": _supervised(
                "conv",
                "glyphs",
                data={"size": 12},
                options={"channels": (16, 16, 16), "normalization": "layer"},
                activation="tanh",
            ),
            "resnet-glyphs": _supervised("resnet", "glyphs"),
            "vit-glyphs": _supervised("vit", "glyphs", batch_size=32),
            "mixer-glyphs": _supervised(
                "mixer", "glyphs", batch_size=32, activation="gelu"
            ),
            "autoencoder-elevation": TaskSpec(
                "autoencoder", {"datasets": ("elevation",), "hidden": (64, 8, 64)}
            ),
            "vae-elevation": TaskSpec("vae", {"datasets": ("elevation",)}),
            "lstm-docs": TaskSpec(
                "language_model",
                {"model": "recurrent", "options": {"core": "lstm"}, "batch_size": 16},
            ),
            "transformer-docs": TaskSpec(
                "language_model",
                {"options": {"width": 48, "heads": 3, "layers": 2}, "length": 24},
            ),
            "transformer-docs-pieces": TaskSpec(
                "language_model", {"vocabulary": 512, "length": 24}
            ),
            "gru-signals": _supervised(
                "recurrent",
                "signals",
                options={"core": "gru", "embedding": None, "every_step": False},
                activation="tanh",
            ),
            "conv-signals": _supervised("signal_conv", "signals"),
            "graphs": _supervised(
                "graph_conv",
                "graphs",
                options={"hidden": (32, 32)},
                activation="tanh",
                batch_size=32,
            ),
            "siren-hopper": TaskSpec("coordinate_network", {"image": "hopper"}),
            "fourier-hopper": TaskSpec(
                "coordinate_network", {"image": "hopper", "model": "fourier"}
            ),
            "pinn-heat": TaskSpec("pinn_heat"),
            "cartpole": TaskSpec("cartpole"),
            "logistic-regression": TaskSpec(
                "logistic_regression", {"rows": 400, "dim": 40, "nonzeros": 15}
            ),
        }
    ),
    heldout="tasks and data",
)
