"""Which axes are a matrix: what is inferred of models, and what a rule then does."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import normal

import l2o
from l2o import Axes
from l2o._axes import unview, view, view_shape

KEY = jax.random.key(0)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens, image):
        x = nn.Embed(11, 12)(tokens)
        x = x + self.param("position", nn.initializers.normal(), (5, 12))
        x = nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        x = nn.MultiHeadDotProductAttention(num_heads=3, use_bias=False)(x)
        x = nn.Conv(7, (3,))(x)
        y = nn.Conv(8, (3, 2))(image)
        y = nn.ConvTranspose(6, (2, 2), use_bias=False)(y)
        y = nn.DenseGeneral((2, 9), axis=(-2, -1))(y)
        return nn.Dense(11, name="lm_head")(x), y


def linen():
    tokens, image = jnp.zeros((1, 5), jnp.int32), jnp.zeros((1, 4, 4, 3))
    return jax.eval_shape(Linen().init, KEY, tokens, image)["params"]


LINEN = {
    "Embed_0/embedding": ("embedding", (11, 12)),
    "position": ("embedding", (5, 12)),
    "LayerNorm_0/scale": ("vector", (12,)),
    "MultiHeadDotProductAttention_0/query/kernel": ("hidden", (12, 12)),
    "MultiHeadDotProductAttention_0/query/bias": ("vector", (12,)),
    "MultiHeadDotProductAttention_0/out/kernel": ("hidden", (12, 12)),
    "MultiHeadDotProductAttention_1/value/kernel": ("hidden", (12, 12)),
    "MultiHeadDotProductAttention_1/out/kernel": ("hidden", (12, 12)),
    "Conv_0/kernel": ("hidden", (36, 7)),
    "Conv_1/kernel": ("hidden", (18, 8)),
    "ConvTranspose_0/kernel": ("hidden", (32, 6)),
    "DenseGeneral_0/kernel": ("hidden", (24, 18)),
    "lm_head/kernel": ("head", (7, 11)),
}


def scanned():
    """Three layers in one array."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            return nn.Conv(4, (3,))(nn.Dense(4)(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            every = {"params": 0}
            layers = nn.scan(Layer, every, split_rngs={"params": True}, length=3)
            return layers(name="layers")(x, None)[0]

    return jax.eval_shape(Model().init, KEY, jnp.zeros((1, 5, 4)))["params"]


SCANNED = {
    "layers/MultiHeadDotProductAttention_0/query/kernel": ("hidden", (3, 4, 4)),
    "layers/MultiHeadDotProductAttention_0/out/kernel": ("hidden", (3, 4, 4)),
    "layers/Conv_0/kernel": ("hidden", (3, 12, 4)),
    "layers/Dense_0/kernel": ("hidden", (3, 4, 4)),
    "layers/Dense_0/bias": ("vector", (12,)),
}


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs)])
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False)
            self.embed = nnx.Embed(11, 4, rngs=rngs)

    return nnx.state(Model(nnx.Rngs(0)), nnx.Param)


NNX = {
    "layers/0/kernel/value": ("hidden", (4, 6)),
    "conv/kernel/value": ("hidden", (27, 8)),
    "attention/query/kernel/value": ("hidden", (4, 4)),
    "attention/out/kernel/value": ("hidden", (4, 4)),
    "embed/embedding/value": ("embedding", (11, 4)),
}


def haiku():
    def forward(tokens, image):
        x = hk.Embed(11, 6)(tokens)
        x = hk.MultiHeadAttention(2, 3, w_init=hk.initializers.Constant(0.0))(x, x, x)
        return hk.Linear(4)(x), hk.Conv2D(8, (3, 2))(image)

    model = hk.transform(forward)
    return jax.eval_shape(
        model.init, KEY, jnp.zeros((1, 5), jnp.int32), jnp.zeros((1, 4, 4, 3))
    )


HAIKU = {
    "embed/embeddings": ("embedding", (11, 6)),
    "multi_head_attention/query/w": ("hidden", (6, 6)),
    "conv2_d/w": ("hidden", (18, 8)),
    "linear/w": ("hidden", (6, 4)),
}


def equinox():
    eqx = pytest.importorskip("equinox")

    def model(key):
        modules = {
            "linear": eqx.nn.Linear(4, 6, key=key),
            "conv": eqx.nn.Conv2d(3, 8, (3, 2), key=key),
            "grey": eqx.nn.Conv2d(1, 8, 3, key=key),
            "embedding": eqx.nn.Embedding(11, 4, key=key),
            "attention": eqx.nn.MultiheadAttention(2, 4, key=key),
        }
        return eqx.filter(modules, eqx.is_array)

    return jax.eval_shape(model, KEY)


