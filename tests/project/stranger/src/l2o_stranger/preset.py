"""Meta-trains the stranger's optimizer on the stranger's task."""

from l2o.meta_train import Config, Evaluation

META_TRAIN = Config(
    optimizer="stranger_sgd",
    families=("stranger_bowl",),
    reparam_level="none",
    particles=2,
    truncation=5,
    episode_length=(10, 10),
    outer_steps=3,
    outer_warmup=1,
)
EVALUATION = Evaluation(
    suite="stranger_bowl", trials=1, steps=10, seeds=2, eval_every=5, adam_horizon=1
)
