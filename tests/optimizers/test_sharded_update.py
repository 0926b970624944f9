"""Parameters that are sharded over a mesh: nothing gathers them, the state follows."""

import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_optimizer import FACTORIES, WRAPPED
from helpers import cpu_devices, python_path
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import l2o

# A row or column of any tensor, not sharded, is smaller than any matrix's shard.
SHAPES = {
    "tall": (64, 48),
    "wide": (32, 128),
    "conv": (3, 3, 16, 32),
    "vector": (64,),
    "scalar": (),
}


# Mesh, and the axes that the first and the last divisible axis of a tensor lie along.
LAYOUTS = {
    "fsdp": ({"data": 8}, "data", None),
    "tp": ({"model": 8}, None, "model"),
    "2d": ({"data": 2, "model": 4}, "data", "model"),
}


STEPS = 3


# Fewer planes to compile; each decay's are made alike.
ONE_DECAY = {
    "momentum_decays": (0.9,),
    "rms_decays": (0.99,),
    "adafactor_decays": (0.95,),
}


OPTIMIZERS = {
    "small_fc": l2o.make("small_fc", **ONE_DECAY),
    "celo2_base": l2o.make("celo2_base", hidden_size=4, **ONE_DECAY),
    "velo": l2o.make("velo", lstm_hidden_size=8, param_inits=4, **ONE_DECAY),
    "learnable_muon": l2o.learnable_muon(),
}
# A product of a matrix with itself needs its rows together, where these are sharded.
GATHERS_ROWS = IN_BFLOAT16 = ("learnable_muon",)


EVERY = {**FACTORIES, **WRAPPED}


def layouts(name):
    """Those that are compiled: of one rule and the controls all, of others the last."""
    return LAYOUTS if name == "small_fc" or name in CONTROLS else ("2d",)


def _control(tx):
    return l2o.LearnedOptimizer(
        lambda key: {},
        lambda theta, *, num_steps=None: optax.with_extra_args_support(tx),
    )


def _sort(updates, params):
    del params
    return jax.tree.map(lambda x: jnp.sort(x, axis=None).reshape(x.shape), updates)


# What an optimizer must not do.
CONTROLS = {
    "gathers": _control(optax.stateless(_sort)),
    # Its zeros depend on nothing, so that jit does not shard them.
    "forgets": _control(optax.trace(0.9)),
}


def _shardings(layout, axis_type, make_mesh=jax.make_mesh):
    sizes, first, last = LAYOUTS[layout]
    types = (axis_type,) * len(sizes)
    mesh = make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)

    def sharding(shape):
        axes = [i for i, n in enumerate(shape) if n % 8 == 0]
        spec = [None] * len(shape)
        if axes and first:
            spec[axes[0]] = first
        if axes and last:
            spec[axes[-1]] = last
        return NamedSharding(mesh, P(*spec))

    return {name: sharding(shape) for name, shape in SHAPES.items()}


def _normal(seed):
    rng = np.random.default_rng(seed)
    return {k: np.float32(rng.standard_normal(shape)) for k, shape in SHAPES.items()}


def _train(optimizer, place):
    """Trains with placed arrays: all that can be observed of it."""

    @jax.jit
    def init(theta, params):
        return optimizer.bind(theta, num_steps=100).init(params)

    @jax.jit
    def update(theta, params, state, grads, loss):
        tx = optimizer.bind(theta, num_steps=100)
        updates, state = tx.update(grads, state, params, value=loss)
        return updates, optax.apply_updates(params, updates), state

    theta = optimizer.init_theta(jax.random.key(0))
    params = place(_normal(0))
    state = first_state = init(theta, params)
    grads = [place(_normal(1 + step)) for step in range(STEPS)]
    # Not constant: how a loss stands against its own average is rounding alone.
    losses = [jnp.float32(0.5 - 0.1 * step) for step in range(STEPS)]
    # Raises where the state does not keep the shardings that it starts with.
    update = update.lower(theta, params, state, grads[0], losses[0]).compile()
    for given in zip(grads, losses):
        updates, params, state = update(theta, params, state, *given)
    return {
        "tx": optimizer.bind(theta, num_steps=100),
        "text": update.as_text(),
        "first_state": first_state,
        "state": state,
        "updates": updates,
        "params": params,
    }