EQUINOX = {
    "linear/weight": ("hidden", (4, 6)),
    "conv/weight": ("hidden", (18, 8)),
    "conv/bias": ("vector", (8,)),
    "grey/weight": ("hidden", (9, 8)),
    "embedding/weight": ("embedding", (11, 4)),
    "attention/query_proj/weight": ("hidden", (4, 4)),
}
PLAIN = {
    "w": (4, 5),
    "conv/w": (3, 3, 4, 5),
    "attention/qkv/kernel": (6, 3, 2, 4),
    "lora/a": (4, 2),
    "lora/b": (2, 4),
    "wte": (11, 4),
    "patch_embed/kernel": (4, 4, 3, 8),
    "experts/up": (5, 4, 8),
    "token": (1, 1, 8),
    "s": (),
}
PLAIN_SEEN = {
    "w": ("hidden", (4, 5)),
    "conv/w": ("hidden", (36, 5)),
    "attention/qkv/kernel": ("hidden", (6, 24)),
    "lora/a": ("hidden", (4, 2)),
    "lora/b": ("hidden", (2, 4)),
    "wte": ("embedding", (11, 4)),
    "patch_embed/kernel": ("hidden", (48, 8)),
    "experts/up": ("hidden", (5, 4, 8)),
    "token": ("vector", (8,)),
    "s": ("vector", ()),
}


