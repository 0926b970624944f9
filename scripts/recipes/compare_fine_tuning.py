"""Fine-tuning of two pretrained networks: losses by rate, and how far weights move.

    python scripts/recipes/compare_fine_tuning.py --out runs/fine_tuning
    python scripts/recipes/compare_fine_tuning.py --out runs/fine_tuning --settle 0

- images: a convolutional network that has learned the digits 0 to 4 gets 100 images of
  the digits 5 to 9, and a new head of zeros.
- text: a byte-level transformer that has learned English gets Python code.

Both are pretrained by AdamW and a cosine. They are fine-tuned as a whole, in their head
alone (images) or by a LoRA of rank 4, with a whole head: by AdamW with a cosine and by
shipped weights, each over several rates. The head has the rate of everything else. None
of the data is held out. What the folder has already is not made again.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import l2o
from l2o.meta_train.cli import configure_process
from l2o.tasks import Task, TaskFamily, from_arrays, make_family

STEPS, PRETRAINED, RANK, HEAD = 300, 2000, 4, "Dense_0"
SHOTS = (100, 50, 600)  # images to train on, of the two splits for choosing
RATES = {
    "learned": (0.03, 0.01, 0.003, 0.001, 0.0003),
    "adamw": (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
}
Merge = Callable[[Any], Any]


class Transfer(NamedTuple):
    """Two tasks of one network; the head is None where it is kept."""

    old: TaskFamily
    new: TaskFamily
    head: str | None


def _images() -> Transfer:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order], digits.target[order]
    images = np.float32((images - images.mean()) / images.std())[..., None]

    def family(among: np.ndarray, sizes: tuple[int, int, int] | None) -> TaskFamily:
        y = np.int32(labels[among] % 5)
        data = from_arrays({"x": images[among], "y": y}, sizes)
        return make_family(
            "supervised",
            model="conv",
            options={"channels": (32, 32, 32)},
            datasets=(data,),
            batch_size=32,
        )

    return Transfer(family(labels < 5, None), family(labels >= 5, SHOTS), HEAD)


def _text() -> Transfer:
    def family(name: str) -> TaskFamily:
        return make_family(
            "language_model",
            model="decoder",
            options={"width": 64, "heads": 4, "layers": 2},
            datasets=(name,),
            length=64,
            batch_size=16,
        )

    return Transfer(family("python_docs"), family("python_code"), None)


TRANSFERS = {"images": _images, "text": _text}
HOW = {"images": ("whole", "lora", "head"), "text": ("whole", "lora")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="adaptive_muon")
    parser.add_argument("--settle", type=float, help="of the weights' theta")
    parser.add_argument("--tasks", nargs="+", choices=TRANSFERS, default=TRANSFERS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    configure_process()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=100)
    learned = options.weights
    if options.settle is not None:
        learned += f", settle {options.settle:g}"
    for name in options.tasks:
        table = Table("how", "optimizer", "rate", "train", "outer_valid", "±", "moved")
        transfer = TRANSFERS[name]()
        params = _pretrained(options, name, transfer)
        for how in HOW[name]:
            for optimizer in (learned, "adamw"):
                path = options.out / f"{name}, {how}, {optimizer}.json"
                if not path.exists():
                    found = _fine_tuned(options, transfer, params, how, optimizer)
                    path.write_text(json.dumps(found))
                found = np.array(json.loads(path.read_text()))  # rates, seeds, numbers
                rates = RATES["adamw" if optimizer == "adamw" else "learned"]
                for rate, runs in zip(rates, found, strict=True):
                    train, valid, moved = runs.mean(0)
                    cells = (train, valid, runs[:, 1].std(), moved)
                    shown = (f"{x:.3f}" for x in cells)
                    table.add_row(how, optimizer, f"{rate:g}", *shown)
        console.print(f"{name}, n = {options.seeds}")
        console.print(table)


def _pretrained(options: argparse.Namespace, name: str, transfer: Transfer) -> Any:
    path = options.out / f"{name}.npz"
    task = transfer.old.task(transfer.old.sample(jax.random.key(0)), transfer.old.data)
    start, _ = task.init(jax.random.key(0))
    structure: Any = jax.tree.structure(start)
    if not path.exists():
        tx = optax.adamw(optax.cosine_decay_schedule(0.003, PRETRAINED))
        found, _ = jax.jit(functools.partial(_train, tx, task, PRETRAINED))(
            start, jax.random.key(0)
        )
        np.savez(path, *jax.tree.leaves(found))
    with np.load(path) as stored:
        return structure.unflatten([jnp.asarray(x) for x in stored.values()])


def _fine_tuned(
    options: argparse.Namespace,
    transfer: Transfer,
    params: Any,
    how: str,
    optimizer: str,
) -> list:
    """Of every rate and seed the losses of two splits, and the distance moved."""
    new = transfer.new
    task = new.task(new.sample(jax.random.key(0)), new.data)
    if transfer.head is not None:
        params = {**params, transfer.head: optax.tree.zeros_like(params[transfer.head])}
    start, merge = _parts(params, how, transfer.head)

    def run(rate, key):
        tx = _optimizer(options, optimizer, rate)
        found, _ = _train(tx, task, STEPS, start, key, merge)
        whole = merge(found)
        losses = [_loss(task, whole, split) for split in ("train", "outer_valid")]
        return jnp.stack([*losses, _moved(whole, params, transfer.head)])

    keys = jax.random.split(jax.random.key(1), options.seeds)
    rates = jnp.array(RATES["adamw" if optimizer == "adamw" else "learned"])
    runs = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    return np.asarray(jax.jit(runs)(rates, keys)).tolist()


def _optimizer(
    options: argparse.Namespace, name: str, rate: jax.Array
) -> optax.GradientTransformation:
    if name == "adamw":
        return optax.adamw(optax.cosine_decay_schedule(rate, STEPS), weight_decay=0.01)
    optimizer, theta = l2o.load_unbound(options.weights)
    own = jnp.log(rate / optimizer.arguments["learning_rate"])
    learned = {**theta["learned"], "log_rate": theta["learned"]["log_rate"] + own}
    if options.settle is not None:
        learned["settle"] = jnp.float32(options.settle)
    tx = optimizer.bind({**theta, "learned": learned}, num_steps=STEPS)
    return l2o.without_skipping(tx)  # many runs under one vmap


def _parts(params: Any, how: str, head: str | None) -> tuple[Any, Merge]:
    """What is trained, and the network's parameters of it."""
    if how == "whole":
        return params, lambda trained: trained
    kept = {k: x for k, x in params.items() if k != head}
    new = {} if head is None else {head: params[head]}
    if how == "head":
        return new, lambda trained: {**kept, **trained}

    flat: dict[str, jax.Array] = flax.traverse_util.flatten_dict(kept, sep="/")
    matrices = {name: p for name, p in flat.items() if p.ndim > 1}
    keys = jax.random.split(jax.random.key(3), len(matrices))

    def factors(key, p):
        m, n = p.size // p.shape[-1], p.shape[-1]
        a = jax.random.normal(key, (m, RANK)) / m**0.5
        return {"lora_a": a, "lora_b": jnp.zeros((RANK, n))}

    def merge(trained):
        changed = {
            name: matrices[name]
            + (x["lora_a"] @ x["lora_b"]).reshape(matrices[name].shape)
            for name, x in trained["lora"].items()
        }
        body = flax.traverse_util.unflatten_dict({**flat, **changed}, sep="/")
        return {**body, **trained["new"]}

    pairs = zip(keys, matrices.items(), strict=True)
    lora = {name: factors(key, p) for key, (name, p) in pairs}
    return {"lora": lora, "new": new}, merge


def _train(
    tx: optax.GradientTransformation,
    task: Task,
    steps: int,
    params: Any,
    key: jax.Array,
    merge: Merge = lambda trained: trained,
) -> tuple[Any, Any]:
    def step(carry, key):
        params, state = carry
        keys = jax.random.split(key)
        batch = task.batch(keys[0], "train")
        grads = jax.grad(lambda p: task.loss(merge(p), {}, keys[1], batch)[0])(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry, _ = jax.lax.scan(
        step, (params, tx.init(params)), jax.random.split(key, steps)
    )
    return carry


def _loss(task: Task, params: Any, split: Any) -> jax.Array:
    def one(key):
        return task.loss(params, {}, key, task.batch(key, split))[0]

    return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(2), 32)))


def _moved(params: Any, start: Any, head: str | None) -> jax.Array:
    """The distance from the start over the norm there, of what was pretrained."""
    a, b = (
        {k: x for k, x in tree.items() if k != head}
        for tree in (optax.tree.sub(params, start), start)
    )
    return optax.tree.norm(a) / optax.tree.norm(b)


if __name__ == "__main__":
    main()
