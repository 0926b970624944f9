"""The demo's evaluation tasks, of kinds that it does not meta-train on."""

from ._spec import TaskSpec

HELDOUT: dict[str, TaskSpec] = {
    "deep_mlp": TaskSpec(
        "supervised",
        {"model": "mlp", "datasets": ("digits",), "options": {"hidden": (64, 64, 64)}},
        label="deep_mlp",
    ),
    "conv": TaskSpec(
        "supervised",
        {"model": "conv", "datasets": ("digits",)},
        label="conv",
    ),
    "autoencoder": TaskSpec("autoencoder", label="autoencoder"),
    "transformer_lm": TaskSpec("language_model", label="transformer_lm"),
}
