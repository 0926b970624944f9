"""The baselines of optax, each with the search space that it is tuned in.

A search space is a list of values of one number, in most the learning rate, the common
default first and then half decades around it, the nearer the earlier: a budget of k
trials is its first k. Whoever has no learning rate is tuned in the number that takes
its place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from optax import contrib

import l2o

from ..estimators._unroll import value_only


class Baseline(NamedTuple):
    """One way to train, with its search space.

    Attributes:
      make: `rate -> transformation`; the rate is a number, perhaps traced, or a
        schedule where `scheduled` says so.
      tuned: what the rate is called.
      space: its values in the order of trials; empty where there is nothing to tune.
      scheduled: whether the rate may be a schedule.
      extra: `(loss_fn, loss, gradient) -> keywords`, extra arguments of the update, of
        this batch.
      final: `(state, params) -> params`, the parameters that are evaluated.
    """

    make: Callable[[Any], Any]
    tuned: str = "learning_rate"
    space: tuple[float, ...] = ()
    scheduled: bool = True
    extra: Callable[[Callable, jax.Array, Any], dict[str, Any]] = value_only
    final: Callable[[Any, Any], Any] | None = None


def half_decades(default: float, centre: float | None = None) -> tuple[float, ...]:
    """The default, then what else is within a decade and a half of the centre.

    The nearest to the centre first, which is the default if not given; at equal
    distance the larger one.
    """
    middle = default if centre is None else centre
    around = [middle * 10**e for e in (0, 0.5, -0.5, 1, -1, 1.5, -1.5)]
    rest = [x for x in around if abs(np.log(x / default)) > 0.1]
    return tuple(float(f"{x:.3g}") for x in (default, *rest))


def _line_search(loss_fn, value, grads):
    return {"value": value, "grad": grads, "value_fn": loss_fn}


def _hessian(loss_fn, value, grads):
    del value, grads
    return {"obj_fn": loss_fn}


def _sam(rate):
    """SAM with a step of 0.05 uphill, then Adam: two gradients per update."""
    uphill = optax.chain(contrib.normalize(), optax.sgd(0.05))
    return contrib.sam(optax.adam(rate), uphill, opaque_mode=True)


def _gradient_elsewhere(loss_fn, value, grads):
    del value, grads
    return {"grad_fn": lambda params, _: jax.grad(loss_fn)(params)}


def _of(
    make: Callable, default: float, centre: float | None = None, **rest: Any
) -> Baseline:
    return Baseline(make, space=half_decades(default, centre), **rest)


def _fixed(make: Callable, tuned: str, default: float) -> Baseline:
    """What takes no schedule."""
    return _of(make, default, tuned=tuned, scheduled=False)


def _muon(rate):
    # Where it is tuned it is one number, of the orthogonalised and of Adam's part.
    return contrib.muon(rate, adam_learning_rate=rate)


# Muon's authors train with a rate of 0.02 beside an ordinary one of Adam.
_MUON_RATE, _OVER_ADAM = 0.02, 20


def _muon_hidden(rate):
    """Muon on hidden matrices, AdamW on embeddings, heads and vectors.

    Attention and convolutions are one matrix each, stacked layers one per layer. Adam's
    rate is a twentieth: with Muon's usual one it is Adam's usual one.
    """

    def seen(axes: l2o.Axes) -> contrib.MuonDimensionNumbers | None:
        if axes.role != "hidden":
            return None
        return contrib.MuonDimensionNumbers(axes.inputs, axes.outputs)

    def of(params):
        axes = l2o.axes_of(params)
        return contrib.muon(
            rate,
            adam_learning_rate=_scaled(rate, 1 / _OVER_ADAM),
            adam_weight_decay=1e-4,
            muon_weight_dimension_numbers=jax.tree.map(
                seen, axes, is_leaf=lambda x: isinstance(x, l2o.Axes)
            ),
        )

    def init(params):
        return of(params).init(params)

    def update(updates, state, params):
        return of(params).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _scaled(rate: Any, factor: float) -> Any:
    return (lambda count: factor * rate(count)) if callable(rate) else factor * rate


@functools.cache
def baselines() -> dict[str, Baseline]:
    """All by name: those of optax and optax.contrib, SGD with momentum, and SAM.

    Left out are `optimistic_adam`, which optax replaces by `optimistic_adam_v2`, and
    `dpsgd`, which needs the gradient of every example.

    Example:
      >>> from l2o.meta_train.evaluation import baselines
      >>> baselines()["adam"].space[:3]
      (0.001, 0.00316, 0.01)
    """
    adaptive = {
        name: _of(getattr(optax, name), 1e-3, 10**-2.5)
        for name in (
            "adam", "adamw", "adabelief", "adamax", "adamaxw", "adan", "amsgrad",
            "nadam", "nadamw", "optimistic_adam_v2", "radam", "rmsprop",
        )
    }  # fmt: skip
    of_contrib = {
        name: _of(getattr(contrib, name), 1e-3, 10**-2.5)
        for name in (
            "acprop", "ademamix", "simplified_ademamix", "adopt", "galore", "madgrad",
            "sophia",
        )
    }  # fmt: skip
    of_contrib["sophia"] = of_contrib["sophia"]._replace(extra=_hessian)
    free = {"scheduled": False, "final": contrib.schedule_free_eval_params}
    return {
        **adaptive,
        "adadelta": _of(optax.adadelta, 1.0),
        "adafactor": _of(optax.adafactor, 1e-2),
        "adagrad": _of(optax.adagrad, 1e-2),
        "fromage": _of(optax.fromage, 1e-2),
        "lamb": _of(optax.lamb, 1e-2),
        "lars": _of(optax.lars, 1.0),
        "lbfgs": Baseline(lambda _: optax.lbfgs(), scheduled=False, extra=_line_search),
        "lion": _of(optax.lion, 3e-4, 1e-3),
        "noisy_sgd": _of(functools.partial(optax.noisy_sgd, key=0), 1e-1),
        "novograd": _of(optax.novograd, 1e-2),
        "optimistic_gradient_descent": _of(optax.optimistic_gradient_descent, 1e-1),
        "polyak_sgd": _fixed(
            lambda rate: optax.polyak_sgd(max_learning_rate=rate),
            "max_learning_rate",
            1.0,
        ),
        "rprop": _of(optax.rprop, 1e-3, scheduled=False),
        "sgd": _of(optax.sgd, 1e-1),
        "sgdm": _of(functools.partial(optax.sgd, momentum=0.9), 1e-2),
        "sign_sgd": _of(optax.sign_sgd, 1e-3, 10**-2.5),
        "signum": _of(optax.signum, 1e-3, 10**-2.5),
        "sm3": _of(optax.sm3, 1e-1),
        "yogi": _of(optax.yogi, 1e-2),
        **of_contrib,
        "cocob": _fixed(lambda alpha: contrib.cocob(alpha=alpha), "alpha", 100.0),
        "dadapt_adamw": _of(contrib.dadapt_adamw, 1.0),
        "dog": _of(contrib.dog, 1.0),
        "dowg": _of(contrib.dowg, 1.0),
        "momo": _of(contrib.momo, 1.0),
        "momo_adam": _of(contrib.momo_adam, 1e-2),
        "muon": _of(_muon, 1e-2),
        "muon_hidden": _of(_muon_hidden, _MUON_RATE),
        "prodigy": _of(contrib.prodigy, 1.0),
        "schedule_free_sgd": _of(contrib.schedule_free_sgd, 1.0, **free),
        "schedule_free_adamw": _of(contrib.schedule_free_adamw, 2.5e-3, **free),
        "sam": _of(_sam, 1e-3, 10**-2.5, extra=_gradient_elsewhere),
    }


def scheduled_rate(schedule: str, rate: Any, steps: int) -> Any:
    """The rate under a schedule of `SCHEDULES` for so many updates.

    "cosine" and "linear" warm up over a twentieth of them and then fall to zero.
    """
    if schedule == "constant":
        return rate
    warm_up = max(steps // 20, 1)
    if schedule == "cosine":
        unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, steps)
    else:
        up = optax.linear_schedule(0.0, 1.0, warm_up)
        down = optax.linear_schedule(1.0, 0.0, steps - warm_up)
        unit = optax.join_schedules([up, down], [warm_up])
    return lambda count: rate * unit(count)


SCHEDULES = ("constant", "cosine", "linear")


def every_baseline() -> list[str]:
    """What `all` stands for: optax's and SAM, and two of them under a cosine.

    `muon_hidden` is not among them, nor is what is under another schedule: results of
    them that come with the package are of `heldout/medium` only.

    Example:
      >>> from l2o.meta_train.evaluation import every_baseline
      >>> "adamw+cosine" in every_baseline()
      True
    """
    names = [name for name in baselines() if name != "muon_hidden"]
    return [*names, "adamw+cosine", "muon+cosine"]
