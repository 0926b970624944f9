"""`normalized_mixed`: normalized_velo by PES on thirteen kinds of small models.

Reproduces no paper: the parts are published, their combination is not. The rule starts
as Adam's direction and the schedule as a cosine, so that meta-training has to improve
on a good optimizer, not to find one. Of the scheduler only the last layer is trained,
because evolution strategies make the more noise the more numbers they perturb. Every
meta-gradient is cut to one length: else the families with large losses would decide
alone, but so what ruins one family counts no more than what helps another a little.

6.8 million inner steps, 23 minutes on two cores after 8 of compilation; seed 0, one
run. The scheduler that came of it makes steps too large for vision transformers and
variational autoencoders and is dropped. The rule under the schedule before
meta-training, with a rate and a decay chosen on train/mixed, is what ships:

    optimizer, theta = l2o.load_unbound("OUT/frozen")
    rule = l2o.celo2_base(
        init="adam",
        relative=True,
        schedule="cosine",
        learning_rate=0.02,
        weight_decay=0.03,
    )
    l2o.save("normalized_mixed", rule, {"nn": theta["nn"]})
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    optimizer="normalized_velo",
    optimizer_options={"step_mult": 0.01, "init": "adam"},
    families=(
        "mixed-mlp",
        "mixed-mlp-deep",
        "mixed-mlp-layernorm",
        "mixed-conv",
        "mixed-vit",
        "mixed-autoencoder",
        "mixed-vae",
        "mixed-gru",
        "mixed-transformer",
        "mixed-siren",
        "mixed-fourier",
        "mixed-table",
        "mixed-least-squares",
    ),
    reparam_level="tensor",
    reparam_range=(0.5, 2.0),
    episode_length=(100, 1000),
    objective_over="late",
    outer_steps=9000,
    outer_lr=1e-3,
    outer_warmup=100,
    outer_clip=0.01,
    frozen=("lstm_init", "mix", "lstm"),
    theta_average=0.999,
    checkpoint_every=1000,
)

EVALUATION = Evaluation(suite="heldout/small")
