"""Times google/learned_optimization and amoudgl/celo, for a benchmark to drive.

    git clone https://github.com/google/learned_optimization google
    git clone https://github.com/amoudgl/celo
    pip install jax optax chex dm-haiku flax gin-config absl-py
    cd scripts/benchmarks
    python google_rival.py --checkout google --mode meta --optimizer small_fc

Needs neither TensorFlow nor tensorflow-datasets nor oryx: stand-ins of the first two,
made in memory, hand synthetic images to the published input pipeline. The sources are
left as they are.

The process speaks JSON, one object a line. After the first (compiling) call:

    {"ready": true, "first_seconds": s, "inner_steps_per_call": n,
     "parameters": n of what is optimized, "meta_parameters": n, "temp_bytes": n}

`first_seconds` counts from the start of the process, as Linux tells it. Then for every
integer N on standard input N calls are made:

    {"wall": s, "cpu": s, "calls": N, "inner_steps": n, "maxrss": bytes, "finite": bool}

--mode meta: a call is one gradient estimate, of 2 x particles x truncation inner steps
(particles x truncation for backprop), batches drawn on the host.
--mode update: a call is one update of a tree of --shapes. optax.adam updates the same
tree in turn with it, for "adam_wall" and "adam_cpu"; "temp_bytes" are the temporaries
of the compiled update.
"""

import argparse
import importlib
import json
import math
import os
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

OPTIMIZERS = ("small_fc", "small_fc_scalar", "celo2_base", "celo", "velo")
ESTIMATORS = {
    "pes": ("truncated_pes", "TruncatedPES"),
    "es": ("truncated_es", "TruncatedES"),
    "full_es": ("full_es", "FullES"),
    "backprop": ("truncated_grad", "TruncatedGrad"),
}
EXAMPLES = 10_000  # of the synthetic data set, which the host shuffles every epoch


