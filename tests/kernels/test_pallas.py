"""The update in Pallas against the rule in plain JAX; its kernels are interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, few, never_skipping, normal

import l2o
from l2o.kernels import _pallas, _pallas_tiles

MATRIX = {"matrix": (21, 150)}  # several blocks, the last ones ragged
CONV = {"conv": (2, 2, 10, 9)}  # four matrices
NARROW = {"narrow": (2, 130, 9)}  # two, seen with their columns as rows
VECTOR = {"vector": (1100,)}  # several blocks
SCALAR = {"scalar": ()}
CASES = {
    "small_fc": (l2o.small_fc(), CONV | SCALAR),
    # A network for each tensor, and steps that depend on the others'.
    "velo": (l2o.velo(lstm_hidden_size=4, param_inits=2), MATRIX | VECTOR),
    "celo2_base": (l2o.celo2_base(weight_decay=0.1), NARROW | VECTOR),
}
# Beyond what the published rules have.
OTHERS = {
    "wide": l2o.mulo(
        hidden_size=9,
        momentum_decays=(0.9,),
        adafactor_decays=(0.5, 0.9),
        published=("fused_row_mean",),
    ),
    "orthogonal": l2o.celo2_base(orthogonalize=True),
}
SMALL = {"matrix": (9, 10)}
UPDATES = 3
# Compiling takes most of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def theta_of(optimizer):
    """Meta-parameters at random, decays near the initial ones."""
    rng = np.random.default_rng(2)

    def draw(path, like):
        size = 0.01 if "decays" in jax.tree_util.keystr(path) else 0.3
        return np.float32(size * rng.standard_normal(like.shape))

    like = jax.eval_shape(optimizer.init_theta, KEY)
    return jax.tree_util.tree_map_with_path(draw, like)


def updates_in_a_row(optimizer, backend, theta, params, grads):
    """All updates and the last state; the gradients' first axis is of time."""
    tx = optimizer.bind(theta, num_steps=100)

    def step(carry, grad):
        params, state = carry
        with l2o.backend(backend):
            updates, state = tx.update(grad, state, params, value=0.5)
        return (jax.tree.map(jnp.add, params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), grads)
    return updates, state


@functools.cache
def particles(name, backend):
    """Several updates with each of two thetas."""
    optimizer, shapes = CASES[name]
    optimizer = never_skipping(optimizer)
    theta = theta_of(optimizer)
    thetas = jax.tree.map(lambda x: np.stack([x, 0.9 * x]), theta)
    run = functools.partial(updates_in_a_row, optimizer, backend)
    mapped = jit(jax.vmap(run, in_axes=(0, None, None)))
    return lambda grads: mapped(thetas, normal(0, shapes), grads)


def gradients(shapes):
    grads = normal(1, {name: (UPDATES, *shape) for name, shape in shapes.items()})
    # Many of the first are beyond the bound of 1000.
    size = np.float32([1000.0, 1.0, 1.0])
    return jax.tree.map(lambda x: (x.T * size).T, grads)


def assert_agree(actual, expected, tolerance=2e-6):
    """Up to so much of the largest entry; not finite in the same places."""

    def check(path, x, y):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y), str(path))
        finite = y[np.isfinite(y)]
        size = max(abs(finite).max(initial=0.0), 1e-30)
        error = abs(x[np.isfinite(x)] - finite).max(initial=0.0) / size
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error}"

    jax.tree_util.tree_map_with_path(check, actual, expected)


def assert_backends_agree(name, grads):
    actual, expected = (particles(name, b)(grads) for b in ("pallas", "xla"))
    # Networks that are drawn for each tensor may have outputs near zero.
    assert_agree(actual, expected, 2e-5 if name == "velo" else 2e-6)
    return actual


@pytest.mark.parametrize(
    "name",
    few(CASES, ["velo"]),
)
def test_particles_in_a_loop(name):
    updates, _ = assert_backends_agree(name, gradients(CASES[name][1]))
    for x in jax.tree.leaves(updates):
        assert np.any(x[0] != x[1])


