"""The models of heldout/medium: sizes, what their tensors are, and the contract."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY

from l2o import Axes, axes_of
from l2o._axes import view_shape
from l2o.tasks import DATASETS, SPLITS, Dataset, make_family, suites

TASKS = suites()["heldout/medium"].tasks


@pytest.fixture(autouse=True)
def standins(monkeypatch):
    """A few examples of the right shapes: no font is drawn, no vocabulary learned."""

    def images(classes):
        def load(size=16, grey=True):
            rng = np.random.default_rng(0)
            x = rng.uniform(size=(256, size, size, 1)).astype(np.float32)
            y = np.arange(256, dtype=np.int32) % classes
            return Dataset(*({"x": x, "y": y} for _ in SPLITS))

        return load

    def texts(length=32, vocabulary=None):
        rng = np.random.default_rng(0)
        tokens = rng.integers(1, vocabulary or 128, (256, length + 1), np.int32)
        x, y = tokens[:, :-1], tokens[:, 1:]
        return Dataset(*({"x": x, "y": y} for _ in SPLITS))

    monkeypatch.setitem(DATASETS._own, "characters", images(62))
    monkeypatch.setitem(DATASETS._own, "fonts", images(20))
    monkeypatch.setitem(DATASETS._own, "python_library", texts)


def _params(name):
    family = make_family(name)

    def init(key, data):
        return family.task(family.sample(key), data).init(key)[0]

    return jax.eval_shape(init, KEY, family.data)


PARAMETERS = {
    "gpt-library": 845_888,
    "gpt-stacked-library": 587_168,
    "gru-library": 690_176,
    "vit-fonts": 566_612,
    "resnet-characters": 663_374,
    "diffusion-characters": 605_273,
    "skip-gram-library": 786_432,
}


@pytest.mark.parametrize("name", TASKS)
def test_models_have_half_a_million_to_five_million_parameters(name):
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(_params(name)))
    assert count == PARAMETERS[name]
    assert 500_000 <= count <= 5_000_000


# Every tensor of a model matches one row, from the end of its path: role and what it is
# seen as. Nothing else may be a matrix.
_VECTORS = (r"bias|scale|offset|b|class_token|first0", "vector", None)
_BLOCK = [
    _VECTORS,
    (r"(query|key|value)/kernel", "hidden", (96, 96)),
    (r"out/kernel", "hidden", (96, 96)),
]
AXES = {
    "gpt-library": [
        *_BLOCK,
        (r"up/kernel", "hidden", (96, 384)),
        (r"down/kernel", "hidden", (384, 96)),
        (r"token/embedding", "embedding", (2048, 96)),
        (r"position", "embedding", (32, 96)),
        (r"lm_head/kernel", "head", (96, 2048)),
    ],
    # Layers stack: five matrices in a tensor.
    "gpt-stacked-library": [
        _VECTORS,
        (r"(query|key|value)/kernel", "hidden", (5, 96, 96)),
        (r"out/kernel", "hidden", (5, 96, 96)),
        (r"up/kernel", "hidden", (5, 96, 384)),
        (r"down/kernel", "hidden", (5, 384, 96)),
        (r"token/embedding", "embedding", (128, 96)),
        (r"position", "embedding", (32, 96)),
        (r"lm_head/kernel", "head", (96, 128)),
    ],
    "gru-library": [
        _VECTORS,
        (r"w_i", "hidden", (128, 768)),
        (r"w_h", "hidden", (256, 768)),
        (r"embeddings", "embedding", (1024, 128)),
        (r"lm_head/w", "head", (256, 1024)),
    ],
    "vit-fonts": [
        *_BLOCK,
        (r"Dense_0/kernel", "hidden", (36, 96)),
        (r"Dense_([13579])/kernel", "hidden", (96, 384)),
        (r"Dense_(2|4|6|8|10)/kernel", "hidden", (384, 96)),
        (r"position", "embedding", (17, 96)),
        (r"head/kernel", "head", (96, 20)),
    ],
    "resnet-characters": [
        _VECTORS,
        (r"initial_conv/w", "hidden", (25, 16)),
        (r"0/~/block_0/~/conv_./w", "hidden", (144, 16)),
        (r"1/~/block_0/~/conv_0/w", "hidden", (144, 32)),
        (r"1/~/block_0/~/conv_1/w", "hidden", (288, 32)),
        (r"2/~/block_0/~/conv_0/w", "hidden", (288, 96)),
        (r"2/~/block_0/~/conv_1/w", "hidden", (864, 96)),
        (r"3/~/block_0/~/conv_0/w", "hidden", (864, 192)),
        (r"3/~/block_0/~/conv_1/w", "hidden", (1728, 192)),
        (r"0/~/block_0/~/shortcut_conv/w", "hidden", (16, 16)),
        (r"1/~/block_0/~/shortcut_conv/w", "hidden", (16, 32)),
        (r"2/~/block_0/~/shortcut_conv/w", "hidden", (32, 96)),
        (r"3/~/block_0/~/shortcut_conv/w", "hidden", (96, 192)),
        (r"logits/w", "head", (192, 62)),
    ],
    "diffusion-characters": [
        _VECTORS,
        (r"first/kernel", "hidden", (9, 8)),
        (r"halve0/kernel", "hidden", (72, 32)),
        (r"halve1/kernel", "hidden", (288, 112)),
        (r"down0/Conv_./kernel", "hidden", (72, 8)),
        (r"down1/Conv_./kernel", "hidden", (288, 32)),
        (r"(down2|middle)/Conv_./kernel", "hidden", (1008, 112)),
        (r"up1/Conv_0/kernel", "hidden", (1296, 32)),
        (r"up1/Conv_1/kernel", "hidden", (288, 32)),
        (r"up0/Conv_0/kernel", "hidden", (360, 8)),
        (r"up0/Conv_1/kernel", "hidden", (72, 8)),
        (r"up1/shortcut/kernel", "hidden", (144, 32)),
        (r"up0/shortcut/kernel", "hidden", (40, 8)),
        (r"last/kernel", "hidden", (72, 1)),
        (r"time/kernel", "hidden", (32, 112)),
        (r"(down0|up0)/Dense_0/kernel", "hidden", (112, 8)),
        (r"(down1|up1)/Dense_0/kernel", "hidden", (112, 32)),
        (r"(down2|middle)/Dense_0/kernel", "hidden", (112, 112)),
    ],
    "skip-gram-library": [
        (r"words/embedding", "embedding", (6144, 64)),
        (r"contexts/embedding", "embedding", (6144, 64)),
    ],
}


@pytest.mark.parametrize("name", TASKS)
def test_every_tensor_is_seen_as_what_it_is(name):
    params = _params(name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    is_axes = lambda x: isinstance(x, Axes)
    described = jax.tree.leaves(axes_of(params), is_leaf=is_axes)
    used = set()
    for (path, leaf), axes in zip(leaves, described, strict=True):
        text = "/".join(part.key for part in path)
        rows = [row for row in AXES[name] if re.search(f"(^|/|_)({row[0]})$", text)]
        assert len(rows) == 1, (text, rows)
        ((pattern, role, seen),) = rows
        used.add(pattern)
        assert axes.role == role, text
        if seen is not None:
            assert view_shape(leaf.shape, axes) == seen, text
    assert used == {row[0] for row in AXES[name]}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_keep_the_contract(name):
    family = make_family(name)
    assert family.name == name

    def one(key, data, split):
        task = family.task(family.sample(key), data)
        params, state = task.init(key)
        batch = task.batch(key, split)
        loss, (new_state, aux) = task.loss(params, state, key, batch)
        return (loss, task.normalize(loss)), aux, state, new_state

    shapes = [
        jax.eval_shape(lambda key, data, s=split: one(key, data, s), KEY, family.data)
        for split in SPLITS
    ]
    for losses, aux, state, new_state in shapes:
        assert all(x.shape == () and x.dtype == jnp.float32 for x in losses)
        assert all(x.shape == () for x in aux.values())
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, new_state)
        assert bool(jax.tree.leaves(state)) == name.startswith("resnet")
    constants = jax.make_jaxpr(lambda key, data: one(key, data, "train")[0])(
        KEY, family.data
    ).consts
    assert sum(np.size(x) for x in constants) < 3000  # no dataset is compiled in
