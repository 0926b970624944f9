"""Meta-train a small network to be an optimizer, freeze it, and train a model with it.

    python examples/meta_train.py

The network has 347 weights. It starts as a good rule, the normalised sum of Adam's
direction and the gradient. Meta-training makes it better on small MLPs. Then it trains
an MLP that is wider and deeper than those that it has seen, on the same digits. AdamW
has the best of four learning rates there.

It takes about a minute on two CPU cores, and prints, up to the last digits:

    outer step 50, mean meta-loss -0.11
    outer step 100, mean meta-loss -0.05
    outer step 150, mean meta-loss -0.19
    loss of an MLP 64-128-128-10 after 300 steps:
    where meta-training started   0.00162
    after meta-training           0.00130
    adamw at 0.03                 0.00361
"""

import argparse
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from sklearn.datasets import load_digits

import l2o
from l2o.meta_train import Config, run

SIZES, BATCH = (64, 128, 128, 10), 64


def new_params(key):
    """A deeper and wider MLP than those of the meta-training."""
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def loss_fn(params, x, y):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def final_loss(tx, steps, seeds=3):
    """The training loss of the last 50 steps: the median over seeds."""
    digits = load_digits()
    x, y = jnp.float32(digits.data / 16), jnp.asarray(digits.target)

    @jax.jit
    def train_step(params, state, key):
        batch = jax.random.randint(key, (BATCH,), 0, len(x))
        loss, grads = jax.value_and_grad(loss_fn)(params, x[batch], y[batch])
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    reached = []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed), steps + 1)
        params = new_params(keys[0])
        state, losses = tx.init(params), []
        for key in keys[1:]:
            params, state, loss = train_step(params, state, key)
            losses.append(loss)
        reached.append(np.mean(jax.device_get(losses[-50:])))
    return float(np.median(reached))


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outer-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=300, help="to train the model")
    parser.add_argument("--out", help="folder of the run; a temporary one by default")
    options = parser.parse_args()
    steps, outer_steps = options.steps, options.outer_steps

    config = Config(
        optimizer="celo2_base",
        optimizer_options={
            "init": "nadam",
            "relative": True,
            "schedule": "cosine",
            "learning_rate": 0.03,
        },
        families=("mlp16",),  # MLPs with 16 hidden units, on digits
        reparam_level="none",
        particles=4,
        truncation=50,
        episode_length=(100, 300),
        objective_log=True,
        objective_over="late",
        outer_steps=outer_steps,
        outer_warmup=5,
    )

    meta_losses = []

    def report(record):
        meta_losses.append(record["meta_loss"])
        if record["step"] % 50 == 0:
            mean = np.mean(meta_losses[-50:])
            print(f"outer step {record['step']}, mean meta-loss {mean:.2f}")

    with tempfile.TemporaryDirectory() as folder:
        # Killed, the same call resumes. `Console` is rich's: the run's own report.
        out = options.out or folder
        result = run(config, out, on_step=report, console=Console(quiet=True))
        learned = l2o.load(result.frozen, num_steps=steps)

    architecture = l2o.make(config.optimizer, **config.optimizer_options)
    start = architecture.bind(
        architecture.init_theta(jax.random.key(0)), num_steps=steps
    )
    reached = {
        "where meta-training started": final_loss(start, steps),
        "after meta-training": final_loss(learned, steps),
    }
    tuned = {}
    for rate in (0.003, 0.01, 0.03, 0.1):
        adamw = optax.adamw(optax.cosine_decay_schedule(rate, steps))
        tuned[rate] = final_loss(optax.with_extra_args_support(adamw), steps)
    best = min(tuned, key=tuned.get)
    reached["adamw"] = tuned[best]

    print(f"loss of an MLP 64-128-128-10 after {steps} steps:")
    for name, loss in reached.items():
        print(f"{name + (f' at {best}' if name == 'adamw' else ''):30}{loss:.5f}")
    return reached


if __name__ == "__main__":
    main()