def clocks() -> np.ndarray:
    """Wall and CPU seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), usage.ru_utime + usage.ru_stime])


def age() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def stand_in(name: str, **names: Any) -> types.ModuleType:
    """A module of that name, put where `import` finds it."""
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(names)
    return module


def shim(image_size: tuple[int, int], classes: int) -> None:
    """Makes the checkouts importable, in this process only."""
    # flax.io looks for TensorFlow when it is imported and must not find a stand-in.
    importlib.import_module("flax.io")
    # summary.py calls the first on import; filesystem.py only imports tensorflow.
    # The others are what datasets/base.py does to images that need no resizing.
    names = {
        "enable_v2_behavior": lambda: None,
        "cast": lambda value, dtype: value.astype(dtype),
        "float32": np.float32,
        "int32": np.int32,
    }
    compat = stand_in("tensorflow.compat")
    compat.v2 = stand_in("tensorflow.compat.v2", **names)
    stand_in("tensorflow", compat=compat, **names)
    # datasets/base.py asks this for whole data sets and then draws batches by itself.
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (EXAMPLES, *image_size, 1), dtype=np.uint8),
        "label": rng.integers(0, classes, EXAMPLES),
    }
    features = {
        "image": np.empty((*image_size, 1)),
        "label": types.SimpleNamespace(num_classes=classes),
    }
    builder = types.SimpleNamespace(info=types.SimpleNamespace(features=features))
    stand_in(
        "tensorflow_datasets",
        load=lambda name, split, batch_size: data,
        as_numpy=lambda value: value,
        builder=lambda name: builder,
    )


def google(module: str) -> types.ModuleType:
    return importlib.import_module(f"learned_optimization.{module}")


def build_optimizer(name: str) -> Any:
    if name == "small_fc":
        return google("learned_optimizers.adafac_mlp_lopt").AdafacMLPLOpt()
    if name == "small_fc_scalar":  # per-feature arithmetic in the place of matmuls
        return google("learned_optimizers.adafac_mlp_lopt").AdafacMLPLOpt(
            concat_weights=False, split_weights=True
        )
    if name == "velo":  # a small one: the published has 512 and 256 of these
        return google("research.general_lopt.hyper_v2").HyperV2(
            lstm_hidden_size=64, param_inits=32, use_bugged_loss_features=False
        )
    if name == "celo2_base":
        return importlib.import_module("celo.optimizers.celo2").Celo2Base()
    # As the factory of its authors makes "celo".
    return importlib.import_module("celo.optimizers.celo").Celo(
        lstm_hidden_size=64, param_inits=1, train_phase=2
    )


def build_estimator(options: argparse.Namespace, optimizer: Any, family: Any) -> Any:
    schedules = google("outer_trainers.truncation_schedule")
    constant = schedules.ConstantTruncationSchedule
    full = options.estimator == "full_es"  # which has its own schedule for the length
    step = google("outer_trainers.lopt_truncated_step").VectorizedLOptTruncatedStep(
        family,
        optimizer,
        schedules.NeverEndingTruncationSchedule() if full else constant(options.length),
        num_tasks=options.particles,
    )
    module, name = ESTIMATORS[options.estimator]
    length = constant(options.truncation) if full else options.truncation
    estimator = getattr(google(f"outer_trainers.{module}"), name)
    return estimator(step, length, steps_per_jit=10)


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


class Meta:
    """Gradient estimates of meta-training, one after another, at a fixed theta."""

    def __init__(self, options: argparse.Namespace, image_size: tuple[int, int]):
        learner = google("outer_trainers.gradient_learner")
        tasks = google("tasks.fixed.image_mlp")
        # ImageMLP_FashionMnist8_Relu32, at the default options.
        datasets = google("tasks.datasets.image").fashion_mnist_datasets(
            batch_size=options.batch, image_size=image_size
        )
        task = tasks._MLPImageTask(datasets, [options.hidden])
        optimizer = build_optimizer(options.optimizer)
        self.key = jax.random.PRNGKey(0)
        theta = optimizer.init(self.key)
        self.weights = learner.WorkerWeights(
            theta=theta,
            theta_model_state=None,
            outer_state=learner.OuterState(jnp.asarray(0, jnp.int32)),
        )
        family = google("tasks.base").single_task_to_family(task)
        self.estimator = build_estimator(options, optimizer, family)
        self.state = self.estimator.init_worker_state(self.weights, self.key)
        sides = 1 if options.estimator == "backprop" else 2
        self.facts = {
            "inner_steps_per_call": sides * options.particles * options.truncation,
            "parameters": size(jax.eval_shape(task.init, self.key)),
            "meta_parameters": size(theta),
        }
        self.calls(1)
        self.facts["first_seconds"] = age()
        self.calls(1)  # the types of a state may still settle

    def calls(self, number: int) -> dict[str, Any]:
        start = clocks()
        for _ in range(number):
            self.key, key = jax.random.split(self.key)
            self.estimate, _ = self.estimator.compute_gradient_estimate(
                self.weights, key, self.state, with_summary=False
            )
            self.state = self.estimate.unroll_state
        jax.block_until_ready(self.estimate)
        wall, cpu = clocks() - start
        return {"wall": wall, "cpu": cpu, "finite": finite(self.estimate.grad)}


class Update:
    """Updates by fixed gradients, alternating with those of optax.adam."""

    def __init__(self, options: argparse.Namespace):
        rng = np.random.default_rng(0)
        shapes = {name: tuple(shape) for name, shape in options.shapes.items()}

        def normal(scale: float) -> dict[str, jax.Array]:
            draw = lambda shape: rng.standard_normal(shape, np.float32) * scale
            return {name: jnp.asarray(draw(shape)) for name, shape in shapes.items()}

        params, self.grads = normal(0.05), normal(0.01)
        key = jax.random.PRNGKey(0)
        optimizer = build_optimizer(options.optimizer)
        theta = optimizer.init(key)
        opt = optimizer.opt_fn(theta)
        # Donation wants buffers of which nothing else holds a part.
        own = lambda tree: jax.tree.map(jnp.copy, tree)
        self.state = own(opt.init(params, num_steps=options.length, key=key))
        self.extra = jnp.float32(1.0), key

        def update(state, grads, loss, key):
            return opt.update(state, grads, loss=loss, key=key)

        adam = optax.adam(1e-3)

        def adam_update(carry, grads):
            params, state = carry
            updates, state = adam.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = jax.jit(update, donate_argnums=0)
        self.adam_update = jax.jit(adam_update, donate_argnums=0)
        self.adam_carry = own((params, adam.init(params)))
        self.state = self.update(self.state, self.grads, *self.extra)
        jax.block_until_ready(self.state)
        first_seconds = age()
        self.calls(1)
        lowered = self.update.lower(self.state, self.grads, *self.extra)
        self.facts = {
            "first_seconds": first_seconds,
            "inner_steps_per_call": 1,
            "parameters": size(params),
            "meta_parameters": size(theta),
            "temp_bytes": lowered.compile().memory_analysis().temp_size_in_bytes,
        }

    def calls(self, number: int) -> dict[str, Any]:
        spent = np.zeros(4)
        for _ in range(number):
            start = clocks()
            self.adam_carry = self.adam_update(self.adam_carry, self.grads)
            jax.block_until_ready(self.adam_carry)
            middle = clocks()
            self.state = self.update(self.state, self.grads, *self.extra)
            jax.block_until_ready(self.state)
            spent += np.concatenate([clocks() - middle, middle - start])
        names = ("wall", "cpu", "adam_wall", "adam_cpu")
        answer = dict(zip(names, spent.tolist(), strict=True))
        return answer | {"finite": finite(self.state.params)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkout", required=True, help="of google/learned_optimization")
    add("--celo", help="a checkout of amoudgl/celo, for celo and celo2_base")
    add("--mode", choices=("update", "meta"), required=True)
    add("--optimizer", choices=OPTIMIZERS, required=True)
    add("--estimator", choices=ESTIMATORS, default="pes")
    add("--particles", type=int, default=8)
    add("--truncation", type=int, default=50, help="a multiple of 10; full_es: length")
    sizes = {"hidden": 32, "inputs": 64, "classes": 10, "batch": 128}
    for name, value in sizes.items():
        add(f"--{name}", type=int, default=value, help="of the task's perceptron")
    add("--length", type=int, default=500, help="of an inner training")
    add("--shapes", type=json.loads, default={"w": [1024, 1024], "b": [1024]})
    options = parser.parse_args()
    if options.optimizer.startswith("celo") and not options.celo:
        parser.error(f"--optimizer {options.optimizer} needs --celo")
    return options


def main() -> None:
    options = parse()
    # Standard output is for the protocol; what the peers print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.argv = sys.argv[:1]  # profile.py parses it as its own flags
    sys.path[:0] = [path for path in (options.checkout, options.celo) if path]
    side = math.isqrt(options.inputs)
    square = side * side == options.inputs
    image_size = (side, side) if square else (1, options.inputs)
    shim(image_size, options.classes)
    subject = Meta(options, image_size) if options.mode == "meta" else Update(options)
    facts = subject.facts
    print(json.dumps({"ready": True, **facts}), file=answers, flush=True)
    for line in sys.stdin:
        number = int(line)
        answer = subject.calls(number) | {
            "calls": number,
            "inner_steps": number * facts["inner_steps_per_call"],
            "maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # an orderly exit can abort in the pipeline's prefetching thread


if __name__ == "__main__":
    main()
