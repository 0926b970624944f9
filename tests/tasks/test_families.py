"""Every kind of task keeps one contract; every named task is one of them."""

import dataclasses
import doctest
import importlib
import inspect
import math
import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, KEYS, differ

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import KINDS, TaskSpec, named_tasks, suites

_STEPS = 60


@dataclasses.dataclass(frozen=True)
class _Case:
    """A small member of a kind, and what is special about it."""

    options: dict
    rate: float = 0.01  # of Adam
    differentiable: bool = True  # the gradient is that of the loss that is returned
    falls_to: float = 0.95  # share of the first losses that the last ones are below
    normalized: float = 3.5  # bound of the meta-loss
    move: float = 3e-4  # of the differences, over the size of the parameters


_PIXELS = {"size": 4}
_TINY_MLP = {"model": "mlp", "options": {"hidden": (4,)}}

CASES: dict[str, list[_Case]] = {
    "image_mlp": [_Case({"datasets": ("digits", "patches"), "hidden": (8,)})],
    "supervised": [
        _Case(
            {
                **_TINY_MLP,
                "datasets": ("shapes", "textures"),
                "activation": ("relu", "tanh", "cos"),
                "initializer": ("normal", "orthogonal"),
                "init_scale": (0.5, 2.0),
                "options": {
                    "hidden": (8, 8),
                    "normalization": "layer",
                    "dropout": 0.2,
                },
                "loss": "one_hot",
            },
            falls_to=0.99,
        ),
        _Case({**_TINY_MLP, "datasets": ("diabetes",), "loss": "squared"}),
        _Case(
            {
                "model": "conv",
                "datasets": ("digits",),
                "data": _PIXELS,
                "options": {"channels": (4,), "normalization": "batch"},
            }
        ),
        _Case(
            {
                "model": "resnet",
                "datasets": ("digits",),
                "options": {"blocks": (1,), "channels": (4,)},
            }
        ),
        _Case(
            {
                "model": "vit",
                "datasets": ("digits",),
                "options": {"width": 8, "heads": 2, "layers": 1, "mlp": 8},
            }
        ),
        _Case(
            {
                "model": "mixer",
                "datasets": ("shapes",),
                "options": {"width": 8, "layers": 1, "token_mlp": 4, "channel_mlp": 8},
            }
        ),
        _Case(
            {
                "model": "signal_conv",
                "datasets": ("signals",),
                "options": {"channels": (8,)},
            },
            rate=0.03,
            falls_to=0.99,
        ),
        _Case(
            {"model": "graph_conv", "datasets": ("graphs",), "activation": "tanh"},
            falls_to=0.99,
        ),
        _Case(
            {
                "model": "recurrent",
                "datasets": ("signals",),
                "options": {
                    "core": "irnn",
                    "size": 8,
                    "embedding": None,
                    "every_step": False,
                },
                "batch_size": 16,
            },
            falls_to=0.99,
        ),
    ],
    "autoencoder": [
        _Case({"hidden": (8,), "image_size": 4}),
        _Case({"hidden": (8,), "log_loss": True, "center_data": True}),
    ],
    "zipf_table": [
        _Case({"rows": 20, "width": 4, "hidden": 8}),
        _Case({"readout": "dot", "rows": 20, "width": 4}, rate=0.03),
    ],
    "vae": [_Case({"encoder": (8,), "decoder": (8,), "latent": 2}, normalized=10.0)],
    "language_model": [
        _Case({"options": {"width": 8}, "length": 8}, normalized=8.0),
        _Case(
            {
                "model": "recurrent",
                "options": {"core": "gru", "size": 8, "embedding": 8},
                "length": 8,
            },
            normalized=8.0,
        ),
    ],
    "diffusion": [
        _Case({"channels": (8, 16), "image_size": 4, "groups": 4}, normalized=2.2)
    ],
    # Its loss hardly changes at first, next to how it is rounded.
    "skip_gram": [
        _Case({"width": 8, "vocabulary": 300}, rate=0.1, normalized=9.0, move=1e-2)
    ],
    "copy_task": [
        _Case({"symbols": 4, "length": 2, "delay": 1, "options": {"size": 8}})
    ],
    "coordinate_network": [
        _Case({"hidden": (8,), "batch_size": 32}),
        _Case({"model": "fourier", "hidden": (8,), "batch_size": 32}),
    ],
    "pinn_heat": [_Case({"hidden": (8,), "points": 16})],
    "cartpole": [
        _Case(
            {"hidden": (4,), "steps": 40, "episodes": 4, "pairs": 8},
            rate=0.1,
            differentiable=False,
        )
    ],
    "train_learned_optimizer": [
        _Case(
            {
                "optimizer": "learnable_sgd",
                "inner": {"kind": "quadratic", "options": {"dim": 3}},
                "steps": 4,
            },
            rate=0.1,
            normalized=math.inf,
        )
    ],
}
# tests/tasks/test_classical.py holds these to closed forms.
CLASSICAL = {
    "quadratic", "least_squares", "noisy_quadratic", "noisy_mean", "log_quadratic",
    "lasso", "logistic_regression", "landscape", "l2o_scale", "open_l2o",
    "matmul_algorithm", "sparse_coding",
}  # fmt: skip
# Models of which the named tasks of `test_named_tasks` have a smaller one.
_LONG = ("autoencoder-1", "coordinate_network-1", "language_model-1")
_LONG += tuple(f"supervised-{i}" for i in (1, 3, 4, 5, 6, 7, 8))
ALL = [
    pytest.param(
        (kind, case),
        id=f"{kind}-{i}",
        marks=[pytest.mark.exhaustive] if f"{kind}-{i}" in _LONG else [],
    )
    for kind, cases in CASES.items()
    for i, case in enumerate(cases)
]


