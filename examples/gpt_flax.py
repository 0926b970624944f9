"""A small GPT in flax (nnx) on the source code of Python's standard library.

    python examples/gpt_flax.py

A learned optimizer and AdamW train the same model on the same batches. The two lines
that differ for a learned optimizer are marked. AdamW's learning rate is the best of
0.001, 0.003 and 0.01 here. The learned optimizer has its own.

It takes about a minute on two CPU cores, and prints, up to the last digits:

    adaptive_muon: step 100, loss 2.43
    adaptive_muon: step 200, loss 2.10
    adaptive_muon: step 300, loss 1.93
    adamw: step 100, loss 2.67
    adamw: step 200, loss 2.43
    adamw: step 300, loss 2.36
"""

import argparse
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import l2o

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS, BATCH = 128, 64, 64, 4, 2, 16


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, rngs=rngs, use_bias=False
        )
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.narrow(nnx.gelu(self.wide(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def text() -> np.ndarray:
    """Its bytes; what is not ASCII becomes a zero."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
    return np.where(data < VOCABULARY, data, 0)


def train(name, tx, data, steps):
    """The mean loss of the last 50 steps."""
    model = GPT(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, tokens):
        def loss_fn(model):
            logits = model(tokens[:, :-1])
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, tokens[:, 1:]
            )
            return losses.mean()

        loss, gradients = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, gradients, value=loss)  # two
        return loss

    rng, losses = np.random.default_rng(0), []
    for step in range(1, steps + 1):
        starts = rng.integers(len(data) - LENGTH - 1, size=(BATCH, 1))
        tokens = data[starts + np.arange(LENGTH + 1)]
        losses.append(train_step(model, optimizer, tokens))
        if step % 100 == 0 or step == steps:
            mean = float(np.mean(jax.device_get(losses[-50:])))
            print(f"{name}: step {step}, loss {mean:.2f}")
    return mean


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="adaptive_muon")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of AdamW")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    learned = l2o.load(options.optimizer, num_steps=options.steps)  # one
    cosine = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    adamw = optax.with_extra_args_support(optax.adamw(cosine))

    data = text()
    return {
        name: train(name, tx, data, options.steps)
        for name, tx in ((options.optimizer, learned), ("adamw", adamw))
    }


if __name__ == "__main__":
    main()
