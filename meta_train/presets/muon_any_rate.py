"""`muon_any_rate`: the numbers of learnable_muon by ES, whatever rate it is given.

Reproduces no paper. The numbers begin near where an earlier run from Muon's published
ones had brought them, with step sizes that may adapt a thousandfold, fast at first. The
power of `settle` stays at two. Every run has its rate multiplied by a factor from
1/20 to 5 that the rule is not told, so that it learns to find the size of its steps by
itself; what counts is the logarithm of the training loss at the end. All sixteen
families count in every outer step, and lengths of runs grow, because short ones are
cheap to learn from.

6.8 million inner steps, 63 minutes on one core of a busy machine after 30 of
compilation; seed 0, one run, made with XLA_FLAGS=--xla_cpu_use_fusion_emitters=false,
without which rounding differs. What ships is called by the rate it learns,
0.03 exp(-0.24) = 0.024, and has it at every length of the run:

    optimizer, theta = l2o.load_unbound("OUT/frozen")
    rule = l2o.learnable_muon(**{**optimizer.arguments, "learning_rate": 0.024})
    zero = jnp.float32(0.0)
    theta["learned"] = {**theta["learned"], "log_rate": zero, "horizon": zero}
    l2o.save("muon_any_rate", rule, theta)
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    optimizer="learnable_muon",
    optimizer_options={
        "learning_rate": 0.03,
        "weight_decay": 0.06,
        "b1": 0.85,
        "exponent": 0.2,
        "gain": 100.0,
        "drift": 5.0,
        "fade": 2.0,
        "factor_bound": 1000.0,
    },
    families=("train/mixed",),
    families_per_step="all",
    reparam_level="none",
    rate_range=(0.05, 5.0),
    episode_length=(250, 1000),
    episode_length_start=(100, 250),
    episode_growth=60,
    estimator="full_es",
    estimator_options={"clip": 1.0},
    particles=4,
    std=0.2,
    objective_split="train",
    objective_over="last",
    objective_samples=8,
    objective_log=True,
    outer_steps=120,
    outer_lr=0.05,
    outer_warmup=5,
    outer_clip=1000.0,
    theta_average=0.9,
    frozen=("learned/settle",),
    checkpoint_every=10,
)

EVALUATION = Evaluation(suite="heldout/small")
