"""`l2o_pa`: proximal gradient descent with learned preconditioner and momentum."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import check_number, checked
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._tensors import map_tensors
from .._transformation import transformation
from ..names import check_known
from ..recurrent._cell import linear
from ..recurrent._coordinatewise import (
    StackState,
    apply_stack,
    init_stack,
    init_torch_linear,
    init_torch_lstm,
    merge_biases,
)

_STEP = 0.9999  # in units of 1/L: just below what gradient descent may take
_CONTROLS = ("p", "b", "a", "b1", "b2")
_NORMS = {
    "exp": jnp.exp,
    "eye": lambda x: x,
    "sigmoid": lambda x: 2 * jax.nn.sigmoid(x),
    "softplus": jax.nn.softplus,
}
_PROX = {
    "none": lambda u, threshold: u,
    "l1": lambda u, threshold: jnp.sign(u) * jnp.maximum(jnp.abs(u) - threshold, 0),
}

Control = Sequence[Any] | None  # name of a normaliser and a factor


class L2OPAState(NamedTuple):
    """State of `l2o_pa`: 324 bytes per parameter by default."""

    z: Any  # tree like params, float32: the last point that came out of the prox
    lstm: StackState
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


class _Rule(NamedTuple):
    """What the arguments of `l2o_pa` say of an update."""

    controls: dict[str, tuple[str, Any]]  # those that are on: normaliser and factor
    prox: Callable[[jax.Array, jax.Array], jax.Array]
    rho: float


@takes(old={"layers": "hidden_layers"})
def l2o_pa(
    *,
    hidden_size: int = 20,
    hidden_layers: int = 2,
    lipschitz: float = 1.0,
    prox: str = "none",
    rho: float = 0.1,
    p: Control = ("sigmoid", 1.0),
    a: Control = ("sigmoid", 1.0),
    b: Control = None,
    b1: Control = None,
    b2: Control = None,
    b_norm_for_all: bool = False,
    state_scale: float = 1.0,
    seed: int = 0,
) -> LearnedOptimizer:
    r"""Proximal gradient with learned preconditioner and momentum (L2O-PA).

    .. math:: u = B\,(x - P s \nabla f(x)) + (1 - B)(z - P s \nabla f(z)) + B_1, \quad
              z' = \mathrm{prox}_{P s r}(u), \quad x \leftarrow z' + A\,(z' - z) + B_2

    for the minimum of f + r, f smooth. P, B, A, B1 and B2 are one number each per
    coordinate, from an LSTM on (grad f(x), x); s = 0.9999 / L. Where P = 1 and A = 0 it
    is proximal gradient descent (ISTA); with the right sequence of constant A it is
    FISTA. The parameters are x, where the gradient is taken; `state.z` is
    the point that is sparse under "l1".

    `update` takes two optional keywords: `lipschitz=`, in place of the argument here
    where each problem has its own, and `grad_fn=`, a function of parameters that gives
    the gradient of f. Only B needs it, for the gradient at z; where B is off, as in
    L2O-PA and by default, an update costs one gradient. Gradients are those of f
    without r.

    Args:
      hidden_size, hidden_layers: the stack of LSTMs, with PyTorch's two biases; 5 805
        meta-parameters, whichever controls are on.
      lipschitz: L, the Lipschitz constant of grad f.
      prox: r; "none" is zero, "l1" is rho times the sum of absolute values.
      rho: weight of r.
      p, a, b, b1, b2: (normaliser, factor) of what the network gives, or None, which is
        P = 1, A = 0, B = 1, B1 = 0, B2 = 0. Normalisers: "sigmoid" (twice it, so that
        zero gives one), "softplus", "exp", "eye" (none). The default is the published
        one for LASSO, where b would be ("sigmoid", 1) and b1, b2 ("eye", 1); for
        logistic regression p is ("softplus", 2), a ("softplus", 0.3), b ("eye", 1).
      b_norm_for_all: B1 and B2 take the normaliser of B in place of their own, as in
        the published code. That code does so with B off, too: name it in b1 and b2.
      state_scale: deviation of the normal initial states.
      seed: of the initial states. The published ones are drawn anew for every run;
        here `init` is a function of the shapes and this number.

    Raises:
      ValueError: unknown normaliser or prox; `b_norm_for_all` without b; `update`
        called without `params`, or without `grad_fn` where b is on.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.l2o_pa(prox="l1", rho=0.1, lipschitz=2.0)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Towards constituting mathematical structures for learning to optimize" (Liu
    et al., 2023).
    """
    arguments = checked(l2o_pa, locals())
    controls = _on(dict(zip(_CONTROLS, (p, b, a, b1, b2), strict=True)))
    check_known("prox", prox, _PROX)
    if b_norm_for_all:
        controls = _with_norm_of_b(controls)
    rule = _Rule(controls, _PROX[prox], rho)

    def init_theta(key):
        return _init_theta(key, hidden_layers, hidden_size)

    def bind(theta, *, num_steps=None):
        del num_steps
        stack = [merge_biases(theta[f"lstm_{i}"]) for i in range(hidden_layers)]

        def init_fn(params):
            return L2OPAState(
                # A copy, so that parameters and state can both be donated.
                z=jax.tree.map(lambda x: jnp.array(x, jnp.float32), params),
                lstm=init_stack(
                    params, hidden_layers, hidden_size, scale=state_scale, seed=seed
                ),
            )

        def update_fn(
            updates, state, params=None, *, grad_fn=None, lipschitz=lipschitz, **extra
        ):
            del extra
            require_params(params, "l2o_pa")
            z_grads = updates
            if "b" in controls:
                z_grads = _gradient_at_z(grad_fn, state.z, params)
            step = _STEP / jnp.asarray(lipschitz, jnp.float32)
            updates, z, _, hidden, cell = map_tensors(
                functools.partial(_update_tensor, theta, stack, rule, step),
                updates,
                params,
                (state.z,),
                (z_grads,),
                state.lstm.hidden,
                state.lstm.cell,
            )
            return updates, L2OPAState(z[0], StackState(hidden, cell))

        return transformation(init_fn, update_fn, name="l2o_pa", reads_params=True)

    return LearnedOptimizer(init_theta, bind, "l2o_pa", arguments)


def _on(controls: dict[str, Control]) -> dict[str, tuple[str, Any]]:
    """Those that are not None, each a known normaliser and a factor.

    Raises:
      ValueError: one is something else.
    """
    for name, given in controls.items():
        if given is not None and not (
            isinstance(given, list | tuple)
            and len(given) == 2
            and isinstance(given[0], str)
        ):
            raise ValueError(
                f"l2o_pa needs {name} to be None or a normaliser and a factor, such as "
                f'("sigmoid", 1.0), got {given!r}'
            )
        if given is not None:
            check_number("l2o_pa", f"the factor of {name}", given[1])
    on = {k: (c[0], c[1]) for k, c in controls.items() if c is not None}
    for name, (norm, _) in on.items():
        check_known(f"normaliser of {name}", norm, _NORMS)
    return on


def _with_norm_of_b(controls: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """B1 and B2 with the normaliser of B.

    Raises:
      ValueError: B is off.
    """
    if "b" not in controls:
        raise ValueError(
            "b_norm_for_all needs b; where b is off, name the normaliser in b1 and b2"
        )
    norm, _ = controls["b"]
    shared = {k: (norm, controls[k][1]) for k in ("b1", "b2") if k in controls}
    return controls | shared


def _init_theta(key: jax.Array, hidden_layers: int, hidden_size: int) -> dict[str, Any]:
    """The stack of LSTMs, a layer on it and a head for each control, on or off."""
    keys = iter(jax.random.split(key, hidden_layers + 1 + len(_CONTROLS)))
    sizes = [2] + [hidden_size] * (hidden_layers - 1)
    return {
        **{
            f"lstm_{i}": init_torch_lstm(next(keys), size, hidden_size)
            for i, size in enumerate(sizes)
        },
        "linear": init_torch_linear(next(keys), hidden_size, hidden_size),
        "heads": {k: init_torch_linear(next(keys), hidden_size, 1) for k in _CONTROLS},
    }


def _gradient_at_z(grad_fn: Callable[[Any], Any] | None, z: Any, params: Any) -> Any:
    """The gradient of f where B needs it.

    Raises:
      ValueError: `update` was called without `grad_fn`.
    """
    if grad_fn is None:
        raise ValueError(
            "l2o_pa with b needs the gradient at a second point: call "
            "`updates, state = tx.update(grads, state, params, "
            "grad_fn=grad_fn)` with grad_fn(params) the gradient of f"
        )
    return grad_fn(optax.tree.cast_like(z, params))


def _update_tensor(theta, stack, rule, step, grad, x, z, z_grad, hidden, cell):
    """x' - x for one tensor, and what follows in its slots."""
    (z,), (z_grad,) = z, z_grad
    features, hidden, cell = _see(theta, stack, grad, x, hidden, cell)
    control = functools.partial(_control, theta["heads"], rule.controls, features)
    step = step * control("p", jnp.float32(1))
    u = x - step * grad
    if "b" in rule.controls:
        share = control("b", None)
        u = share * u + (1 - share) * (z - step * z_grad)
    u += control("b1", 0)
    new_z = rule.prox(u, rule.rho * step)
    new_x = new_z + control("a", 0) * (new_z - z)
    new_x += control("b2", 0)
    return new_x - x, (new_z,), (z_grad,), hidden, cell


def _see(theta, stack, grad, x, hidden, cell):
    """What the network makes of (grad f(x), x), and its new states."""
    # As published: the network's inputs are constants to the meta-gradient.
    seen = lax.stop_gradient(jnp.stack([grad, x], -1))
    features, hidden, cell = apply_stack(stack, seen, hidden, cell, 0.0)
    return jax.nn.relu(linear(theta["linear"], features)), hidden, cell


def _control(heads, controls, features, name, off):
    """One number per coordinate; `off` where the control is off."""
    if name not in controls:
        return off
    norm, factor = controls[name]
    out = linear(heads[name], features)[..., 0]
    return _NORMS[norm](out) * factor
