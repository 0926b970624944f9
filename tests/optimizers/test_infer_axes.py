"""Which axes are inferred of models of flax, haiku, equinox and others."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from axes_seen import seen
from flax import nnx

from l2o import infer_axes
from l2o.tasks.models import make_model

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


def linen_more():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, image):
            x = nn.DenseGeneral((3, 2, 5), use_bias=False, name="qkv")(x)
            same = nn.ConvTranspose(7, (2, 3), transpose_kernel=True)(image)
            deep = nn.Conv(3, (3, 3), feature_group_count=3, name="depthwise")(image)
            grey = nn.Conv(6, (3, 3))(image[..., :1])
            return x, same, deep, grey

    x, image = jnp.zeros((1, 5, 4)), jnp.zeros((1, 4, 4, 3))
    return jax.eval_shape(Model().init, KEY, x, image)["params"]


LINEN_MORE = {
    "qkv/kernel": ("hidden", (4, 30)),
    "ConvTranspose_0/kernel": ("hidden", (18, 7)),  # 2 x 3 x 7 x 3
    "depthwise/kernel": ("hidden", (9, 3)),
    "Conv_0/kernel": ("hidden", (9, 6)),
}


def nnx_more():
    """Stacked by `vmap`, as for a scan, with and without a telling name; LoRA."""

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False)
            self.dense = nnx.Linear(4, 6, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs):
            stacked = nnx.vmap(Block, in_axes=0, out_axes=0)
            self.layers = stacked(nnx.Rngs(0).split(3))
            self.middle = stacked(nnx.Rngs(1).split(3))
            self.lora = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs)

    def model():
        return nnx.state(Model(nnx.Rngs(0)), (nnx.Param, nnx.LoRAParam))

    return nnx.eval_shape(model)


NNX_MORE = {
    "layers/attention/query/kernel/value": ("hidden", (3, 4, 4)),
    "layers/attention/out/kernel/value": ("hidden", (3, 4, 4)),
    "layers/dense/kernel/value": ("hidden", (3, 4, 6)),
    "layers/norm/scale/value": ("vector", (12,)),
    "middle/attention/query/kernel/value": ("hidden", (3, 4, 4)),
    "middle/dense/kernel/value": ("hidden", (3, 4, 6)),
    "lora/kernel/value": ("hidden", (4, 6)),
    "lora/lora/lora_a/value": ("hidden", (4, 2)),
    "lora/lora/lora_b/value": ("hidden", (2, 6)),
}


def haiku_more():
    def forward(x, image):
        stack = hk.experimental.layer_stack(3)(lambda x: hk.Linear(4)(x))
        return stack(x), hk.DepthwiseConv2D(1, 3)(image)

    model = hk.transform(forward)
    return jax.eval_shape(model.init, KEY, jnp.zeros((1, 4)), jnp.zeros((1, 4, 4, 3)))


HAIKU_MORE = {
    "__layer_stack_no_per_layer/linear/w": ("hidden", (3, 4, 4)),
    "depthwise_conv2_d/w": ("hidden", (9, 3)),
}

# Sizes of layers, heads, of a head, the model, the MLP, experts, vocabulary.
L, N, D, M, F, E, V = 3, 2, 5, 8, 16, 4, 11
MAXTEXT = {
    "token_embedder/embedding": (V, M),
    "decoder/layers/self_attention/query/kernel": (M, L, N, D),
    "decoder/layers/self_attention/out/kernel": (N, L, D, M),
    "decoder/layers/mlp/wi_0/kernel": (M, L, F),
    "decoder/layers/mlp/wo/kernel": (F, L, M),
    "decoder/layers/moe/gate/kernel": (M, L, E),
    "decoder/layers/moe/wi_0": (E, L, M, F),
    "decoder/layers/pre_norm/scale": (M, L),
    "decoder/logits_dense/kernel": (M, V),
}
MAXTEXT_SEEN = {
    "token_embedder/embedding": ("embedding", (V, M)),
    "decoder/layers/self_attention/query/kernel": ("hidden", (L, M, N * D)),
    "decoder/layers/self_attention/out/kernel": ("hidden", (L, N * D, M)),
    "decoder/layers/mlp/wi_0/kernel": ("hidden", (L, M, F)),
    "decoder/layers/mlp/wo/kernel": ("hidden", (L, F, M)),
    "decoder/layers/moe/gate/kernel": ("hidden", (L, M, E)),
    "decoder/layers/moe/wi_0": ("hidden", (L, E, M, F)),
    "decoder/layers/pre_norm/scale": ("vector", (L * M,)),
    "decoder/logits_dense/kernel": ("head", (M, V)),
}
NAMED = {
    # Gemma's einsums.
    "attn/q_einsum/w": (N, M, D),
    "attn/kv_einsum/w": (2, N, M, D),
    "attn/attn_vec_einsum/w": (N, D, M),
    "embedder/input_embedding": (V, M),
    # LoRA of kernels of attention.
    "query/lora_a": (M, 2),
    "query/lora_b": (2, N, D),
    "out/lora_a": (N, D, 2),
    # Experts, of which one layer has a name that means something else in attention.
    "moe/experts/out/kernel": (E, F, M),
    "moe/experts/up/weight": (E, F, M),
    "moe/router/kernel": (M, E),
    # Of PyTorch: a table is not transposed.
    "word_embeddings/weight": (V, M),
    "patch_embed/proj/weight": (M, 3, 2, 2),
    # Layers in a dictionary are no stack.
    "blocks/attention/query/kernel": (M, N, D),
    "blocks/mlp/kernel": (M, F),
}
NAMED_SEEN = {
    "attn/q_einsum/w": ("hidden", (M, N * D)),
    "attn/kv_einsum/w": ("hidden", (M, 2 * N * D)),
    "attn/attn_vec_einsum/w": ("hidden", (N * D, M)),
    "embedder/input_embedding": ("embedding", (V, M)),
    "query/lora_a": ("hidden", (M, 2)),
    "query/lora_b": ("hidden", (2, N * D)),
    "out/lora_a": ("hidden", (N * D, 2)),
    "moe/experts/out/kernel": ("hidden", (E, F, M)),
    "moe/experts/up/weight": ("hidden", (E, M, F)),
    "moe/router/kernel": ("hidden", (M, E)),
    "word_embeddings/weight": ("embedding", (V, M)),
    "patch_embed/proj/weight": ("hidden", (12, M)),
    "blocks/attention/query/kernel": ("hidden", (M, N * D)),
    "blocks/mlp/kernel": ("hidden", (M, F)),
}


def tied():
    """A table that is the last layer, too, stays a table."""
    model = make_model("decoder", V, {"width": 8, "stacked": True, "tied": True})
    return jax.eval_shape(model(nn.relu).init, KEY, jnp.zeros((1, 4), jnp.int32))[0]


TIED = {
    "embed/embedding": ("embedding", (V, 8)),
    "layers/query/kernel": ("hidden", (2, 8, 8)),
    "layers/out/kernel": ("hidden", (2, 8, 8)),
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


def nested(named):
    tree = {}
    for path, shape in named.items():
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
    "linen, more": (linen_more, LINEN_MORE),
    "nnx, more": (nnx_more, NNX_MORE),
    "haiku, more": (haiku_more, HAIKU_MORE),
    "tied": (tied, TIED),
    "plain": (lambda: nested(PLAIN), PLAIN_SEEN),
    "maxtext": (lambda: nested(MAXTEXT), MAXTEXT_SEEN),
    "names": (lambda: nested(NAMED), NAMED_SEEN),
}


@pytest.mark.parametrize("name", MODELS)
def test_axes_of_a_model_are_inferred(name):
    model, expected = MODELS[name]
    found = seen(model())
    assert expected.items() <= found.items(), {
        k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v
    }


def test_a_kernel_that_is_itself_called_a_convolution():
    assert infer_axes("conv1", (3, 3, 8, 16)).inputs == (0, 1, 2)
    assert infer_axes("mixing1", (3, 3, 8, 16)).batch == (0, 1)
