"""A GRU in haiku that tells whether a sequence has had more ups than downs.

    python examples/recurrent_haiku.py
    python examples/recurrent_haiku.py --optimizer adamw

The two lines that use a learned optimizer are marked.
"""

import argparse

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o

LENGTH, BATCH = 25, 64


def network(x):
    """Logits of sequences of shape (length, batch, 1), from the last state."""
    core = hk.GRU(32)
    states, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.Linear(1)(states[-1])[:, 0]


def draw(key):
    """A batch of signs, and whether most of them are positive."""
    signs = jax.random.rademacher(key, (LENGTH, BATCH, 1), jnp.float32)
    return signs, (signs.sum(0)[:, 0] > 0).astype(jnp.float32)


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="adaptive_muon")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()

    if options.optimizer == "adamw":
        tx = optax.with_extra_args_support(optax.adamw(options.learning_rate))
    else:
        tx = l2o.load(options.optimizer, num_steps=options.steps)  # one

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), draw(jax.random.key(1))[0])
    state = tx.init(params)

    @jax.jit
    def train_step(params, state, key):
        x, y = draw(key)

        def loss_fn(params):
            return optax.sigmoid_binary_cross_entropy(model.apply(params, x), y).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params, value=loss)  # two
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for step in range(options.steps):
        params, state, loss = train_step(params, state, jax.random.key(step + 2))
        losses.append(loss)
        if step % 100 == 99:
            print(f"step {step + 1}  loss {np.mean(jax.device_get(losses[-50:])):.4f}")
    return float(np.mean(jax.device_get(losses[-50:])))


if __name__ == "__main__":
    main()
