"""A small GPT in flax (nnx) on the source code of Python's standard library.

    python examples/gpt_flax.py
    python examples/gpt_flax.py --optimizer adamw

The two lines that use a learned optimizer are marked.
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

    data, rng, losses = text(), np.random.default_rng(0), []
    for step in range(options.steps):
        starts = rng.integers(len(data) - LENGTH - 1, size=(BATCH, 1))
        losses.append(
            train_step(model, optimizer, data[starts + np.arange(LENGTH + 1)])
        )
        if step % 100 == 99:
            print(f"step {step + 1}  loss {np.mean(jax.device_get(losses[-50:])):.3f}")
    return float(np.mean(jax.device_get(losses[-50:])))


if __name__ == "__main__":
    main()
