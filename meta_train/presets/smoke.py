"""The demo's whole path in under a minute, too short to learn a good optimizer.

For CI: one family, a handful of outer steps, two small evaluation tasks.
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    families=("mlp16",),
    particles=2,
    truncation=10,
    episode_length=(20, 40),
    outer_steps=20,
    outer_warmup=5,
    checkpoint_every=10,
)

EVALUATION = Evaluation(
    tasks=("deep_mlp", "autoencoder"),
    trials=2,
    steps=20,
    seeds=2,
    eval_every=5,
    eval_batches=1,
    adam_horizon=1,
)
