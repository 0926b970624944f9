"""`muon_mixed`: the numbers of learnable_muon by evolution strategies, from Muon's.

Reproduces no paper. The numbers begin as Muon's are published (momentum of 0.95, no
second moment, decay of 0.1, a constant share of a step under a cosine), with steps
relative to the parameters, and are changed by what lowers the logarithm of the loss at
the end of runs on data that were not trained on. All sixteen families count in
every outer step, and lengths of runs grow, because short ones are cheap to learn from.

6.8 million inner steps, 20 minutes on two cores after 6 of compilation; seed 0, one
run, made with XLA_FLAGS=--xla_cpu_use_fusion_emitters=false, without which rounding
differs, and before there were `fade` and `settle`, which stay at zero. 1.4 times the
rate it learns is what ships, chosen on train/mixed by
`python scripts/recipes/choose_step.py OUT/frozen adaptive_muon --factors 0.7 1 1.4`,
and called `learning_rate`, 0.01 exp(0.94) 1.4:

    optimizer, theta = l2o.load_unbound("OUT/frozen")
    rule = l2o.learnable_muon(**{**optimizer.arguments, "learning_rate": 0.036})
    theta["learned"]["log_rate"] = jnp.float32(0.0)
    l2o.save("muon_mixed", rule, theta)
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    optimizer="learnable_muon",
    optimizer_options={
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "b1": 0.95,
        "exponent": 0.0,
        "gain": 5.0,
        "drift": 0.0,
        "settle": 0.0,
        "axes": "last_two",
        "embeddings": "matrix",
        "orthogonal": "newton_schulz",
        "state_bytes": 10,
    },
    families=("train/mixed",),
    families_per_step="all",
    reparam_level="none",
    episode_length=(250, 1000),
    episode_length_start=(100, 250),
    episode_growth=60,
    estimator="full_es",
    estimator_options={"clip": 1.0},
    particles=4,
    std=0.2,
    objective_split="inner_valid",
    objective_over="last",
    objective_samples=8,
    objective_log=True,
    outer_steps=120,
    outer_lr=0.05,
    outer_warmup=5,
    outer_clip=1000.0,
    theta_average=0.9,
    frozen=("fade", "learned/settle"),
    checkpoint_every=10,
)

EVALUATION = Evaluation(suite="heldout/small")
