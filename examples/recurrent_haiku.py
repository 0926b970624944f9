"""A GRU in haiku that tells whether a sequence has had more ups than downs.

    python examples/recurrent_haiku.py

A learned optimizer and AdamW train the same model on the same batches. The two lines
that differ for a learned optimizer are marked. AdamW's learning rate is the best of
0.01, 0.03 and 0.1 here. The learned optimizer has its own.

It takes less than a minute on two CPU cores, and prints, up to the last digits:

    adaptive_muon: step 100, loss 0.055
    adaptive_muon: step 200, loss 0.001
    adaptive_muon: step 300, loss 0.001
    adamw: step 100, loss 0.119
    adamw: step 200, loss 0.031
    adamw: step 300, loss 0.003
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


def train(name, tx, steps):
    """The mean loss of the last 50 steps."""
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
    for step in range(1, steps + 1):
        params, state, loss = train_step(params, state, jax.random.key(step + 1))
        losses.append(loss)
        if step % 100 == 0 or step == steps:
            mean = float(np.mean(jax.device_get(losses[-50:])))
            print(f"{name}: step {step}, loss {mean:.3f}")
    return mean


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="adaptive_muon")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of AdamW")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    learned = l2o.load(options.optimizer, num_steps=options.steps)  # one
    cosine = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    adamw = optax.with_extra_args_support(optax.adamw(cosine))
    return {
        name: train(name, tx, options.steps)
        for name, tx in ((options.optimizer, learned), ("adamw", adamw))
    }


if __name__ == "__main__":
    main()
