"""What every named task keeps, by shapes alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, few

from l2o import tasks
from l2o.tasks import DATASETS, SPLITS, suites

SUITES = suites()


def _shapes(family, split):
    def one(key, data):
        task = family.task(family.sample(key), data)
        params, state = task.init(key)
        batch = task.batch(key, split)
        loss, (new_state, aux) = task.loss(params, state, key, batch)
        return params, (state, new_state), batch, loss, task.normalize(loss), aux

    return jax.eval_shape(one, KEY, family.data)


def _batch(family, split):
    def one(key, data):
        return family.task(family.sample(key), data).batch(key, split)

    return jax.eval_shape(one, KEY, family.data)


def check_contract(family):
    """What every family keeps, by shapes alone."""
    batches = []
    for split in SPLITS:
        batch = _batch(family, split)
        if batch in batches:  # of which all else follows
            batches.append(batch)
            continue
        params, (state, new), batch, loss, normalized, aux = _shapes(family, split)
        assert all(
            jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params)
        )
        assert loss.shape == normalized.shape == ()
        assert loss.dtype == normalized.dtype == jnp.float32
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), new
        )
        assert all(x.shape == () for x in aux.values())
        batches.append(batch)
    structures = {jax.tree.structure(batch) for batch in batches}
    assert len(structures) == 1
    return batches


_CHECKED = [
    *SUITES["demo/train"].tasks,
    *SUITES["demo/heldout"].tasks,
    *SUITES["heldout/small"].tasks,
    *SUITES["train/layouts"].tasks,
    *SUITES["train/broad"].tasks,
    *SUITES["convex"].tasks,
]


# The second of a kind, drawn with other sizes.
_SECOND = [n for n in _CHECKED if "broad" in n and n.endswith("-1")]


@pytest.mark.parametrize("name", few(_CHECKED, set(_CHECKED) - set(_SECOND)))
def test_named_task_keeps_the_contract(name):
    family = tasks.make_family(name)
    assert family.name == name
    batches = check_contract(family)
    if name not in ("l2o-pa-logistic-breast-cancer",):  # a batch is all there is
        assert all(batch == batches[0] for batch in batches)


@pytest.mark.parametrize("name", [n for n in _CHECKED if "broad" not in n])
def test_named_task_compiles_no_dataset_in(name):
    family = tasks.reparametrize(tasks.make_family(name), "global")

    def one(key, data):
        task = family.task(family.sample(key), data)
        return task.loss(*task.init(key), key, task.batch(key, "train"))

    constants = jax.make_jaxpr(one)(KEY, family.data).consts
    assert sum(np.size(x) for x in constants) < 3000


_CLASSES = {"cifar100": 100, "food101": 101}
_VELODROME = SUITES["heldout/velodrome"].tasks
_FEW = (
    "ImageMLP_Cifar10_128x128_Dropout05_Relu_MSE",
    "ImageMLPAE_Cifar10_256x256x256_bs1024",
    "Conv_Cifar10_32x64x64_batchnorm",
    "Resnet_MultiRuntime_10",
    "VIT_Cifar100_skinnydeep",
    "MLPMixer_Cifar100_tiny16",
    "TransformerLM_LM1B_MultiRuntime_11",
    "RNNLM_wikipediaenbytes_Patch32_GRU256_Embed128",
    "ESWrapped_1pair_ImageMLP_Cifar10BW8_Relu32",
    # Not that of `train_learned_optimizer`, of which `test_families` has one.
)


@pytest.fixture
def standins(monkeypatch):
    """Data of the right shapes in place of what has to be prepared."""

    def images(name):
        classes = _CLASSES.get(name, 1000 if "imagenet" in name else 10)
        native = {"m": 28, "c": 32, "f": 64}[name[0]] if "net" not in name else 64

        def load(size=native, grey=True):
            x = np.broadcast_to(np.float32(0.5), (1024, size, size, 1 if grey else 3))
            y = np.arange(1024, dtype=np.int32) % classes
            return tasks.Dataset(*({"x": x, "y": y} for _ in SPLITS))

        return load

    def texts(length=32, vocabulary=None):
        x = np.broadcast_to(np.int32((vocabulary or 256) - 1), (1024, length))
        return tasks.Dataset(*({"x": x, "y": x} for _ in SPLITS))

    for name in {d for spec in _VELODROME.values() for d in spec.datasets}:
        loader = texts if name in ("lm1b", "wikipedia") else images(name)
        monkeypatch.setitem(DATASETS._own, name, loader)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _FEW else pytest.mark.exhaustive)
        for name in _VELODROME
    ],
)
def test_known_task_keeps_the_contract(name, standins):
    family = tasks.make_family(name)
    params, (state, _), _, loss, normalized, _ = _shapes(family, "train")
    assert loss.shape == normalized.shape == () and loss.dtype == jnp.float32
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert parameters == _PARAMETERS.get(name, parameters)
    assert bool(jax.tree.leaves(state)) == (
        "esnet" in name or "batchnorm" in name.lower()
    )


def _resnet(stem, blocks, channels):
    """Parameters of a pre-activation bottleneck ResNet with 1000 classes."""
    width, total = 64, stem * stem * 3 * 64
    for count, out in zip(blocks, channels):
        for block in range(count):
            inner = out // 4
            total += width * out if block == 0 else 0  # projection
            total += width * inner + 9 * inner**2 + inner * out
            total += 2 * (width + 2 * inner)  # norms before each convolution
            width = out
    return total + 2 * width + 1000 * width + 1000


# By hand, from the sizes that are published.
_PARAMETERS = {
    "Resnet_MultiRuntime_0": _resnet(3, (1, 1, 1, 1), (8, 16, 16, 16)),
    "Resnet_MultiRuntime_10": _resnet(5, (1, 1, 3, 4), (256, 512, 1024, 1024)),
    "ImageMLP_Cifar10_128x128_Dropout05_Relu_MSE": 3072 * 128 + 128 * 130 + 1290,
    "ESWrapped_1pair_ImageMLP_Cifar10BW8_Relu32": 64 * 32 + 32 + 330,
    # Convolutions 3-32-64-64 have 56 320 parameters; of norms, only scale and shift.
    "Conv_Cifar10_32x64x64_batchnorm": 896 + 18_496 + 36_928 + 2 * 160 + 650,
    "RNNLM_wikipediaenbytes_Patch32_GRU256_Embed128": (
        256 * 128 + 3 * 256 * (128 + 256 + 1) + 256 + 257 * 256
    ),
}
