"""Layers and models against references, and what a model may see."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY

from l2o import tasks
from l2o.tasks import models
from l2o.tasks.models._images import cut_patches
from l2o.tasks.models._layers import max_pool, patches


@pytest.mark.parametrize("causal", ["transformer", "gpt", "lstm", "irnn"])
def test_language_model_sees_earlier_tokens_only(causal):
    recurrent = causal in ("lstm", "irnn")
    options = {"core": causal, "size": 8} if recurrent else {"width": 8}
    name = "recurrent" if recurrent else causal
    model = models.make_model(name, 128, options)(nn.gelu)
    tokens = np.full((7, 6), ord("a"))
    for changed in range(6):
        tokens[changed, changed] = ord("b")
    params, state = jax.jit(model.init)(KEY, tokens)
    logits, _ = jax.jit(model.apply)(params, state, KEY, tokens)
    *others, logits = np.asarray(logits)
    assert logits.shape == (6, 128)
    # Equal tokens differ by position, or by what came before.
    assert np.all(np.std(logits, 0) > 0)
    for changed, other in enumerate(others):
        np.testing.assert_array_equal(other[:changed], logits[:changed])
        assert np.all(np.any(other[changed:] != logits[changed:], -1))


def test_stacked_blocks_compute_what_separate_ones_do():
    options = {"width": 8, "heads": 2, "layers": 3, "mlp": 12}
    tokens = np.arange(10).reshape(2, 5)
    separate = models.make_model("gpt", 16, options)(nn.gelu)
    stacked = models.make_model("gpt", 16, {**options, "stacked": True})(nn.gelu)
    params, _ = jax.jit(separate.init)(KEY, tokens)
    blocks = [params.pop(f"block{i}") for i in range(3)]
    piled = {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(stacked.init, KEY, tokens)[0])
    assert jax.tree.map(jnp.shape, piled) == shapes
    params |= {f"block{i}": block for i, block in enumerate(blocks)}
    logits, _ = jax.jit(separate.apply)(params, {}, KEY, tokens)
    same, _ = jax.jit(stacked.apply)(piled, {}, KEY, tokens)
    np.testing.assert_allclose(logits, same, rtol=1e-4, atol=1e-5)
    backwards = {**piled, "blocks": jax.tree.map(lambda x: x[::-1], piled["blocks"])}
    other, _ = jax.jit(stacked.apply)(backwards, {}, KEY, tokens)
    assert np.abs(other - logits).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "x"),
    [
        ("vit", {"head": "head"}, np.zeros((1, 8, 8, 1), np.float32)),
        ("recurrent", {"head": "head"}, np.zeros((1, 3), int)),
    ],
)
def test_a_head_has_the_name_that_it_is_given(name, options, x):
    model = models.make_model(name, 10, options)(nn.gelu)
    params, _ = jax.eval_shape(model.init, KEY, x)
    assert params["head"]
    params, _ = jax.eval_shape(models.make_model(name, 10, {})(nn.gelu).init, KEY, x)
    assert "head" not in params


def test_haiku_resnet_keeps_its_averages():
    model = models.make_model("haiku_resnet", 5, {"channels": (4, 4, 8, 8)})(nn.gelu)
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 1)).astype(np.float32)
    params, state = jax.jit(model.init)(KEY, x)
    kernels = [v["w"].shape for k, v in params.items() if "conv" in k]
    assert len(kernels) == 13 and all(len(shape) == 4 for shape in kernels)
    logits, new = jax.jit(model.apply)(params, state, KEY, x)
    assert logits.shape == (3, 5) and not np.any(logits)  # they begin at zero
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, new)
    assert any(jax.tree.leaves(moved))


def test_recurrent_first_state_is_learned():
    model = models.make_model("recurrent", 16, {"core": "gru", "size": 4})(jnp.tanh)
    tokens = np.zeros((2, 3), int)
    params, state = jax.jit(model.init)(KEY, tokens)
    (first,) = (
        (module, name)
        for module, leaves in params.items()
        for name in leaves
        if name.startswith("first")
    )
    assert np.all(np.asarray(params[first[0]][first[1]]) == 0)

    def loss(params):
        return jnp.sum(model.apply(params, state, KEY, tokens)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    assert np.any(np.asarray(grads[first[0]][first[1]]) != 0)


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_a_convolution_padded_by_half_its_kernel(size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    params = {"kernel": kernel, "bias": np.arange(4, dtype=np.float32)}
    ours = models.Conv(channels=4, stride=stride)

    @jax.jit
    def run(params, x):
        reference = params["bias"] + jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        pooled = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return ours.apply({"params": params}, x), reference, max_pool(x), pooled

    out, reference, ours_pooled, pooled = map(np.asarray, run(params, x))
    np.testing.assert_allclose(out, reference, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours_pooled, pooled)


@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_patches_of_any_kernel_are_a_convolutions(kernel):
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 2)).astype(np.float32)
    weights = np.ones((kernel, kernel, 2, 1), np.float32)
    half = kernel // 2
    reference = jax.lax.conv_general_dilated(
        x,
        weights,
        (2, 2),
        ((half, half), (half, half)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    ours = patches(x, kernel, 2).sum(-1, keepdims=True)
    np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_conv_begins_as_flaxs_convolution_does():
    x = jnp.zeros((1, 4, 4, 32))
    params = jax.jit(models.Conv(channels=64).init)(KEY, x)["params"]
    flaxs = jax.eval_shape(nn.Conv(64, (3, 3)).init, KEY, x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flaxs)
    kernel = np.asarray(params["kernel"])
    np.testing.assert_allclose(kernel.std(), 1 / math.sqrt(9 * 32), rtol=0.03)
    assert np.all(np.asarray(params["bias"]) == 0)


def test_patches_tile_an_image_in_order():
    image = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    cut = np.asarray(cut_patches(image, 2))
    assert cut.shape == (2, 6, 4)
    np.testing.assert_array_equal(cut[0, 1], [2, 3, 8, 9])
    with pytest.raises(ValueError, match="patches of 4 do not tile images of 4x6"):
        cut_patches(image, 4)


def test_batch_norm_averages_are_model_state_that_moves():
    family = tasks.make_family(
        "supervised",
        model="resnet",
        datasets=("digits",),
        options={"blocks": (1,), "channels": (4,)},
    )
    task = family.task({}, family.data)

    @jax.jit
    def run(data):
        task = family.task({}, data)
        params, state = task.init(KEY)
        _, (new, aux) = task.loss(params, state, KEY, task.batch(KEY, "train"))
        return state, new, aux

    state, new, aux = run(family.data)
    assert set(state) == {"batch_stats"}
    means = [np.asarray(x) for x in jax.tree.leaves(new)]
    assert all(np.any(x != y) for x, y in zip(means, jax.tree.leaves(state)))
    assert 0 <= aux["accuracy"] <= 1
    assert task.normalize(jnp.inf) == pytest.approx(1.5 * math.log(10))


def test_graph_convolution_treats_nodes_alike():
    model = models.make_model("graph_conv", 2, {"hidden": (4,)})(jnp.tanh)
    data = tasks.load_dataset("graphs").train["x"][:1]
    params, state = model.init(KEY, data)
    order = np.random.default_rng(0).permutation(16)
    moved = data[:, order]
    moved = moved.at[..., :16].set(moved[..., :16][..., order])
    apply = jax.jit(model.apply)
    out, _ = apply(params, state, KEY, data)
    out_moved, _ = apply(params, state, KEY, moved)
    np.testing.assert_allclose(out_moved, out[:, order], rtol=1e-5, atol=1e-6)


def test_unknown_models_and_options_are_named():
    with pytest.raises(ValueError, match="unknown model 'cnn'; known: mlp, conv"):
        models.make_model("cnn", 3, {})
    with pytest.raises(ValueError, match=r"no option widht; known: .*width"):
        models.make_model("vit", 3, {"widht": 3})
    with pytest.raises(ValueError, match="unknown core 'ltsm'; known: lstm, gru"):
        models.make_model("recurrent", 3, {"core": "ltsm"})(jnp.tanh)


@pytest.mark.parametrize(
    ("model", "options"),
    [("conv", {"normalization": "batch"}), ("vit", {})],
)
def test_models_stay_in_float32_where_x64_is_on(model, options):
    with jax.enable_x64(True):
        family = tasks.make_family(
            "supervised", model=model, datasets=("digits",), options=options
        )

        def start(data):
            task = family.task({}, data)
            return task.init(KEY)

        found = jax.eval_shape(start, family.data)
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