@pytest.mark.parametrize("name", few(CASES, ["small_fc"]))
def test_zero_gradients(name):
    zeros = jax.tree.map(jnp.zeros_like, gradients(CASES[name][1]))
    updates, _ = assert_backends_agree(name, zeros)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", CASES)
def test_nan_counts_as_zero(name):
    grads = gradients(CASES[name][1])
    first = min(grads)
    bad, clean = (
        {**grads, first: grads[first].ravel().at[-1].set(x).reshape(grads[first].shape)}
        for x in (jnp.nan, 0.0)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        assert_backends_agree(name, bad),
        particles(name, "pallas")(clean),
    )


@pytest.mark.parametrize("name", OTHERS)
def test_other_rules(name):
    optimizer = OTHERS[name]
    given = theta_of(optimizer), normal(0, SMALL), gradients(SMALL)
    actual, expected = (
        jit(functools.partial(updates_in_a_row, optimizer, backend))(*given)
        for backend in ("pallas", "xla")
    )
    assert_agree(actual, expected, 1e-5)


def test_derivatives_are_those_of_the_rule():
    optimizer = l2o.small_fc(momentum_decays=(0.9,), adafactor_decays=(0.9,))
    shapes = {"matrix": (3, 4)}

    def loss(theta, backend):
        grads = jax.tree.map(lambda x: x[:1], gradients(shapes))
        updates, _ = updates_in_a_row(
            optimizer, backend, theta, normal(0, shapes), grads
        )
        return 1e6 * jnp.sum(updates["matrix"] ** 2)

    derivative = jit(jax.grad(loss), static_argnums=1)
    actual, expected = (
        derivative(theta_of(optimizer), backend) for backend in ("pallas", "xla")
    )
    assert_agree(actual, expected)
    assert np.any(actual["nn"]["w0"] != 0)


def one_update(optimizer, shapes, backend):
    """A function and its arguments."""
    theta, params = theta_of(optimizer), normal(0, shapes)

    def update(theta, grads, state, params):
        tx = optimizer.bind(theta, num_steps=100)
        with l2o.backend(backend):
            return tx.update(grads, state, params, value=0.5)

    state = optimizer.bind(theta, num_steps=100).init(params)
    return update, (theta, params, state, params)


def kernels(optimizer, shapes, backend):
    """How many a traced update has."""
    update, arguments = one_update(optimizer, shapes, backend)
    return str(jax.make_jaxpr(update)(*arguments)).count("pallas_call[")


def test_two_kernels_per_tensor():
    optimizer, shapes = CASES["celo2_base"]
    assert kernels(optimizer, shapes, "pallas") == 2 * len(shapes)
    assert kernels(optimizer, shapes, None) == 0


@pytest.mark.parametrize(
    ("optimizer", "shape"),
    [
        (l2o.celo2_base(activation="tanh"), (9, 10)),
        (l2o.celo2_base(bias_correction=True), (9, 10)),
        (l2o.celo2_base(precondition_output=True), (9, 10)),
        (l2o.celo2_base(aggregate_mag=True), (9, 10)),
        (l2o.celo2_base(normalize_input=False), (9, 10)),
        (l2o.celo2_base(param_scale_mult=True), (9, 10)),
        (l2o.celo2_base(hidden_layers=1), (9, 10)),
        (l2o.celo2_base(features=("g", "m")), (9, 10)),
        (l2o.celo(lstm_hidden_size=4, param_scale_bound=0.1), (9, 10)),
        # Factored over axes that are not the last, or are not neighbours.
        (l2o.small_fc(), (9, 10, 2)),
        (l2o.small_fc(), (9, 2, 10)),
        # Factored over other axes than normalised over.
        (l2o.celo2_base(), (9, 10, 1)),
    ],
)
def test_the_rest_is_left_to_xla(optimizer, shape):
    assert kernels(optimizer, {"x": shape}, "pallas") == 0


