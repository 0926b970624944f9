"""small_fc by PES on digit and photo-patch MLPs, judged on four unseen tasks."""

from .._config import Config, Evaluation

META_TRAIN = Config(
    optimizer="small_fc",
    families=("mlp32", "mlp64", "mlp32x32"),
    episode_length=(100, 500),
    outer_steps=3500,
    optimizer_options={"step_mult": 0.003},
    outer_lr=3e-3,
    checkpoint_every=500,
)

EVALUATION = Evaluation(steps=500, seeds=5)
