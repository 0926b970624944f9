"""What a state tells of a run, and how a run is ended or goes on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import check_num_steps


def skipped_steps(state: Any) -> jax.Array:
    """How many steps were skipped because a gradient was not finite: shape (), int32.

    Such a step has updates of zero, and the state stays as it was.

    Args:
      state: of an optimizer of l2o, also inside `optax.chain`, `optax.MultiSteps` and
        the like. Of several parts the one that skipped most counts.

    Raises:
      ValueError: no part of the state counts skipped steps.

    Example:
      >>> import jax.numpy as jnp, l2o
      >>> tx = l2o.load("adaptive_muon", num_steps=100)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update({"w": params["w"] * jnp.nan}, tx.init(params),
      ...                            params)
      >>> int(l2o.skipped_steps(state))
      1
    """
    parts = _parts(state, lambda x: getattr(x, "skipped", None) is not None)
    if not parts:
        raise ValueError(
            "skipped_steps found no count in this state: give the state of an "
            "optimizer of l2o, as `tx.init(params)` or `tx.update(...)` returns it"
        )
    return jnp.max(jnp.stack([jnp.asarray(x.skipped) for x in parts]), 0)


def steps_left(state: Any) -> jax.Array:
    """How many updates are left until the end of the run: shape (), float32.

    At zero the schedule has ended: `adaptive_muon` and all others whose rate falls as a
    cosine make updates of zero. It is infinite where no end is set.

    Args:
      state: as `skipped_steps` takes it. Of several parts the first to end counts.

    Raises:
      ValueError: no part of the state counts updates.

    Example:
      >>> import jax.numpy as jnp, l2o
      >>> state = l2o.load("adaptive_muon", num_steps=100).init({"w": jnp.ones((3, 2))})
      >>> float(l2o.steps_left(state))
      100.0
    """
    parts = _parts(state, lambda x: getattr(x, "num_steps", None) is not None)
    if not parts:
        skipped_steps(state)  # refuses what is no state of l2o
        return jnp.float32(jnp.inf)
    left = [jnp.maximum(x.num_steps - x.count, 0.0) for x in parts]
    return jnp.min(jnp.stack(left), 0)


def cool_down(state: Any, steps: int | jax.Array) -> Any:
    r"""Ends a run: the rate falls to zero over the next updates, from where it is.

    .. math:: \alpha_t = \hat\alpha \left(\frac{1 + \cos \pi x_t}{2}\right)^a, \quad
              x_t = x_0 + (1 - x_0) \frac{t}{n}

    with n the steps, t the updates since the call and x_0 what of the fall was behind:
    zero in a run without `num_steps`, whose rate is at its largest. In a run with
    `num_steps` the rest of the cosine is stretched or squeezed to n updates. Shapes and
    types of the state stay, so no compiled function is compiled again.

    Args:
      state: of an optimizer whose rate falls as a cosine (`learnable_muon`; `small_fc`
        and `celo2_base` with `schedule="cosine"`), also inside `optax.chain` and the
        like.
      steps: n.

    Returns:
      The state with the new end.

    Raises:
      ValueError: no part of the state has such a rate; steps are no number of steps.

    Example:
      >>> import jax.numpy as jnp, l2o
      >>> tx = l2o.load("adaptive_muon")
      >>> state = tx.init({"w": jnp.ones((3, 2))})
      >>> float(l2o.steps_left(state)), float(l2o.steps_left(l2o.cool_down(state, 200)))
      (inf, 200.0)

    Source: "MiniCPM: Unveiling the potential of small language models with scalable
    training strategies" (Hu et al., 2024), the schedule of warm-up, stable and decay.
    """
    return _with_end("cool_down", state, steps, lambda share: share)


def extend_run(state: Any, steps: int | jax.Array) -> Any:
    """Goes on with a run: the rate is at its largest again, and falls to zero.

    As `cool_down` with `x_0 = 0`: at once the largest rate of the run, then a cosine
    over the next updates. Averages and the factors of step sizes are kept.

    Args:
      state, steps: as for `cool_down`.

    Returns:
      The state with the new end.

    Raises:
      ValueError: as `cool_down`.

    Example:
      >>> import jax.numpy as jnp, l2o
      >>> state = l2o.load("adaptive_muon", num_steps=100).init({"w": jnp.ones((3, 2))})
      >>> float(l2o.steps_left(l2o.extend_run(state, 500)))
      500.0

    Source: "SGDR: Stochastic gradient descent with warm restarts" (Loshchilov &
    Hutter, 2017).
    """
    return _with_end("extend_run", state, steps, jnp.zeros_like)


def _with_end(
    name: str, state: Any, steps: Any, share: Callable[[jax.Array], jax.Array]
) -> Any:
    check_num_steps(name, steps, "steps")

    def falls(x):
        return getattr(x, "fall", None) is not None

    def ended(x):
        if not falls(x):
            return x
        count = jnp.asarray(x.count)
        fall = x.fall._replace(
            asked=jnp.ones_like(x.fall.asked), share=share(jnp.asarray(x.fall.share))
        )
        end = jnp.asarray(count + steps, jnp.float32)
        return x._replace(num_steps=end, fall=fall)

    if not _parts(state, falls):
        raise ValueError(
            f"{name} found no rate that falls as a cosine in this state: "
            "`adaptive_muon` and the other `learnable_muon`s have one, and `small_fc` "
            "and `celo2_base` with schedule='cosine'. Load other optimizers again, "
            "with the number of further steps, and begin with a new state"
        )
    return jax.tree.map(ended, state, is_leaf=falls)


def _parts(state: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    """The parts of a state that are wanted, the outermost of each branch."""
    return [x for x in jax.tree.leaves(state, is_leaf=wanted) if wanted(x)]
