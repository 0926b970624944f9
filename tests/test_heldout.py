"""Held-out tasks, the registry, and the examples in the docstrings."""

import doctest
import importlib
import inspect
import math
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, KEYS

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import FAMILIES, HELDOUT, SPLITS, _heldout


class _HeldOut:
    def __init__(self, name):
        self.family = tasks.make_family(name)

        @jax.jit
        def run(data):
            task, tx = self.family.task({}, data), optax.adam(0.01)
            start = inner_init(tx, task, KEY)
            _, losses = unroll(tx, task, start, KEY, jnp.arange(20))
            return losses, task.normalize(jnp.inf)

        self.losses, self.maximum = map(np.asarray, run(self.family.data))


@pytest.fixture(scope="module", params=HELDOUT)
def heldout(request):
    return _HeldOut(request.param)


def test_heldout_loss_begins_near_that_of_guessing_and_falls(heldout):
    low, high = {
        "deep_mlp": (0.8 * math.log(10), 1.5 * math.log(10)),
        "conv": (0.8 * math.log(10), 1.2 * math.log(10)),
        "autoencoder": (0.01, 0.3),
        "transformer_lm": (0.9 * math.log(128), 1.2 * math.log(128)),
    }[heldout.family.name]
    assert low < heldout.losses[0] < high
    assert np.all(np.isfinite(heldout.losses))
    assert heldout.losses[-3:].mean() < 0.95 * heldout.losses[:3].mean()


def test_heldout_meta_loss_is_bounded_as_documented(heldout):
    expected = {
        "deep_mlp": 1.5 * math.log(10),
        "conv": 1.5 * math.log(10),
        "autoencoder": 1.0,
        "transformer_lm": 1.5 * math.log(128),
    }[heldout.family.name]
    np.testing.assert_allclose(heldout.maximum, expected, rtol=1e-6)


def test_autoencoder_squashes_its_output():
    family = tasks.make_family("autoencoder")
    task = family.task({}, family.data)
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, KEY)[0]
    )
    batch = task.batch(KEY, "train")
    loss, _ = jax.jit(task.loss)(params, {}, KEY, batch)
    np.testing.assert_allclose(loss, np.mean((0.5 - batch["x"]) ** 2), rtol=1e-5)


def test_transformer_sees_earlier_tokens_only_and_their_positions():
    module = _heldout._Transformer(width=8, heads=2, layers=1)
    tokens = np.full((7, 6), ord("a"))
    for changed in range(6):
        tokens[changed, changed] = ord("b")
    params = jax.jit(module.init)(KEY, tokens)
    *others, logits = np.asarray(jax.jit(module.apply)(params, tokens))
    assert logits.shape == (6, 128)
    assert np.all(np.std(logits, 0) > 0)  # equal tokens differ by position
    for changed, other in enumerate(others):
        np.testing.assert_array_equal(other[:changed], logits[:changed])
        assert np.all(np.any(other[changed:] != logits[changed:], -1))


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv3x3_is_a_convolution_padded_by_one(size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.arange(4, dtype=np.float32)}
    ours = _heldout._Conv3x3(channels=4, stride=stride)
    same = nn.Conv(4, (3, 3), stride, padding="SAME")

    @jax.jit
    def run(params, x):
        reference = params["bias"] + jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return *(m.apply({"params": params}, x) for m in (ours, same)), reference

    out, same_out, reference = map(np.asarray, run(params, x))
    np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-5)
    assert same_out.shape == out.shape
    # "SAME" pads an even side by (0, 1) under stride 2; odd sides by (1, 1).
    agrees = stride == 1 or all(n % 2 for n in size)
    assert np.allclose(out, same_out, rtol=1e-5, atol=1e-5) == agrees


def test_conv3x3_begins_as_flaxs_convolution_does():
    x = jnp.zeros((1, 4, 4, 32))
    params = jax.jit(_heldout._Conv3x3(channels=64, stride=1).init)(KEY, x)["params"]
    flaxs = jax.eval_shape(nn.Conv(64, (3, 3)).init, KEY, x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flaxs)
    kernel = np.asarray(params["kernel"])
    np.testing.assert_allclose(kernel.std(), 1 / math.sqrt(9 * 32), rtol=0.03)
    assert np.all(np.asarray(params["bias"]) == 0)


def test_make_family_names_the_known_families():
    with pytest.raises(ValueError, match="'mpl32'; known: " + ", ".join(FAMILIES)):
        tasks.make_family("mpl32")


def test_heldout_tasks_are_registered():
    assert set(HELDOUT) < set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_family_keeps_the_contract(name):
    family = tasks.make_family(name)
    assert family.name == name

    def one(key, data, split):
        task = family.task(family.sample(key), data)
        params, state = task.init(key)
        batch = task.batch(key, split)
        loss, (new_state, aux) = task.loss(params, state, key, batch)
        return params, (state, new_state), batch, loss, task.normalize(loss), aux

    batches = []
    for split in SPLITS:
        params, (state, new_state), batch, loss, normalized, aux = jax.eval_shape(
            lambda key, data, split=split: one(key, data, split), KEY, family.data
        )
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        assert loss.shape == normalized.shape == ()
        assert loss.dtype == normalized.dtype == jnp.float32
        assert jax.tree.structure(state) == jax.tree.structure(new_state)
        assert all(x.shape == () for x in aux.values())
        batches.append(batch)
    assert all(batch == batches[0] for batch in batches)
    shapes = jax.eval_shape(
        jax.vmap(lambda key: one(key, family.data, "train")), KEYS[:3]
    )
    assert all(x.shape[0] == 3 for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_family_compiles_no_dataset_in(name):
    family = tasks.reparametrize(tasks.make_family(name), "tensor")

    def one(key, data):
        task = family.task(family.sample(key), data)
        return task.loss(*task.init(key), key, task.batch(key, "train"))

    constants = jax.make_jaxpr(one)(KEY, family.data).consts
    assert sum(np.size(x) for x in constants) < 100


MODULES = [
    f"l2o.tasks.{module.name}" for module in pkgutil.iter_modules(tasks.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_maker_of_a_family_has_an_example():
    makers = ["from_arrays", "from_haiku", "from_linen", "from_nnx", "image_mlp"]
    makers += ["make_family", "quadratic", "reparametrize", "stateless"]
    for name in makers:
        assert ">>> " in inspect.getdoc(getattr(tasks, name)), name