def plain():
    tree = {}
    for path, shape in PLAIN.items():
        *modules, last = path.split("/")
        inner = functools.reduce(lambda t, k: t.setdefault(k, {}), modules, tree)
        inner[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


MODELS = {
    "linen": (linen, LINEN),
    "scanned": (scanned, SCANNED),
    "nnx": (nnx_model, NNX),
    "haiku": (haiku, HAIKU),
    "equinox": (equinox, EQUINOX),
    "plain": (plain, PLAIN_SEEN),
}


def seen(params, axes="inferred"):
    """What `describe_axes` prints: path -> role and shape."""
    lines = l2o.describe_axes(params, axes).splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    return {
        path: (role, tuple(int(n) for n in shape.split(" x ") if n != "scalar"))
        for path, _, role, shape, *_ in rows
    }


@pytest.mark.parametrize("name", MODELS)
def test_axes_of_a_model_are_inferred(name):
    model, expected = MODELS[name]
    found = seen(model())
    assert expected.items() <= found.items(), {
        k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v
    }


def test_the_matrix_of_a_layer_is_the_one_that_it_multiplies_by():
    """A convolution is the product of patches by what is seen."""
    conv = nn.Conv(5, (3, 3), padding="VALID", use_bias=False)
    x = jax.random.normal(KEY, (1, 3, 3, 2))
    params = conv.init(KEY, x)["params"]
    axes = l2o.axes_of({"conv": params})["conv"]["kernel"]
    product = x.reshape(1, -1) @ view(params["kernel"], axes)
    np.testing.assert_allclose(
        conv.apply({"params": params}, x).ravel(), product.ravel(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "axes",
    [
        Axes("hidden", (0, 1, 2), (3,)),
        Axes("hidden", (1, 2, 3), (0,)),
        Axes("hidden", (3,), (1,), (2, 0)),
        Axes("head", (0,), (1, 2, 3)),
        Axes("vector"),
    ],
)
def test_what_is_seen_goes_back(axes):
    x = jnp.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    there = view(x, axes)
    assert there.shape == view_shape(x.shape, axes)
    np.testing.assert_array_equal(unview(there, x, axes), x)


SHAPES = {
    "conv": {"kernel": (2, 3, 4, 5), "bias": (5,)},
    "linear": {"weight": (4, 6)},
    "embed": {"embedding": (7, 4)},
}
BY_HAND = {
    "conv": {"kernel": lambda x: x.reshape(24, 5), "bias": lambda x: x},
    "linear": {"weight": lambda x: x.T},
    "embed": {"embedding": lambda x: x},
}


def tree(seed):
    is_shape = lambda x: isinstance(x, tuple)
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=is_shape)
    found = normal(seed, dict(enumerate(leaves)))
    return structure.unflatten([jnp.asarray(found[i]) for i in range(len(leaves))])


def run(optimizer, params, grads, by_hand=None):
    tx = optimizer.bind(optimizer.init_theta(KEY), num_steps=10)
    change = lambda x: jax.tree.map(lambda f, a: f(a), by_hand, x) if by_hand else x
    params, update = change(params), jax.jit(tx.update)
    state = tx.init(params)
    for g in grads:
        updates, state = update(change(g), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_a_rule_sees_matrices_as_if_they_had_been_reshaped_by_hand():
    grads = [tree(seed) for seed in (1, 2, 3)]
    found = run(l2o.learnable_muon(embeddings="matrix"), tree(0), grads)
    expected = run(l2o.learnable_muon(axes="last_two"), tree(0), grads, BY_HAND)
    plain = run(l2o.learnable_muon(axes="last_two"), tree(0), grads)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, plain)
    by_hand = jax.tree.map(lambda f, x: f(x), BY_HAND, found)
    for (path, a), b, c in zip(
        jax.tree_util.tree_leaves_with_path(by_hand),
        jax.tree.leaves(expected),
        jax.tree.leaves(jax.tree.map(lambda f, x: f(x), BY_HAND, plain)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=str(path))
        if "kernel" in str(path):
            assert jnp.max(jnp.abs(a - c)) > 1e-3, path  # not what it was


@pytest.mark.parametrize("axis", range(4))
def test_a_convolution_on_a_mesh_of_explicit_axes(axis):
    """JAX refuses some reshapes there, even on one device."""
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((1,), ("d",), axis_types=explicit)
    spec = jax.P(*("d" if i == axis else None for i in range(4)))
    with jax.set_mesh(mesh):
        where = jax.NamedSharding(mesh, spec)
        kernel = jax.device_put(tree(0)["conv"]["kernel"], where)
        params = {"conv": {"kernel": kernel}}
        optimizer = l2o.learnable_muon()
        tx = optimizer.bind(optimizer.init_theta(KEY), num_steps=10)
        state = jax.jit(tx.init)(params)
        updates, _ = jax.jit(tx.update)(params, state, params)
        assert updates["conv"]["kernel"].sharding.spec == spec


def test_embeddings_move_as_vectors():
    grads = [tree(seed) for seed in (1, 2, 3)]
    flat = {**BY_HAND, "embed": {"embedding": jnp.ravel}}
    found = run(l2o.learnable_muon(), tree(0), grads)
    expected = run(l2o.learnable_muon(axes="last_two"), tree(0), grads, flat)
    np.testing.assert_allclose(
        jnp.ravel(found["embed"]["embedding"]),
        expected["embed"]["embedding"],
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_users_word_counts():
    params = {"a": jnp.ones((2, 3, 4)), "w": jnp.ones((3, 4))}
    mine = Axes("hidden", (0,), (1, 2))

    def told(path, shape):
        return mine if path == "a" else None

    assert seen(params) == {"a": ("hidden", (2, 3, 4)), "w": ("hidden", (3, 4))}
    assert seen(params, told)["a"] == ("hidden", (2, 12))
    every = {"a": mine, "w": Axes("head", (1,), (0,))}
    assert seen(params, every) == {"a": ("hidden", (2, 12)), "w": ("head", (4, 3))}
    tx = l2o.load("adaptive_muon", num_steps=10, axes=told)
    assert tx.init(params).momentum["a"].shape == (2, 12)


@pytest.mark.parametrize(
    "axes, match",
    [
        ("last", "'inferred' or 'last_two'"),
        ({"w": "rows"}, "tree of `Axes`"),
        ({"v": Axes("vector")}, "a tree like the parameters"),
        ({"w": Axes("hidden", (0,), (0,))}, "axes of w: every axis of .2, 3. must"),
        ({"w": Axes("hidden", (0, 1))}, "at least one of inputs and one of outputs"),
        ({"w": Axes("wide", (0,), (1,))}, "unknown role of w 'wide'"),
        (lambda path, shape: "rows", "axes of w: expected an `Axes`, got 'rows'"),
    ],
)
def test_bad_axes_are_named(axes, match):
    with pytest.raises(ValueError, match=match):
        l2o.axes_of({"w": jnp.ones((2, 3))}, axes)


def test_what_was_saved_before_there_were_axes_goes_on_as_it_was(tmp_path):
    optimizer, _ = l2o.load_unbound("muon_fast")
    told = {k: optimizer.arguments[k] for k in ("axes", "embeddings")}
    assert told == {"axes": "last_two", "embeddings": "matrix"}
    assert l2o.learnable_muon().arguments["axes"] == "inferred"
    folder = l2o.save(tmp_path / "mine", l2o.learnable_muon(), _theta())
    assert l2o.load_unbound(folder)[0].arguments["axes"] == "inferred"
    own = l2o.learnable_muon(axes=lambda path, shape: None)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        l2o.save(tmp_path / "own", own, _theta())


def _theta():
    return l2o.learnable_muon().init_theta(KEY)
