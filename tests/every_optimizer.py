"""The table of optimizers that every contract test goes through."""

import jax

import l2o

NUM_STEPS = 100


ONE_DECAY = {
    "momentum_decays": (0.9,),
    "rms_decays": (0.99,),
    "adafactor_decays": (0.95,),
}


# A new factory or wrapper is under test as soon as it is there. Networks are small:
# compiling is what these tests cost, and recorded traces have the published sizes.
SMALL = {
    "celo": l2o.celo(lstm_hidden_size=6),
    "celo2": l2o.celo2(hidden_size=4, ns_iters=2),
    "normalized_velo": l2o.normalized_velo(hidden_size=4, lstm_hidden_size=6),
    "celo_adam": l2o.celo_adam(lstm_hidden_size=6),
    "elo_celo2": l2o.elo_celo2(hidden_size=4, ns_iters=2),
    "l2o_pa": l2o.l2o_pa(hidden_size=4),
    "l2o_scale": l2o.l2o_scale(level_sizes=(3, 4, 4)),
    "lstm": l2o.lstm(hidden_size=4),
    "mlp": l2o.mlp(hidden_size=4, hidden_layers=1, momentum_decays=(0.9, 0.99)),
    "nn_adam": l2o.nn_adam(lstm_hidden_size=4),
    "rnn_mlp": l2o.rnn_mlp(
        lstm_hidden_size=4,
        hidden_size=4,
        from_mlp_size=3,
        from_lstm_size=3,
        lstm_to_ff=3,
    ),
    "rnnprop": l2o.rnnprop(hidden_size=4),
    "velo": l2o.velo(lstm_hidden_size=6, param_inits=16),
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
    "with_axes": l2o.with_axes(TINY),
}
FACTORIES = {
    name: SMALL.get(name) or factory() for name, factory in l2o.factories().items()
}
# Made of parts that are under test in `celo2_base`, `velo` and `nn_adam`.
RELATIVES = {
    *("celo", "celo_adam", "celo2", "normalized_velo"),
    *("elo", "elo_celo2", "mulo"),
}
# Other arguments of what is in the table already.
VARIANTS = {
    "learnable_adam-eps_root": l2o.learnable_adam(eps_root=1e-8),
    "small_fc-wide": l2o.small_fc(hidden_size=20, hidden_layers=1, **ONE_DECAY),
    "small_fc-deep": l2o.small_fc(hidden_size=6, hidden_layers=3, **ONE_DECAY),
    "small_fc-relative": l2o.small_fc(relative=True),
    "celo2_base-relative": l2o.celo2_base(relative=True),
    "celo2-pylo": l2o.celo2(variant="pylo", hidden_size=4),
}
OPTIMIZERS = {**FACTORIES, **WRAPPED, **VARIANTS}

# Those that say what becomes of entries that have had no gradient.
WITH_UNTOUCHED = [
    name
    for name, factory in l2o.factories().items()
    if "untouched" in l2o.defaults_of(factory)
]
SMALL_SIZES = {
    "lstm_hidden_size": 4,
    "param_inits": 2,
    "hidden_size": 4,
    "level_sizes": (3, 4, 4),
    "from_mlp_size": 3,
    "from_lstm_size": 3,
    "lstm_to_ff": 3,
    "ns_iters": 2,
}


def small(name, options=SMALL_SIZES, **arguments):
    """By the options that its factory has, and by the arguments."""
    known = l2o.defaults_of(l2o.factories()[name])
    given = {k: v for k, v in options.items() if k in known}
    return l2o.make(name, **given, **arguments)
