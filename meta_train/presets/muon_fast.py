"""`muon_fast`: the numbers of learnable_muon by ES on its training loss at the end.

Reproduces no paper. The run of `muon_any_rate`, from the same start, without factors
of the rate: what counts is the logarithm of the training loss at the end, at the rate
that it learns.

6.8 million inner steps, 63 minutes on one core of a busy machine after 30 of
compilation; seed 0, one run, made with XLA_FLAGS=--xla_cpu_use_fusion_emitters=false,
without which rounding differs. What ships is called by the rate it learns,
0.03 exp(-0.33) = 0.022, and has it at every length of the run, as that of
`muon_any_rate`:

    optimizer, theta = l2o.load_unbound("OUT/frozen")
    rule = l2o.learnable_muon(**{**optimizer.arguments, "learning_rate": 0.022})
    zero = jnp.float32(0.0)
    theta["learned"] = {**theta["learned"], "log_rate": zero, "horizon": zero}
    l2o.save("muon_fast", rule, theta)
"""

import dataclasses

from . import muon_any_rate

META_TRAIN = dataclasses.replace(muon_any_rate.META_TRAIN, rate_range=(1.0, 1.0))

EVALUATION = muon_any_rate.EVALUATION