def test_every_kind_has_a_case():
    assert set(CASES) | CLASSICAL == set(KINDS)
    assert not set(CASES) & CLASSICAL


class _Step(NamedTuple):
    config: dict
    batch: dict
    loss: jax.Array
    grads: dict


class _Checks(NamedTuple):
    slope: jax.Array  # of the loss along a direction, by central differences
    along: jax.Array  # the same by the gradient
    normalized: jax.Array
    worst: jax.Array


class _Kind:
    """What one compiled program says about a small family."""

    def __init__(self, kind, case):
        self.kind, self.case = kind, case
        self.spec = TaskSpec(kind, case.options)
        self.family = self.spec.family()
        self.traces = 0
        self.compiled = jax.jit(self._both)
        (self.mapped, self.checks), self.looped = self.run(KEYS[:2])
        self.curve = np.asarray(jax.jit(self._train)(self.family.data))

    def run(self, keys):
        return self.compiled(keys, self.family.data)

    def _step(self, key, data, checks):
        k_config, k_init, k_batch, k_loss = jax.random.split(key, 4)
        config = self.family.sample(k_config)
        task = self.family.task(config, data)
        params, state = task.init(k_init)
        batch = task.batch(k_batch, "train")

        def loss(params):
            return task.loss(params, state, k_loss, batch)[0]

        value, grads = jax.value_and_grad(loss)(params)
        step = _Step(config, batch, value, grads)
        if not checks:
            return step
        norm = optax.tree.norm(params) / optax.tree.norm(grads)
        move = jax.tree.map(lambda g: self.case.move * norm * g, grads)
        up, down = (
            loss(jax.tree.map(lambda p, m, sign=sign: p + sign * m, params, move))
            for sign in (1, -1)
        )
        return step, _Checks(
            (up - down) / 2,
            optax.tree.vdot(grads, move),
            task.normalize(value),
            jnp.stack([task.normalize(x) for x in (jnp.inf, jnp.nan)]),
        )

    def _both(self, keys, data):
        self.traces += 1
        mapped = jax.vmap(lambda key: self._step(key, data, True))(keys)
        return mapped, jax.lax.map(lambda key: self._step(key, data, False), keys)

    def _train(self, data):
        task = self.family.task(self.family.sample(KEY), data)
        tx = optax.with_extra_args_support(optax.adam(self.case.rate))
        start = inner_init(tx, task, KEYS[0])
        return unroll(tx, task, start, KEYS[1], jnp.arange(_STEPS))[1]


