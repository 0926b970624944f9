"""A small convolutional network in flax (linen) with batch norm on images of digits.

    python examples/images_flax.py
    python examples/images_flax.py --optimizer adamw

The two lines that use a learned optimizer are marked.
"""

import argparse

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2o

BATCH = 64


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


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

    digits = load_digits()
    x = (digits.images[..., None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1500], order[1500:]

    model = Network()
    variables = model.init(jax.random.key(0), x[:1], train=False)
    params, averages = variables["params"], variables["batch_stats"]
    state = tx.init(params)

    @jax.jit
    def train_step(params, averages, state, x, y):
        def loss_fn(params):
            logits, changed = model.apply(
                {"params": params, "batch_stats": averages},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), changed["batch_stats"]

        (loss, averages), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params, value=loss)  # two
        return optax.apply_updates(params, updates), averages, state, loss

    rng = np.random.default_rng(1)
    for step in range(options.steps):
        batch = rng.choice(train, BATCH)
        params, averages, state, loss = train_step(
            params, averages, state, x[batch], digits.target[batch]
        )
        if step % 100 == 99:
            print(f"step {step + 1}  loss {loss:.4f}")
    logits = model.apply(
        {"params": params, "batch_stats": averages}, x[test], train=False
    )
    accuracy = float(np.mean(logits.argmax(1) == digits.target[test]))
    print(f"{accuracy:.1%} of {len(test)} images that were not trained on")
    return accuracy


if __name__ == "__main__":
    main()
