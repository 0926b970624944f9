"""The table of optimizers that every contract test goes through."""

import jax

import l2o

NUM_STEPS = 100


ONE_DECAY = {
    "momentum_decays": (0.9,),
    "rms_decays": (0.99,),
    "adafactor_decays": (0.95,),
}


# A new factory or wrapper is under test as soon as it is registered.
SMALL = {
    "velo": l2o.velo(lstm_hidden_size=6, param_inits=16),
    "celo": l2o.celo(lstm_hidden_size=6),
    "celo_adam": l2o.celo_adam(lstm_hidden_size=6),
}
TINY = l2o.learnable_sgdm()  # compiles fast; what is wrapped is tested unwrapped
WRAPPED = {
    "clip_gradients": l2o.clip_gradients(TINY),
    "compact": l2o.compact(l2o.small_fc(), second_moment="factored"),
    "extend_horizon": l2o.extend_horizon(SMALL["celo_adam"], max_steps=1000),
    "float32_updates": l2o.float32_updates(TINY),
    "grafted": l2o.grafted(TINY, l2o.learnable_adam()),
    "hypergradient": l2o.hypergradient(TINY),
    "mup": l2o.mup(TINY, lambda params: jax.tree.map(lambda _: 0.5, params)),
    "nominal": l2o.nominal(TINY),
    "decay_weights": l2o.decay_weights(TINY, 1e-3),
}
FACTORIES = {
    name: SMALL.get(name) or factory() for name, factory in l2o.factories().items()
}
# Other arguments of what is in the table already.
VARIANTS = {
    "learnable_adam-eps_root": l2o.learnable_adam(eps_root=1e-8),
    "mlp-narrow": l2o.mlp(hidden_size=4, hidden_layers=1, momentum_decays=(0.9,)),
    "small_fc-wide": l2o.small_fc(hidden_size=20, hidden_layers=1, **ONE_DECAY),
    "small_fc-deep": l2o.small_fc(hidden_size=6, hidden_layers=3, **ONE_DECAY),
    "small_fc-relative": l2o.small_fc(relative=True),
    "celo2_base-relative": l2o.celo2_base(relative=True),
    "celo2-pylo": l2o.celo2(variant="pylo", hidden_size=4),
}
OPTIMIZERS = {**FACTORIES, **WRAPPED, **VARIANTS}
