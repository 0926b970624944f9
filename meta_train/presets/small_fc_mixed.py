"""`small_fc_mixed`: small_fc by PES on seventeen kinds of small models, from Adam.

Reproduces no paper. The network begins as Adam's direction, its steps are relative to
the parameters and under a cosine, so that meta-training starts from a good optimizer.
The logarithms of losses count, so that a family weighs by ratios, and meta-gradients
are cut at about their median length: cut to one length, as in `normalized_mixed`, they
let pass what ruins variational autoencoders (a meta-loss 2.6 times that of the start).

5.2 million inner steps, 14 minutes on two busy cores after 2 of compilation (4 on the
first run); seed 0, one run, made with XLA_FLAGS=--xla_cpu_use_fusion_emitters=false,
without which rounding differs. It learns steps that are right for most families and too
large for variational autoencoders and vision transformers. Half of them is what ships,
chosen on train/mixed by `python scripts/recipes/choose_step.py OUT/frozen`:

    _, theta = l2o.load_unbound("OUT/frozen")
    rule = l2o.small_fc(step_mult=0.005, init="adam", schedule="cosine", relative=True)
    l2o.save("small_fc_mixed", rule, theta)
"""

from .._config import Config, Evaluation
from . import normalized_mixed

META_TRAIN = Config(
    optimizer="small_fc",
    optimizer_options={
        "step_mult": 0.01,
        "init": "adam",
        "schedule": "cosine",
        "relative": True,
    },
    families=("train/fast", *normalized_mixed.META_TRAIN.families),
    reparam_level="tensor",
    reparam_range=(0.5, 2.0),
    episode_length=(100, 1000),
    objective_over="late",
    objective_log=True,
    outer_steps=7000,
    outer_lr=1e-3,
    outer_warmup=100,
    outer_clip=50.0,
    theta_average=0.999,
    checkpoint_every=250,
)

EVALUATION = Evaluation(suite="heldout/small")