def on_a_device(update):
    """Of a mesh, between whose devices gradients differ and parameters do not."""

    def updates(theta, grads, *rest):
        grads = jax.lax.pcast(grads, "x", to="varying")
        updates, _ = update(theta, grads, *rest)
        for x in jax.tree.leaves(updates):
            assert jax.typeof(x).manual_axis_type.varying == {"x"}
        return updates

    mesh = jax.make_mesh((1,), ("x",))
    return jax.shard_map(updates, mesh=mesh, in_specs=jax.P(), out_specs=jax.P("x"))


@pytest.mark.parametrize("inside", few(["jit", "vmap", "shard_map"], ["jit", "vmap"]))
@pytest.mark.parametrize(
    ("platform", "name", "call"),
    [("tpu", "tpu", "tpu_custom_call"), ("cuda", "gpu", "__gpu$xla.gpu.triton")],
)
def test_kernels_lower(monkeypatch, platform, name, call, inside):
    if platform == "cuda":
        pytest.importorskip("jax.experimental.pallas.triton", exc_type=ImportError)
    monkeypatch.setattr(_pallas, "_platform", lambda: name)
    optimizer, shapes = CASES["celo2_base"][0], MATRIX | NARROW | VECTOR
    update, arguments = one_update(optimizer, shapes, "pallas")
    if inside == "vmap":
        arguments = jax.tree.map(lambda x: np.stack([x, x]), arguments)
        update = jax.vmap(update)
    if inside == "shard_map":
        update = on_a_device(update)
    lowered = jax.jit(update).trace(*arguments).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count(call) == 2 * len(shapes)


def test_a_gpu_stays_within_tensors(monkeypatch):
    # Its kernels check no bounds, and blocks are larger than these tensors.
    triton = pytest.importorskip("jax.experimental.pallas.triton", exc_type=ImportError)
    masked = []

    def recorded(access):
        def call(*arguments, mask, **settings):
            masked.append(mask is not None)
            return access(*arguments, mask=mask, **settings)

        return call

    def interpreted(call, *arguments, in_specs, **settings):
        settings = {**settings, "compiler_params": None, "interpret": True}
        run = call(*arguments, in_specs=in_specs, **settings)

        def checked(scalars, views, sides):
            for side, spec in zip(sides, in_specs[2], strict=True):
                assert side.shape[1] % spec.block_shape[1] == 0
                assert side.shape[2] % spec.block_shape[2] == 0
            return run(scalars, views, sides)

        return checked

    monkeypatch.setattr(_pallas, "_platform", lambda: "gpu")
    for name in ("load", "store"):
        monkeypatch.setattr(triton, name, recorded(getattr(triton, name)))
    call = functools.partial(interpreted, _pallas_tiles.pl.pallas_call)
    monkeypatch.setattr(_pallas_tiles.pl, "pallas_call", call)
    optimizer = CASES["small_fc"][0]
    actual, expected = (
        jit(update)(*arguments)
        for update, arguments in (
            one_update(optimizer, MATRIX, backend) for backend in ("pallas", "xla")
        )
    )
    assert_agree(actual, expected)
    # The gradient, the parameter and four moments twice; four moments and the update.
    assert masked == [True] * (2 * 6 + 5)


def test_it_is_used_only_if_asked_for(monkeypatch):
    monkeypatch.delenv("L2O_BACKEND", raising=False)
    assert l2o.chosen_backend() != "pallas"
    for platform in ("gpu", "tpu"):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda platform=platform: platform)
            assert l2o.chosen_backend() == "xla"
            with l2o.backend("pallas"):
                assert l2o.chosen_backend() == "pallas"
    monkeypatch.setenv("L2O_BACKEND", "pallas")
    assert l2o.chosen_backend() == "pallas"
    with l2o.backend("xla"):
        assert l2o.chosen_backend() == "xla"


def test_unknown_backends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="known: native, pallas, xla"):
        l2o.backend("palas")
    monkeypatch.setenv("L2O_BACKEND", "palas")
    with pytest.raises(ValueError, match="unknown L2O_BACKEND 'palas'"):
        l2o.chosen_backend()
