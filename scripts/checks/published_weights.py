"""Published weights on the task their authors' code was measured on, beside Adam.

    python scripts/checks/published_weights.py CELO_FOLDER CELO_ADAM_FOLDER [...]

An MLP 64-64-10 (relu) on scikit-learn's digits, batches of 64, 1000 steps. Printed are
the mean over seeds, with the range, of the loss over the whole training split at the
end, and of the batch losses over all steps. Adam has its best constant learning rate of
the grid, and a cosine from the best peak; both are chosen by the final loss of these
very runs, an advantage for Adam.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o.tasks import digits

STEPS = 1000
BATCH = 64
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def init_params(key):
    """Normal weights of deviation 1/sqrt(fan-in), cut at two deviations; zero bias."""
    params = {}
    for i, (n, m) in enumerate(((64, 64), (64, 10))):
        key, k = jax.random.split(key)
        w = jax.random.truncated_normal(k, -2, 2, (n, m)) / np.sqrt(n)
        params[f"linear_{i}"] = {"w": w, "b": jnp.zeros(m)}
    return params


def loss_fn(params, x, y):
    x = x.reshape(-1, 64)
    x = jax.nn.relu(x @ params["linear_0"]["w"] + params["linear_0"]["b"])
    logits = x @ params["linear_1"]["w"] + params["linear_1"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(tx, key, data):
    """The final loss over the training split, and the mean batch loss."""
    tx = optax.with_extra_args_support(tx)
    k_init, k_batches = jax.random.split(key)
    x, y = data

    def step(carry, k):
        params, state = carry
        i = jax.random.randint(k, (BATCH,), 0, len(x))
        loss, grads = jax.value_and_grad(loss_fn)(params, x[i], y[i])
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    params = init_params(k_init)
    carry = params, tx.init(params)
    (params, _), losses = jax.lax.scan(step, carry, jax.random.split(k_batches, STEPS))
    return loss_fn(params, x, y), losses.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    dataset = digits()
    data = jnp.asarray(dataset.train["x"]), jnp.asarray(dataset.train["y"])
    keys = jax.random.split(jax.random.key(0), options.seeds)

    def over_seeds(tx):
        run = jax.jit(jax.vmap(functools.partial(train, tx), in_axes=(0, None)))
        return [np.asarray(x) for x in run(keys, data)]

    rows = {
        str(w.name): over_seeds(l2o.load(w, num_steps=STEPS)) for w in options.weights
    }
    constant = {rate: over_seeds(optax.adam(rate)) for rate in RATES}
    cosine = {
        rate: over_seeds(optax.adam(optax.cosine_decay_schedule(rate, STEPS)))
        for rate in RATES
    }
    for name, grid in (("Adam", constant), ("Adam, cosine", cosine)):
        rate = min(grid, key=lambda rate: grid[rate][0].mean())
        rows[f"{name}, {rate:g}"] = grid[rate]
    print(f"n = {options.seeds} seeds, {STEPS} steps; Adam's grid: {RATES}")
    print("| optimizer | final training loss | (range) | mean loss | (range) |")
    print("|---|---|---|---|---|")
    for name, (final, mean) in rows.items():
        print(
            f"| {name} | {final.mean():.1e} | {final.min():.1e}-{final.max():.1e} | "
            f"{mean.mean():.3f} | {mean.min():.3f}-{mean.max():.3f} |"
        )


if __name__ == "__main__":
    main()
