"""`learnable_muon`: a rule between Adam and Muon, the numbers of which are theta."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._base import (
    LearnedOptimizer,
    recorded,
    require_num_steps,
    require_params,
    stable_dtypes,
)
from ._celo2_base import NS_COEFFS
from ._features import inverse_rms
from ._hypergradient import hypergradient
from ._rule import GRADIENT_BOUND, newton_schulz
from ._scales import scale_limits, step_scales
from ._schedule import warmup_cosine
from ._tensors import map_tensors, zeros_like

_NS_ITERS, _NS_EPS = 5, 1e-8
_NORM_EPS, _ROOT_EPS = 1e-9, 1e-8
_USUAL_STEPS = 1000.0  # the horizon at which the rate is what it is called


class LearnableMuonState(NamedTuple):
    """State of the rule in the wrapper: 8 bytes per float32 parameter."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    momentum: Any  # a tree like params
    second: Any  # a tree like params
    limits: jax.Array  # shape (tensors,): largest scales of steps


def learnable_muon(
    *,
    learning_rate: float = 0.03,
    weight_decay: float = 0.06,
    b1: float = 0.9,
    b2: float = 0.95,
    exponent: float = 0.5,
    gain: float = 20.0,
    drift: float = 1.0,
    fade: float = 0.0,
    bound: float = 10.0,
) -> LearnedOptimizer:
    r"""Orthogonalised, preconditioned momentum with every number meta-learned.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
              z = \mathrm{n}\left(\frac{m}{(v + \epsilon)^q}\right)
                + e^{\gamma}\, \mathrm{n}\left(\frac{g}{(v + \epsilon)^q}\right), \quad
              d = \mathrm{n}(\mathrm{n}(\mathrm{NS}(z)) + \kappa\, \mathrm{n}(z)), \quad
              p \leftarrow p - e^{r} \alpha_t (s d + w p)

    with n the division by the root mean square over the last two axes, NS the
    Newton-Schulz iterations of Muon, s the scale of `celo2_base(relative=True)`, which
    makes steps relative to the parameters, and r the factors of `hypergradient`, which
    adapt the step of every tensor on the way. Of a vector `d = e^nu n(z)`. At q = 1/2
    this orthogonalises Adam's direction, at q = 0 Muon's. With `T` the length of the
    run, `alpha_t` is `alpha e^rho (T / 1000)^h` under a warm-up over a share f of
    the run and a cosine to zero, to the power a. Gradients are cut to +-1000.

    As it begins it makes the updates of `celo2_base(init="nadam", relative=True,
    schedule="cosine", orthogonalize=True)` in `hypergradient`, with 10 bytes of state
    per float32 parameter in place of 18, and without a network.

    Args:
      learning_rate: alpha, the root mean square of a step over that of the parameters.
      weight_decay: initial w; theta holds its logarithm, `log_decay`.
      b1, b2: initial decays; theta holds the logarithms of one minus them.
      exponent: initial q.
      gain, drift, fade: initial values of those of `hypergradient`.
      bound: largest of its factors, the least is one over it.

    The other parts of theta begin at rho = 0 (`log_rate`), h = 0 (`horizon`), gamma = 0
    (`log_gradient`), kappa = 0 (`plain`), nu = 0 (`log_vectors`), f = 0.05
    (`log_warmup`) and a = 1 (`log_power`): with those of `hypergradient` 14
    meta-parameters.

    Raises:
      ValueError: a number out of range; no `num_steps`; `update` called without
        `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.learnable_muon()
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: this project's, of parts of "Muon: An optimizer for hidden layers in neural
    networks" (Jordan et al., 2024), "Celo2: Towards learned optimization free lunch"
    (Moudgil et al., 2026) and "Online learning rate adaptation with hypergradient
    descent" (Baydin et al., 2018).
    """
    arguments = recorded(locals())
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be from 0 to less than 1, got {value}")
    if weight_decay <= 0:
        raise ValueError(f"weight_decay must be positive, got {weight_decay}")
    if bound < 1:
        raise ValueError(f"bound must be at least 1, got {bound}")

    def init_theta(key):
        del key  # the start is not random
        start = {
            "exponent": exponent,
            "horizon": 0.0,
            "log_decay": math.log(weight_decay),
            "log_gradient": 0.0,
            "log_one_minus_b1": math.log1p(-b1),
            "log_one_minus_b2": math.log1p(-b2),
            "log_power": 0.0,
            "log_rate": 0.0,
            "log_vectors": 0.0,
            "log_warmup": math.log(0.05),
            "plain": 0.0,
        }
        return jax.tree.map(jnp.float32, start)

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "learnable_muon")
        alpha = learning_rate * jnp.exp(
            theta["log_rate"] + theta["horizon"] * jnp.log(num_steps / _USUAL_STEPS)
        )

        def init_fn(params):
            momentum, second = zeros_like(params), zeros_like(params)
            count = jnp.zeros([], jnp.int32)
            return LearnableMuonState(count, momentum, second, scale_limits(params))

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "learnable_muon")
            rate = alpha * warmup_cosine(
                state.count,
                num_steps,
                warmup=jnp.exp(theta["log_warmup"]),
                power=jnp.exp(theta["log_power"]),
            )

            def rule(grad, param, momentum, second, scale):
                step, m, v = _step(theta, grad, momentum[0], second[0])
                decay = jnp.exp(theta["log_decay"])
                return -rate * (scale * step + decay * param), (m,), (v,)

            updates, (momentum,), (second,) = map_tensors(
                rule,
                updates,
                params,
                (state.momentum,),
                (state.second,),
                given=[list(step_scales(updates, params, state.limits))],
            )
            count = optax.safe_increment(state.count)
            return updates, LearnableMuonState(count, momentum, second, state.limits)

        return stable_dtypes(init_fn, update_fn)

    needs = ("params", "learning_rate", "num_steps")
    adaptive = hypergradient(
        LearnedOptimizer(init_theta, bind, needs=needs),
        gain=gain,
        drift=drift,
        fade=fade,
        bounds=(1 / bound, bound),
    )
    return adaptive._replace(name="learnable_muon", arguments=arguments)


def _step(
    theta: Any, grad: jax.Array, momentum: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The direction d of one tensor, and its new moments."""
    b1, b2 = (-jnp.expm1(theta[f"log_one_minus_{name}"]) for name in ("b1", "b2"))
    grad = jnp.clip(grad, -GRADIENT_BOUND, GRADIENT_BOUND)
    momentum = b1 * momentum + (1 - b1) * grad
    second = b2 * second + (1 - b2) * jnp.square(grad)
    over = None if grad.ndim <= 2 else (-2, -1)

    def normalised(x):
        return x * inverse_rms(x, _NORM_EPS, over)

    factor = jnp.exp(-theta["exponent"] * jnp.log(second + _ROOT_EPS))
    step = normalised(momentum * factor)
    step += jnp.exp(theta["log_gradient"]) * normalised(grad * factor)
    if grad.ndim < 2:
        return jnp.exp(theta["log_vectors"]) * normalised(step), momentum, second
    orthogonal = newton_schulz(step, NS_COEFFS, _NS_ITERS, _NS_EPS)
    step = normalised(normalised(orthogonal) + theta["plain"] * normalised(step))
    return step, momentum, second
