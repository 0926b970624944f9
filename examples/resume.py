"""Save parameters and optimizer state with orbax, die, and go on bit for bit.

    python examples/resume.py

Every batch is a function of the step's number, so nothing else has to be saved. A child
process trains, and kills itself after 130 steps. Its last checkpoint is of step 100.
This process goes on from there, and compares the end with an undisturbed run. AdamW's
learning rate is the best of 0.01, 0.03 and 0.1 here.

It takes less than a minute on two CPU cores, and prints, up to the last digits:

    killed
    goes on from step 100
    the same parameters and state, bit for bit: True
    loss after 200 steps: adaptive_muon 0.0041, adamw 0.0209
"""

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

import l2o

DIGITS, WIDTH, BATCH = load_digits(), 64, 64


def new_params():
    k1, k2 = jax.random.split(jax.random.key(0))
    return {
        "hidden": jax.random.normal(k1, (64, WIDTH)) * (2 / 64) ** 0.5,
        "head": jax.random.normal(k2, (WIDTH, 10)) / WIDTH**0.5,
    }


@functools.partial(jax.jit, static_argnums=0)
def train_step(tx, params, state, step):
    batch = jax.random.randint(jax.random.key(step), (BATCH,), 0, len(DIGITS.data))
    x, y = jnp.float32(DIGITS.data / 16)[batch], jnp.asarray(DIGITS.target)[batch]

    def loss_fn(params):
        logits = jax.nn.relu(x @ params["hidden"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(gradients, state, params, value=loss)
    return optax.apply_updates(params, updates), state, loss


def train(tx, folder, steps, every, kill_at=None):
    """Trains from the newest checkpoint in a folder, if there is one."""
    params = new_params()
    run = {"params": params, "state": tx.init(params)}
    options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            run = checkpoints.restore(start, args=ocp.args.StandardRestore(run))
            print(f"goes on from step {start}")
        for step in range(start, steps):
            if step == kill_at:
                checkpoints.wait_until_finished()  # an unfinished one would not count
                os.kill(os.getpid(), signal.SIGKILL)
            params, state, loss = train_step(tx, run["params"], run["state"], step)
            run = {"params": params, "state": state}
            checkpoints.save(step + 1, args=ocp.args.StandardSave(run))  # if it is due
    return run, float(loss)


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--kill-at", type=int, default=130)
    parser.add_argument("--learning-rate", type=float, default=0.03, help="of AdamW")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps, every, kill_at = options.steps, options.every, options.kill_at

    tx = l2o.load("adaptive_muon", num_steps=steps)  # the same num_steps every time
    if options.child:
        train(tx, options.child, steps, every, kill_at)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [sys.executable, __file__, "--child", str(folder / "killed")]
        for name, value in (("steps", steps), ("every", every), ("kill-at", kill_at)):
            command += [f"--{name}", str(value)]
        died = subprocess.run(command).returncode == -signal.SIGKILL
        print("killed" if died else "the child was not killed")

        resumed, loss = train(tx, folder / "killed", steps, every)
        undisturbed, _ = train(tx, folder / "undisturbed", steps, every)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), resumed, undisturbed)
        same = all(jax.tree.leaves(same))
        print(f"the same parameters and state, bit for bit: {same}")

        schedule = optax.cosine_decay_schedule(options.learning_rate, steps)
        adamw = optax.with_extra_args_support(optax.adamw(schedule))
        _, adamw_loss = train(adamw, folder / "adamw", steps, every)
    print(f"loss after {steps} steps: adaptive_muon {loss:.4f}, adamw {adamw_loss:.4f}")
    return {"died": died, "same": same, "adaptive_muon": loss, "adamw": adamw_loss}


if __name__ == "__main__":
    main()
