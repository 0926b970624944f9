"""Image-classification MLPs with sampled data, activation and initialisation."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .._base import TaskFamily, clipped, stateless
from .._choices import ACTIVATIONS, pick
from .._losses import accuracy, cross_entropy
from ..data import Dataset, load_all, sample_batch

_ACTIVATIONS = tuple(ACTIVATIONS[name] for name in ("relu", "tanh", "silu"))


def image_mlp(
    datasets: Sequence[str | Dataset],
    hidden: Sequence[int] = (32,),
    *,
    image_size: int = 8,
    batch_size: int = 64,
    init_scale: tuple[float, float] = (0.5, 2.0),
    name: str = "",
) -> TaskFamily:
    """MLPs on image classification; all that leaves shapes alone is sampled.

    A config draws one of the datasets, one of relu, tanh and silu, and a factor on the
    initial weights, log-uniform in `init_scale`, over normal weights of standard
    deviation `1/sqrt(fan_in)` truncated at two deviations. The loss is cross-entropy;
    as a meta-loss it is clipped to `[0, 1.5 log C]`. For other activations,
    initialisers, normalisation, dropout and losses there is `supervised`.

    Args:
      datasets: names of images; or datasets with x (n, height, width, channels) of one
        image shape and y (n,) in `range(C)` for one number of classes C. Splits may
        differ in size.
      hidden: widths of the hidden layers.
      image_size: of the datasets that are given by name.
      batch_size: examples per inner step.
      init_scale: range of the factor.
      name: for reports; `mlp32x32` for two layers of 32 by default.

    Raises:
      ValueError: no dataset, or datasets that differ in image shape or number of
        classes.

    Example:
      >>> from l2o.tasks import digits, image_mlp
      >>> family = image_mlp([digits()], hidden=(16,))

    Source: the sampled MLPs of VeLO (Metz et al., 2022) and the 8x8 "fast" tasks of
    google/learned_optimization.
    """
    datasets = load_all(datasets, size=image_size)
    kinds = {
        (data.train["x"].shape[1:], int(data.train["y"].max()) + 1) for data in datasets
    }
    if len(kinds) != 1:
        raise ValueError(
            "image_mlp needs datasets of one image shape and one number of classes, "
            f"not {sorted(kinds) or 'none at all'}"
        )
    ((shape, classes),) = kinds
    sizes = [math.prod(shape), *hidden, classes]
    log_low, log_high = map(math.log, init_scale)

    def sample(key):
        k_data, k_activation, k_scale = jax.random.split(key, 3)
        return {
            "dataset": jax.random.randint(k_data, (), 0, len(datasets)),
            "activation": jax.random.randint(k_activation, (), 0, len(_ACTIVATIONS)),
            "init_scale": jnp.exp(
                jax.random.uniform(k_scale, minval=log_low, maxval=log_high)
            ),
        }

    def task(config, data):
        def init(key):
            layers = []
            for k, fan_in, fan_out in zip(
                jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False
            ):
                w = jax.random.truncated_normal(k, -2, 2, (fan_in, fan_out))
                scale = config["init_scale"] / math.sqrt(fan_in)
                layers.append({"w": w * scale, "b": jnp.zeros(fan_out)})
            return layers

        def batch(key, split):
            batches = [sample_batch(d, split, key, batch_size) for d in data]
            return jax.tree.map(lambda *x: pick(config["dataset"], x), *batches)

        def loss(params, key, examples):
            del key
            h = examples["x"].reshape(len(examples["x"]), -1)
            for layer in params[:-1]:
                h = h @ layer["w"] + layer["b"]
                h = pick(config["activation"], [f(h) for f in _ACTIVATIONS])
            logits = h @ params[-1]["w"] + params[-1]["b"]
            metrics = {"accuracy": accuracy(logits, examples["y"])}
            return cross_entropy(logits, examples["y"]), metrics

        return stateless(init, batch, loss, clipped(1.5 * math.log(classes)))

    name = name or "mlp" + "x".join(map(str, hidden))
    return TaskFamily(sample, task, tuple(datasets), name)