@pytest.fixture(scope="module", params=ALL)
def made(request):
    return _Kind(*request.param)


def test_loss_falls_under_adam(made):
    curve = made.curve
    assert np.all(np.isfinite(curve))
    first, last = curve[:5].mean(), curve[-10:].mean()
    if first < 0:  # a log loss
        assert last < first
    else:
        assert last < made.case.falls_to * first


def test_gradient_is_that_of_the_loss(made):
    if not made.case.differentiable:
        assert np.all(np.asarray(made.checks.along) != 0)
        return
    np.testing.assert_allclose(
        made.checks.slope, made.checks.along, rtol=0.05, atol=2e-6
    )


def test_vmap_over_configs_is_a_loop_over_them(made):
    def close(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)

    jax.tree.map(close, made.mapped, made.looped)


def test_keys_decide_and_one_program_serves_all(made):
    (again, _), _ = made.run(KEYS[:2])
    (others, _), _ = made.run(KEYS[2:4])
    for x, y in zip(jax.tree.leaves(made.mapped), jax.tree.leaves(again)):
        assert x.dtype == y.dtype
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(x, y)
    assert differ(made.mapped.grads, others.grads)
    assert any(np.any(x[0] != x[1]) for x in jax.tree.leaves(made.mapped.grads))
    assert made.traces == 1


def test_meta_loss_is_bounded_and_the_worst_where_it_is_not_finite(made):
    normalized, worst = map(np.asarray, (made.checks.normalized, made.checks.worst))
    assert np.all(np.isfinite(normalized))
    if math.isfinite(made.case.normalized):
        assert np.all(normalized <= made.case.normalized)
        assert np.all(np.isfinite(worst))
        assert np.all(worst >= normalized[:, None] - 1e-5)


def test_spec_survives_json_and_names_unknown_options(made):
    assert TaskSpec.from_json(made.spec.to_json()) == made.spec
    with pytest.raises(ValueError, match=r"no option hiden; known: "):
        TaskSpec(made.kind, {"hiden": 3}).check()


@pytest.mark.parametrize("name", KINDS)
def test_docstring_has_example_and_source(name):
    text = inspect.getdoc(KINDS[name])
    assert ">>> " in text and "Source: " in text and "Args:" in text


PACKAGES = ("augment", "data", "families", "models", "suites")
MODULES = [
    f"l2o.tasks.{package}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(
        importlib.import_module(f"l2o.tasks.{package}").__path__
    )
] + [f"l2o.tasks.{m.name}" for m in pkgutil.iter_modules(tasks.__path__) if not m.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


_OFFLINE = [
    name
    for suite in suites().values()
    if suite.name != "heldout/velodrome"
    for name in suite.tasks
    if not name.endswith("-prox")
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", _OFFLINE)
def test_named_task_falls_under_some_adam(name):
    family = named_tasks()[name].family()
    assert family.name == name

    @jax.jit
    def run(data):
        def one(rate):
            task = family.task(family.sample(KEY), data)
            tx = optax.with_extra_args_support(optax.adam(rate))
            start = inner_init(tx, task, KEYS[0])
            _, losses = unroll(tx, task, start, KEYS[1], jnp.arange(100))
            return jax.vmap(task.normalize)(losses)

        return jax.lax.map(one, jnp.array([1e-3, 1e-2, 1e-1, 1.0]))

    curves = np.asarray(run(family.data))
    assert np.all(np.isfinite(curves))
    if "learned-optimizer" not in name:  # fresh problems: more noise than progress
        assert np.any(curves[:, -10:].mean(1) < curves[:, :3].mean(1))
