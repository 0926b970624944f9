"""What rules do with the axes of tensors, which are inferred or told."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from axes_seen import seen
from helpers import normal

import l2o
from l2o import Axes
from l2o._axes import view_shape
from l2o._views import unview, view
from l2o.rule import warmup_cosine

KEY = jax.random.key(0)


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
    found = run(l2o.learnable_muon(embeddings="vector"), tree(0), grads)
    expected = run(l2o.learnable_muon(axes="last_two"), tree(0), grads, flat)
    np.testing.assert_allclose(
        jnp.ravel(found["embed"]["embedding"]),
        expected["embed"]["embedding"],
        rtol=1e-4,
        atol=1e-6,
    )


STEPS, ROWS, WIDTH = 60, 5, 4


def _sparse_gradients():
    """Row 0 at every step, row 1 at every 50th, the others never."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(STEPS, ROWS, WIDTH))
    grads[:, 2:] = 0.0
    grads[np.arange(STEPS) % 50 != 49, 1] = 0.0
    return grads.astype(np.float32)


def _steps_of_table(start, **arguments):
    """The tables after every step, without decay and factors."""
    optimizer = l2o.learnable_muon(weight_decay=0.0, factor_bound=1.0, **arguments)
    tx = optimizer.bind(optimizer.init_theta(KEY), num_steps=STEPS)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update({"embed": {"embedding": g}}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["embed"]["embedding"]

    params = {"embed": {"embedding": jnp.asarray(start)}}
    grads = jnp.asarray(_sparse_gradients())
    return np.asarray(jax.lax.scan(step, (params, tx.init(params)), grads)[1])


# A table whose scale is kept to that of the start, one that is let grow, one of zeros.
@pytest.mark.parametrize("start", [1.0, 0.1, 0.0])
def test_a_table_moves_as_a_slow_form_does(start):
    p = start * np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype(np.float32)
    found = _steps_of_table(p, state_bytes=10)
    limit = max(np.sqrt(np.mean(p**2)), WIDTH**-0.5)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(_sparse_gradients(), 1):
        b2 = max(0.95, 1 - 1 / t)
        m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
        moved = np.abs(m) > 1e-8 * np.sqrt(v)
        unit = lambda x, moved=moved: (
            np.where(moved, x, 0.0) / np.sqrt(np.mean(x[moved] ** 2) + 1e-9)
        )
        f = (v + 1e-8) ** -0.5
        # No matrix is beside it, so the typical scale is the table's own.
        scale = np.clip(np.sqrt(np.mean(p**2)), 1e-3, limit)
        rate = 0.03 * float(warmup_cosine(t - 1, float(STEPS)))
        p = p - rate * scale * unit(unit(m * f) + unit(g * f))
        np.testing.assert_allclose(found[t - 1], p, rtol=1e-4, atol=1e-6)
    assert np.all(found[-1][2:] == found[0][2:])


def test_a_row_that_is_seldom_seen_takes_longer_steps():
    start = np.ones((ROWS, WIDTH), np.float32)
    longer = {}
    for embeddings in ("vector", "adagrad"):
        tables = _steps_of_table(start, embeddings=embeddings)
        seldom, always = np.abs(tables[49] - tables[48]).mean(1)[[1, 0]]
        longer[embeddings] = seldom / always
    # 1 / sqrt(v) is sqrt(50) times that of the other row, and sqrt(20).
    assert longer["adagrad"] > 1.3 * longer["vector"]


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
    assert tx.init(params).momentum["a"].shape == (2, 3, 4)
    assert "2 x 12" in l2o.describe_axes(params, told)


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
    optimizer, _ = l2o.load_unbound("muon_mixed")
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


def _torch(params):
    """The same model in PyTorch's layout."""
    return {
        "conv": {
            "weight": jnp.transpose(params["conv"]["kernel"], (3, 2, 0, 1)),
            "bias": params["conv"]["bias"],
        },
        "linear": {"weight": params["linear"]["kernel"].T},
        "embed": {"weight": params["embed"]["embedding"]},
    }


# The order of the two factors decides ties; steps agree but for it, and rows of a
# convolution come in another order, which no rule may see.
LAYOUTS = {
    "learnable_muon": l2o.learnable_muon(),
    "learnable_muon, vector": l2o.learnable_muon(embeddings="vector"),
    "learnable_muon, matrix": l2o.learnable_muon(embeddings="matrix"),
    "celo2_base": l2o.with_axes(l2o.celo2_base(orthogonalize=True)),
    "small_fc": l2o.with_axes(l2o.small_fc()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_pytorchs_layout_gets_the_transposed_updates(name):
    def flax_tree(seed):
        x = tree(seed)
        return {**x, "linear": {"kernel": x["linear"]["weight"]}}

    grads = [flax_tree(seed) for seed in (1, 2, 3)]
    found = run(LAYOUTS[name], _torch(flax_tree(0)), [_torch(g) for g in grads])
    expected = _torch(run(LAYOUTS[name], flax_tree(0), grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_a_wrapped_rule_sees_what_it_would_see_by_hand():
    rule = l2o.celo2_base(orthogonalize=True)
    grads = [tree(seed) for seed in (1, 2, 3)]
    found = run(l2o.with_axes(rule), tree(0), grads)
    expected = run(rule, tree(0), grads, BY_HAND)
    by_hand = jax.tree.map(lambda f, x: f(x), BY_HAND, found)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        by_hand,
        expected,
    )
    plain = run(rule, tree(0), grads)["conv"]["kernel"]
    assert jnp.max(jnp.abs(plain - found["conv"]["kernel"])) > 1e-4


def test_what_infers_axes_is_not_wrapped_again():
    with pytest.raises(ValueError, match="learnable_muon sees matrices already"):
        l2o.with_axes(l2o.learnable_muon())
    with pytest.raises(ValueError, match="clip_gradients sees matrices already"):
        l2o.with_axes(l2o.clip_gradients(l2o.with_axes(l2o.small_fc())))
    with pytest.raises(ValueError, match="with_axes needs axes to be 'inferred'"):
        l2o.with_axes(l2o.small_fc(), "rows")
    l2o.with_axes(l2o.learnable_muon(axes="last_two"))


def test_multipliers_of_width_know_layouts():
    """Ten times as wide: the fan-in of every hidden matrix grew so."""

    def model(width):
        heads = width // 4
        shapes = {
            "query": {"kernel": (width, heads, 4)},
            "out": {"kernel": (heads, 4, width)},
            "mlp": {"weight": (4 * width, width)},
            "narrow": {"weight": (width, 7)},
            "embed": {"embedding": (11, width)},
            "norm": {"scale": (width,)},
        }
        is_shape = lambda x: isinstance(x, tuple)
        shape = lambda s: jax.ShapeDtypeStruct(s, jnp.float32)
        return jax.tree.map(shape, shapes, is_leaf=is_shape)

    found = l2o.mup_multipliers(model(80), model(8), axes="inferred")
    assert {k: next(iter(v.values())) for k, v in found.items()} == {
        "query": 0.1,
        "out": 0.1,
        "mlp": 0.1,
        "narrow": 1.0,
        "embed": 1.0,
        "norm": 1.0,
    }
    wide = {"weight": jnp.ones((64, 32))}
    base = {"weight": jnp.ones((16, 16))}
    assert l2o.mup_multipliers(wide, base) == {"weight": 0.25}  # as published
    assert l2o.mup_multipliers(wide, base, axes="inferred") == {"weight": 0.5}
