"""The models and tables of `train/layouts` against plainer ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2o
from l2o import tasks
from l2o.tasks import models

KEY = jax.random.key(0)


def _moved(params):
    """Biases are zero at the start, which would hide one in the wrong place."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    noise = (
        x + 0.1 * jax.random.normal(k, x.shape)
        for k, x in zip(keys, leaves, strict=True)
    )
    return structure.unflatten(list(noise))


def test_a_depthwise_convolution_is_flaxs_of_as_many_groups_as_channels():
    x = jax.random.normal(KEY, (2, 6, 5, 4))
    model = models.DepthwiseNet(3, nn.relu, channels=4, layers=1)
    params = _moved(model.init(KEY, x)["params"])
    conv = nn.Conv(4, (3, 3), feature_group_count=4)
    stem = nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)))
    y = stem.apply({"params": params["stem"]}, x)
    z = conv.apply({"params": params["depthwise_0"]}, y)
    z = nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, z)
    z = nn.relu(nn.Dense(8).apply({"params": params["Dense_0"]}, z))
    y = y + nn.Dense(4).apply({"params": params["Dense_1"]}, z)
    y = nn.LayerNorm().apply({"params": params["LayerNorm_1"]}, y.mean((1, 2)))
    expected = nn.Dense(3).apply({"params": params["head"]}, y)
    np.testing.assert_allclose(
        model.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5
    )


def test_weights_of_outputs_and_inputs_are_those_of_a_convolution_as_in_pytorch():
    x = jax.random.normal(KEY, (2, 6, 6, 3))
    model = models.OutInNet(5, nn.relu, channels=(4, 6), hidden=7)
    params = _moved(model.init(KEY, x)["params"])
    assert params["conv1"]["weight"].shape == (6, 4, 3, 3)
    assert params["linear"]["weight"].shape == (7, 6)
    y = x
    for name, stride in (("conv0", 2), ("conv1", 1)):
        layer, pad = params[name], ((1, 1), (1, 1))
        y = jax.lax.conv_general_dilated(
            y,
            layer["weight"],
            (stride, stride),
            pad,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        y = nn.relu(y + layer["bias"])
    y = y.mean((1, 2))
    for name in ("linear", "head"):
        y = (nn.relu(y) if name == "head" else y) @ params[name]["weight"].T
        y = y + params[name]["bias"]
    np.testing.assert_allclose(
        model.apply({"params": params}, x), y, rtol=1e-4, atol=1e-5
    )


def test_only_the_likeliest_expert_speaks():
    x = jax.random.normal(KEY, (6, 5))
    model = models.Experts(3, nn.relu, width=4, experts=3, hidden=7)
    params = _moved(model.init(KEY, x)["params"])
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    y = nn.relu(dense("Dense_0", x))
    gates = jax.nn.softmax(dense("router", y))
    rows = []
    for row, gate in zip(y, gates, strict=True):
        e = int(jnp.argmax(gate))
        spoken = nn.relu(row @ params["wi"][e]) @ params["wo"][e]
        rows.append(row + gate[e] * spoken)
    y = nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, jnp.stack(rows))
    assert len(np.unique(np.argmax(gates, -1))) > 1
    np.testing.assert_allclose(
        model.apply({"params": params}, x), dense("head", y), rtol=1e-4, atol=1e-5
    )


TOKENS = jnp.array([[1, 4, 2, 0, 3], [2, 2, 1, 5, 6]])