def _difference(actual, expected):
    """The largest over all arrays, each measured by its own largest entry."""

    def relative(x, y):
        difference = np.max(np.abs(np.float64(x) - np.float64(y)))
        return float(difference / max(np.max(np.abs(y)), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(relative, actual, expected)))


_COLLECTIVE = re.compile(
    r"^.*? = (.*?) (all-gather|all-to-all|collective-permute|collective-broadcast|"
    r"reduce-scatter|all-reduce)(?:-start)?\(",
    re.MULTILINE,
)


def largest_collective(text):
    """Elements on one device in the largest result of a program's collectives."""
    largest = 0
    for result, operation in _COLLECTIVE.findall(text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        sizes = [math.prod(map(int, filter(None, s.split(",")))) for s in shapes]
        # XLA joins all-reduces that have nothing to do with each other; the parts of an
        # all-to-all are parts of one array.
        joined = max if operation == "all-reduce" else sum
        largest = max(largest, joined(sizes))
    return largest


def _is_misplaced(x, like):
    # Rows and columns keep the axis they are reduced over, at size 1.
    spec = P(*(None if n == 1 else axis for n, axis in zip(x.shape, like.spec)))
    return not x.sharding.is_equivalent_to(NamedSharding(like.mesh, spec), x.ndim)


def _names(tree):
    """Where a tree of bools is True."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, leaf in leaves if leaf]


def _bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _bytes_per_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def _misplaced_at_first(optimizers):
    """name -> what of a first state, made under jit, is not where it belongs."""
    some = ("tall", "vector")
    shardings = {k: x for k, x in _shardings("2d", AxisType.Auto).items() if k in some}
    params = {
        k: jax.device_put(x, shardings[k]) for k, x in _normal(0).items() if k in some
    }
    key = jax.random.key(0)
    thetas = jax.jit(lambda: {k: x.init_theta(key) for k, x in optimizers.items()})()
    txs = {k: x.bind(thetas[k], num_steps=100) for k, x in optimizers.items()}
    # One program: compiling is what this costs.
    states = jax.jit(lambda p: {k: tx.init(p) for k, tx in txs.items()})(params)

    def misplaced(x, like, name):
        # Not of the parameter's shape is what belongs to a tensor as a whole.
        pairs = zip(x.shape, SHAPES[name], strict=False)
        return all(n in (1, m) for n, m in pairs) and _is_misplaced(x, like)

    return {
        name: _names(
            optax.tree.map_params(
                tx,
                misplaced,
                states[name],
                shardings,
                {name: name for name in some},
                transform_non_params=lambda _: False,
            )
        )
        for name, tx in txs.items()
    }


def _measure():
    """In a process with eight devices: what the tests assert on, as JSON."""
    first = _misplaced_at_first({**EVERY, "forgets": CONTROLS["forgets"]})
    report = {f"init-{name}": found for name, found in first.items()}
    for name, optimizer in (OPTIMIZERS | CONTROLS).items():
        whole = _train(optimizer, lambda tree: jax.tree.map(jnp.asarray, tree))
        for layout in layouts(name):
            shardings = _shardings(layout, AxisType.Auto)
            run = _train(optimizer, lambda tree, s=shardings: jax.device_put(tree, s))
            report[f"{name}-{layout}"] = {
                "difference": {
                    part: _difference(run[part], whole[part])
                    for part in ("updates", "params", "state")
                    if jax.tree.leaves(run[part])
                },
                "largest_collective": largest_collective(run["text"]),
                "smallest_shard": min(
                    x.addressable_shards[0].data.size
                    for x in run["params"].values()
                    if x.ndim > 1
                ),
                "misplaced_updates": _names(
                    jax.tree.map(_is_misplaced, run["updates"], shardings)
                ),
                "misplaced": {
                    part: _names(
                        optax.tree.map_params(
                            run["tx"],
                            _is_misplaced,
                            run[part],
                            shardings,
                            transform_non_params=lambda _: False,
                        )
                    )
                    for part in ("first_state", "state")
                },
                "bytes": _bytes(run["first_state"]),
                "bytes_per_device": _bytes_per_device(run["first_state"]),
            }
    print(json.dumps(report))


@pytest.fixture(scope="module")
def report():
    done = subprocess.run(
        [sys.executable, __file__],
        env=cpu_devices(8) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(
    params=[
        pytest.param(f"{name}-{layout}", marks=pytest.mark.slow)
        for name in OPTIMIZERS
        for layout in layouts(name)
    ]
)
def measured(report, request):
    return report[request.param]


def test_sharded_equals_unsharded(measured, request):
    # Sums of up to 4608 numbers are made in another order, and roots of them scale
    # everything: some units of 1.2e-7 of the largest entry, 3e-6 at most as measured.
    # A mean over one device's part would be wrong by 1e-2 or more.
    assert set(measured["difference"]) == {"updates", "params", "state"}
    # Of what a state keeps in bfloat16 an entry may round the other way.
    rounded = 1e-2 if request.node.callspec.id.startswith(IN_BFLOAT16) else 2e-5
    bounds = {"updates": 2e-5, "params": 2e-5, "state": rounded}
    for part, difference in measured["difference"].items():
        assert difference < bounds[part], part


def test_nothing_gathers_a_parameter(measured, request):
    if request.node.callspec.id.startswith(GATHERS_ROWS):
        pytest.skip("orthogonalises")
    assert 0 < measured["largest_collective"] < measured["smallest_shard"]


def test_updates_are_sharded_like_parameters(measured):
    assert measured["misplaced_updates"] == []


def test_state_is_sharded_like_parameters(measured):
    assert measured["misplaced"] == {"first_state": [], "state": []}
    # Rows, columns and what belongs to a whole tensor do not scale with all devices.
    assert measured["bytes_per_device"] < measured["bytes"] / 6


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_first_state_is_sharded_like_parameters(report, name):
    assert report[f"init-{name}"] == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gather_is_noticed(report, layout):
    measured = report[f"gathers-{layout}"]
    assert measured["largest_collective"] >= measured["smallest_shard"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_that_does_not_follow_is_noticed(report, layout):
    assert len(report["init-forgets"]) == 2
    measured = report[f"forgets-{layout}"]
    assert len(measured["misplaced"]["first_state"]) == len(SHAPES)
    assert measured["bytes_per_device"] == measured["bytes"]


def test_collectives_are_read_from_a_program():
    assert largest_collective("%sum = f32[] add(%a, %b)") == 0
    assert largest_collective("ROOT %a.1 = f32[2,3]{1,0} all-gather(%x), dim") == 6
    assert largest_collective("%a = (f32[2]{0}, f32[3]{0}) all-to-all(%x, %y)") == 5
    assert largest_collective("%a = (f32[2]{0}, f32[3]{0}) all-reduce(%x, %y)") == 3
    assert largest_collective("%a = f32[] all-reduce-start(%x)") == 1


def _axes(x):
    spec = x.sharding.spec if x.sharding else ()
    return tuple(spec) if any(spec) else ()


# On a mesh of explicit axes shardings are part of the types: nothing need be compiled.
@pytest.mark.parametrize("name", EVERY)
def test_types_are_sharded_on_an_explicit_mesh(name):
    optimizer = OPTIMIZERS.get(name) or EVERY[name]
    shardings = _shardings("2d", AxisType.Explicit, AbstractMesh)
    params = {
        k: jax.ShapeDtypeStruct(SHAPES[k], jnp.float32, sharding=sharding)
        for k, sharding in shardings.items()
    }

    def update(theta, params, grads):
        tx = optimizer.bind(theta, num_steps=100)
        state = tx.init(params)
        return (grads, state), tx.update(grads, state, params, value=jnp.float32(0.5))

    theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    with jax.sharding.use_abstract_mesh(shardings["scalar"].mesh):
        before, after = jax.eval_shape(update, theta, params, params)
    assert jax.tree.map(_axes, before) == jax.tree.map(_axes, after)


if __name__ == "__main__":
    _measure()
