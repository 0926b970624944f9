"""A network that starts as a good rule and is meta-trained further, in a few minutes.

Reproduces no paper. `celo2_base` starts as the sum of Adam's direction and the
gradient, orthogonalised, with steps relative to the parameters under a cosine. PES then
trains its 347 weights on digit and photo-patch MLPs, half a million inner steps. The
evaluation has four kinds of models that meta-training never saw.

The outer learning rate was chosen among three by training tasks
(scripts/recipes/choose_demo.py). docs/tutorials/meta_train.md has what ten seeds of
meta-training reached.
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    optimizer="celo2_base",
    optimizer_options={
        "init": "nadam",
        "orthogonalize": True,
        "relative": True,
        "schedule": "cosine",
        "learning_rate": 0.03,
        "weight_decay": 0.06,
    },
    families=("mlp32", "mlp64", "mlp32x32"),
    reparam_level="none",
    objective_log=True,
    objective_over="late",
    episode_length=(100, 500),
    outer_steps=600,
    outer_lr=3e-4,
    outer_warmup=20,
    theta_average=0.98,
)

EVALUATION = Evaluation(steps=500, seeds=5, eval_every=10, adam_horizon=1)