def test_stacked_layers_are_the_same_layers():
    options = {"width": 8, "layers": 3}
    stacked = models.Decoder(7, nn.gelu, stacked=True, **options)
    plain = models.Decoder(7, nn.gelu, **options)
    params = _moved(stacked.init(KEY, TOKENS)["params"])
    assert params["layers"]["query"]["kernel"].shape == (3, 8, 2, 4)
    rest = {k: x for k, x in params.items() if k != "layers"}
    layers = {
        f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"])
        for i in range(3)
    }
    np.testing.assert_allclose(
        stacked.apply({"params": params}, TOKENS),
        plain.apply({"params": {**rest, **layers}}, TOKENS),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_fused_kernel_is_three():
    options = {"width": 8, "layers": 1}
    fused = models.Decoder(7, nn.gelu, fused=True, **options)
    plain = models.Decoder(7, nn.gelu, **options)
    params = _moved(fused.init(KEY, TOKENS)["params"])
    layer = dict(params["layer_0"])
    qkv = layer.pop("qkv")
    assert qkv["kernel"].shape == (8, 3, 2, 4)
    for i, name in enumerate(("query", "key", "value")):
        layer[name] = {"kernel": qkv["kernel"][:, i], "bias": qkv["bias"][i]}
    np.testing.assert_allclose(
        fused.apply({"params": params}, TOKENS),
        plain.apply({"params": {**params, "layer_0": layer}}, TOKENS),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_decoder_does_not_see_ahead_and_ties_its_table():
    model = models.Decoder(7, nn.gelu, width=8, tied=True)
    params = _moved(model.init(KEY, TOKENS)["params"])
    assert "head" not in params
    logits = model.apply({"params": params}, TOKENS)
    other = model.apply({"params": params}, TOKENS.at[:, 3].set(6))
    np.testing.assert_allclose(logits[:, :3], other[:, :3], atol=1e-6)
    assert jnp.max(jnp.abs(logits[:, 4] - other[:, 4])) > 1e-3
    slopes = jax.grad(lambda p: model.apply({"params": p}, TOKENS)[0, 0, 5])(params)[
        "embed"
    ]["embedding"]
    assert list(np.flatnonzero(np.any(slopes != 0, 1))) == [1, 5]


@pytest.mark.parametrize("readout", ["mlp", "dot"])
def test_ids_follow_zipfs_law_and_labels_the_teacher(readout):
    rows, size = 50, 20_000
    family = tasks.zipf_table(readout, rows=rows, batch_size=size, exponent=1.2)
    config = family.sample(KEY)
    batch = family.task(config, ()).batch(jax.random.key(1), "train")
    counts = np.bincount(np.asarray(batch["x"]).ravel(), minlength=rows)
    expected = np.arange(1, rows + 1.0) ** -1.2
    expected *= counts.sum() / expected.sum()
    assert counts.shape == (rows,)
    assert np.sum((counts - expected) ** 2 / expected) < 100  # 49 degrees of freedom
    teacher, x, y = (np.asarray(z) for z in (config["teacher"], batch["x"], batch["y"]))
    if readout == "dot":
        error = y - np.sum(teacher[0, x[:, 0]] * teacher[1, x[:, 1]], 1) / np.sqrt(8)
        assert abs(error.std() - 0.3) < 0.01 and abs(error.mean()) < 0.01
        return
    seen = np.tanh(teacher[0, x].reshape(size, -1) @ config["into"]) @ config["out"]
    p = np.asarray(jax.nn.softmax(seen))
    hits = p[np.arange(size), y]
    assert abs(hits.mean() - np.sum(p**2, 1).mean()) < 0.01
    best = np.mean(np.max(p, 1))
    assert 0.3 < best < 0.95  # neither noise nor certain


def test_an_unknown_readout_is_named():
    with pytest.raises(ValueError, match="unknown readout 'sum'; known: mlp, dot"):
        tasks.zipf_table("sum")


def test_the_suite_has_the_layouts():
    seen = {}
    for name, spec in tasks.load_suite("train/layouts").tasks.items():
        family = spec.family()
        task = family.task(family.sample(KEY), family.data)
        params, _ = jax.eval_shape(task.init, KEY)
        axes = l2o.axes_of(params)
        leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, l2o.Axes))
        seen[name] = set(leaves)
    qkv = l2o.Axes("hidden", (0,), (1, 2, 3))
    assert qkv in seen["layouts-qkv"]
    assert l2o.Axes("hidden", (1,), (2, 3), (0,)) in seen["layouts-stacked"]
    assert l2o.Axes("hidden", (1, 2, 3), (0,)) in seen["layouts-out-in"]
    assert l2o.Axes("hidden", (1,), (2,), (0,)) in seen["layouts-experts"]
    for name in ("lookup", "ratings", "pieces", "tied"):
        assert l2o.Axes("embedding", (0,), (1,)) in seen[f"layouts-{name}"]
