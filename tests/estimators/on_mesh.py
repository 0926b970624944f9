"""Run by test_mesh.py in a process of eight virtual devices; prints JSON."""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o import meta_train as mt
from l2o.meta_train import PARTICLES, Topology, constant, learn_optimizer
from l2o.tasks import make_family, quadratic, reparametrize, stateless

STEPS = 3


def build(name):
    """(estimator, problem): quadratics under Adam with learnable hyper-parameters."""
    family = reparametrize(quadratic(3, noise=0.1), "tensor", (0.5, 2.0))
    problem = learn_optimizer(l2o.learnable_adam(learning_rate=0.05), family)
    schedule = mt.log_uniform(4, 9)
    windows = {"truncation": 4, "particles": 8, "max_offset": 8}
    if name == "gpes":
        return mt.gpes(problem, schedule, period=8, **windows), problem
    if name == "unperturbed":
        return mt.truncated_es(problem, schedule, carry=name, **windows), problem
    if name in ("full_es", "backprop"):
        return getattr(mt, name)(problem, schedule, particles=8), problem
    if name == "average":
        both = [mt.pes(problem, schedule, **windows), mt.full_es(problem, schedule)]
        average = mt.accumulate(mt.average(both), 2)
        return average, problem._replace(data=(problem.data, problem.data))
    if name == "batch":
        # Batches of 64 over two devices each, and with them the inner gradients.
        problem = learn_optimizer(l2o.learnable_sgdm(), make_family("mlp16"))
        return mt.pes(problem, constant(4), **windows), problem
    if name == "theta":
        # A minimum at theta^2 in every coordinate.
        def task(theta, config, data):
            return stateless(
                init=lambda key: jnp.ones(16),
                batch=lambda key, split: jax.random.normal(key, (16,)),
                loss=lambda x, key, noise: jnp.sum((x - theta**2 - 0.1 * noise) ** 2),
            )

        problem = mt.learn_hyperparameters(
            lambda key: jnp.linspace(0.5, 1, 16), task, tx=optax.sgd(0.2)
        )
        return mt.pes(problem, schedule, **windows), problem
    return getattr(mt, name)(problem, schedule, **windows), problem


def collectives(text):
    """[operation, elements of its largest result, whether in a loop] of a program."""
    found = []
    inside = False
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            # Bodies of loops and branches are computations of their own.
            inside = not line.startswith("ENTRY")
        match = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|"
            r"reduce-scatter)(?:-start)?\(",
            line,
        )
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
            found.append([match[2], max(sizes), inside])
    return found


@functools.cache
def start(name):
    estimator, problem = build(name)
    tx = optax.adam(1e-2)
    theta = problem.init_theta(jax.random.key(0))
    outer = mt.Outer(theta, tx.init(theta), jnp.int32(0), jax.random.key(1))
    worker = estimator.init(jax.random.key(2), theta)
    return estimator, mt.make_outer_step(estimator, tx), outer, worker, problem.data


@functools.cache
def program(count, name, topology):
    """Of the first `count` devices: their mesh, where all lies, the compiled step."""
    estimator, step, outer, worker, data = start(name)
    mesh = mt.make_mesh(topology, 8, devices=jax.devices()[:count])
    if mesh is None:
        return None, None, jax.jit(step)
    where = mt.run_shardings(mesh, outer, estimator.specs, topology)
    with jax.set_mesh(mesh):
        outer, worker, data = mt.place((outer, worker, data), where)
        jitted = jax.jit(step, in_shardings=where, out_shardings=(*where[:2], where[2]))
        return mesh, where, jitted.lower(outer, worker, data).compile()


def on_devices(count, name, outer, worker, data, steps, **topology):
    """The state after `steps` on the first `count` devices, and the program's text."""
    mesh, where, compiled = program(count, name, Topology(**topology))

    def advance(*given):
        # One at a time: threads of two programs may wait for each other.
        return jax.block_until_ready(compiled(*given))

    if mesh is None:
        for _ in range(steps):
            outer, worker, info = advance(outer, worker, data)
        return outer, worker, info, ""
    with jax.set_mesh(mesh):
        outer, worker, data = mt.place((outer, worker, data), where)
        for _ in range(steps):
            outer, worker, info = advance(outer, worker, data)
    return outer, worker, info, compiled.as_text()


def host(tree):
    return [
        np.asarray(jax.random.key_data(x) if _is_key(x) else x).ravel().tolist()
        for x in jax.tree.leaves(tree)
    ]


def _is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def compare(name, **topology):
    _, _, outer, worker, data = start(name)
    one = on_devices(1, name, outer, worker, data, STEPS)
    many = on_devices(8, name, outer, worker, data, STEPS, **topology)
    return {
        "one": host((one[0].theta, one[2])),
        "many": host((many[0].theta, many[2])),
        "collectives": collectives(many[3]),
        "theta_size": int(sum(x.size for x in jax.tree.leaves(outer.theta))),
        "shards": sorted(
            {
                str(x.sharding.spec)
                for x in jax.tree.leaves(many[1])
                if not x.sharding.is_fully_replicated
            }
        ),
        "theta_sharded": not all(
            x.sharding.is_fully_replicated for x in jax.tree.leaves(many[0].theta)
        ),
    }


def elastic():
    """Two steps on 8 devices, then on fewer from the very same state."""
    _, _, outer, worker, data = start("pes")
    outer, worker, _, _ = on_devices(8, "pes", outer, worker, data, 2)
    outer, worker = jax.device_put(
        (outer, worker), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    ends = {}
    for count in (8, 4, 1):
        end = on_devices(count, "pes", outer, worker, data, 2)
        ends[count] = host(end[:2])
    return ends


OTHERS = {
    "batch": lambda: compare("batch", batch_devices=2),
    "theta": lambda: compare("theta", shard_theta=True),
    "elastic": lambda: elastic(),
}


def main():
    assert jax.device_count() == 8 and PARTICLES == "particles"
    names = sys.argv[1].split(",")
    report = {
        name: OTHERS[name]() if name in OTHERS else compare(name) for name in names
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
