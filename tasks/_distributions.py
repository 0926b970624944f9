"""Distributions of specs: what a sampler of training problems draws from.

The ranges are VeLO's (Metz et al., 2022; google/learned_optimization), on the data that
are found offline; what has no published range says so.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from l2o.names import unknown_name

from ._choices import VELO_ACTIVATIONS, VELO_INITIALIZERS
from ._cost import within
from ._spec import TaskSpec
from .augment import velo_augmentations
from .data import load_all

Generator = np.random.Generator

# What meta-training may use; `heldout/small` has other data.
TRAIN_IMAGES = ("digits", "patches", "shapes", "textures")
TRAIN_TEXTS = ("python_code",)
TRAIN_TABLES = ("wine", "iris", "breast_cancer")


def log_int(rng: Generator, low: float, high: float) -> int:
    """`floor(exp(U(log low, log high)))`: high itself is never drawn."""
    return int(math.exp(rng.uniform(math.log(low), math.log(high))))


def _one(rng: Generator, of: Sequence[Any]) -> Any:
    return of[int(rng.integers(len(of)))]


def _coin(rng: Generator, probability: float = 0.5) -> bool:
    return bool(rng.uniform() < probability)


def _weights(rng: Generator) -> dict[str, Any]:
    return {
        "activation": _one(rng, VELO_ACTIVATIONS),
        "initializer": _one(rng, VELO_INITIALIZERS),
        "init_scale": (0.5, 2.0),
    }


def _classifier(
    rng: Generator, model: str, options: dict[str, Any], size: int, most: int = 512
) -> TaskSpec:
    name, batch_size = _images(rng, size, most)
    return TaskSpec(
        "supervised",
        {
            "model": model,
            "datasets": (name,),
            "options": options,
            "data": {"size": size},
            "batch_size": batch_size,
            **_weights(rng),
        },
    )


def image_mlp(rng: Generator) -> TaskSpec:
    """MLPs: width [8, 128), 0 to 4 layers, images [4, 32), batches [4, 512).

    Normalisation, dropout and the squared error, which VeLO's have not, one in four
    each.
    """
    options: dict[str, Any] = {"hidden": _hidden(rng)}
    if _coin(rng, 0.25):
        options["normalization"] = _one(rng, ("layer", "batch"))
    if _coin(rng, 0.25):
        options["dropout"] = round(rng.uniform(0, 0.8), 2)
    spec = _classifier(rng, "mlp", options, log_int(rng, 4, 32))
    if _coin(rng, 0.25):
        spec = _with(spec, loss="one_hot")
    return spec


def image_conv(rng: Generator) -> TaskSpec:
    """Convolutions: channels [4, 64), 0 to 3 layers, up to 2 of them strided."""
    channels = (log_int(rng, 4, 64),) * int(rng.integers(4))
    options: dict[str, Any] = {"channels": channels, "strided": int(rng.integers(3))}
    if _coin(rng, 0.25):
        options["normalization"] = _one(rng, ("layer", "batch"))
    return _classifier(rng, "conv", options, log_int(rng, 4, 32))


def image_resnet(rng: Generator) -> TaskSpec:
    """ResNets: up to 9 blocks per group, channels [8, 256) times a pattern."""
    most = log_int(rng, 1, 10)
    blocks = tuple(log_int(rng, 1, max(most, 1.001)) for _ in range(4))
    pattern = _one(rng, ("1111", "1248", "1224", "1222", "1244"))
    base = log_int(rng, 8, 256) // 4 * 4
    options = {
        "blocks": blocks,
        "channels": tuple(base * int(factor) for factor in pattern),
        "stem": _one(rng, (3, 5, 7)),
        "stem_channels": log_int(rng, 8, 64),
        "max_pool": _coin(rng),
    }
    return _classifier(rng, "resnet", options, log_int(rng, 8, 64), 256)


def image_vit(rng: Generator) -> TaskSpec:
    """Vision transformers: 1 to 15 layers and heads, patches of 2 to 16."""
    heads = log_int(rng, 1, 16)
    width = heads * log_int(rng, 8, 64 if heads < 4 else 32)
    patch = _one(rng, (2, 4, 8, 12, 16))
    size = max(log_int(rng, 8, 64) // patch, 1) * patch
    options: dict[str, Any] = {
        "layers": log_int(rng, 1, 16),
        "heads": heads,
        "width": width,
        "mlp": log_int(rng, 32, 512),
        "patch": patch,
    }
    if _coin(rng, 0.7):
        options["dropout"] = round(rng.uniform(0, 0.8), 2)
    return _classifier(rng, "vit", options, size, 256)


def image_mixer(rng: Generator) -> TaskSpec:
    """MLP-Mixers; ranges of our own, after the vision transformers'."""
    patch = _one(rng, (2, 4, 8))
    size = max(log_int(rng, 8, 32) // patch, 1) * patch
    options = {
        "layers": log_int(rng, 1, 8),
        "width": log_int(rng, 8, 128),
        "token_mlp": log_int(rng, 8, 128),
        "channel_mlp": log_int(rng, 8, 256),
        "patch": patch,
    }
    return _classifier(rng, "mixer", options, size, 256)


def image_autoencoder(rng: Generator) -> TaskSpec:
    """MLP autoencoders: as the MLPs; centred, constrained, logarithmic or not."""
    size = log_int(rng, 4, 32)
    name, batch_size = _images(rng, size)
    return TaskSpec(
        "autoencoder",
        {
            "datasets": (name,),
            "hidden": _hidden(rng),
            "image_size": size,
            "batch_size": batch_size,
            "log_loss": _coin(rng),
            "center_data": _coin(rng),
            "constrain_output": _coin(rng),
            **_weights(rng),
        },
    )


def image_vae(rng: Generator) -> TaskSpec:
    """MLP VAEs: width [4, 128), 0 to 4 layers each way, codes [2, 128)."""
    size = log_int(rng, 4, 32)
    name, batch_size = _images(rng, size)
    return TaskSpec(
        "vae",
        {
            "datasets": (name,),
            "encoder": _hidden(rng, 4),
            "decoder": _hidden(rng, 4),
            "latent": log_int(rng, 2, 128),
            "image_size": size,
            "batch_size": batch_size,
            "center_data": _coin(rng),
            "per_dim_loss": _coin(rng),
            **_weights(rng),
        },
    )


def rnn_lm(rng: Generator) -> TaskSpec:
    """Recurrent language models: state and embedding [8, 256), length [4, 512)."""
    return TaskSpec(
        "language_model",
        {
            "model": "recurrent",
            "options": {
                "core": _one(rng, ("lstm", "vanilla", "gru")),
                "size": log_int(rng, 8, 256),
                "embedding": log_int(rng, 8, 256),
            },
            "activation": "tanh",
            **_text(rng),
        },
    )


def transformer_lm(rng: Generator) -> TaskSpec:
    """Transformers: 1 to 7 layers, heads [8, 128), width per head [8, 128).

    A head's keys are as wide as its share of the model; VeLO's dropout of 0.1.
    """
    heads = log_int(rng, 8, 128)
    return TaskSpec(
        "language_model",
        {
            "model": "transformer",
            "options": {
                "width": heads * log_int(rng, 8, 128),
                "heads": heads,
                "layers": log_int(rng, 1, 8),
                "dropout": 0.1,
            },
            **_text(rng),
        },
    )


def small_transformer_lm(rng: Generator) -> TaskSpec:
    """Transformers that fit a laptop; ranges of our own."""
    heads = log_int(rng, 1, 9)
    return TaskSpec(
        "language_model",
        {
            "model": "transformer",
            "datasets": (_one(rng, TRAIN_TEXTS),),
            "options": {
                "width": heads * log_int(rng, 4, 17),
                "heads": heads,
                "layers": log_int(rng, 1, 4),
            },
            "length": log_int(rng, 4, 65),
            "batch_size": log_int(rng, 4, 33),
        },
    )


def learned_optimizer(rng: Generator) -> TaskSpec:
    """Meta-training: hyper-parameters or an MLP, 10 to 99 steps, 2 to 7 runs.

    VeLO's begin at one step and one run, whose losses say next to nothing about theta.
    """
    optimizer = _one(rng, ("learnable_adam", "learnable_sgdm", "learnable_sgd", "mlp"))
    options: dict[str, Any] = {}
    if optimizer == "mlp":
        options = {
            "hidden_size": log_int(rng, 2, 512),
            "hidden_layers": log_int(rng, 1, 4),
        }
    inner = TaskSpec(
        "image_mlp",
        {
            "datasets": (_one(rng, TRAIN_IMAGES),),
            "hidden": (log_int(rng, 8, 64),),
            "batch_size": log_int(rng, 4, 65),
        },
    )
    return TaskSpec(
        "train_learned_optimizer",
        {
            "optimizer": optimizer,
            "options": options,
            "inner": inner.to_dict(),
            "steps": log_int(rng, 10, 100),
            "runs": log_int(rng, 2, 8),
        },
    )


def table(rng: Generator) -> TaskSpec:
    """MLPs on tables; ranges of our own."""
    return TaskSpec(
        "supervised",
        {
            "model": "mlp",
            "datasets": (_one(rng, TRAIN_TABLES),),
            "options": {"hidden": _hidden(rng)},
            "batch_size": log_int(rng, 4, 16),
            **_weights(rng),
        },
    )


def convex(rng: Generator) -> TaskSpec:
    """Quadratics and least squares of 2 to 127 dimensions; ranges of our own."""
    dim = log_int(rng, 2, 128)
    condition = round(rng.uniform(0, 4), 2)
    if _coin(rng):
        return TaskSpec(
            "quadratic",
            {"dim": dim, "log10_condition": condition, "noise": _one(rng, (0.0, 0.1))},
        )
    return TaskSpec(
        "least_squares", {"rows": 2 * dim, "dim": dim, "log10_condition": condition}
    )


def landscape(rng: Generator) -> TaskSpec:
    """Functions of two variables with a name."""
    names = ("rosenbrock", "rastrigin", "ackley", "beale", "booth", "matyas")
    return TaskSpec("landscape", {"name": _one(rng, names)})


def coordinates(rng: Generator) -> TaskSpec:
    """Coordinate networks of two photographs; ranges of our own."""
    return TaskSpec(
        "coordinate_network",
        {
            "image": _one(rng, ("china", "flower")),
            "model": _one(rng, ("siren", "fourier")),
            "hidden": (log_int(rng, 8, 65),) * int(rng.integers(1, 4)),
            "batch_size": log_int(rng, 16, 257),
        },
    )


def copying(rng: Generator) -> TaskSpec:
    """The copy task; ranges of our own."""
    return TaskSpec(
        "copy_task",
        {
            "model": _one(rng, ("recurrent", "transformer")),
            "symbols": log_int(rng, 2, 17),
            "length": log_int(rng, 1, 9),
            "delay": int(rng.integers(9)),
        },
    )


DISTRIBUTIONS: dict[str, Callable[[Generator], TaskSpec]] = {
    "image_mlp": image_mlp,
    "image_conv": image_conv,
    "image_resnet": image_resnet,
    "image_vit": image_vit,
    "image_mixer": image_mixer,
    "image_autoencoder": image_autoencoder,
    "image_vae": image_vae,
    "rnn_lm": rnn_lm,
    "transformer_lm": transformer_lm,
    "small_transformer_lm": small_transformer_lm,
    "learned_optimizer": learned_optimizer,
    "table": table,
    "convex": convex,
    "landscape": landscape,
    "coordinates": coordinates,
    "copying": copying,
}

_TRIES = 512
# Whose batches lead with examples, so that they can be cut.
_WITH_EXAMPLES = (
    "supervised", "autoencoder", "vae", "language_model", "coordinate_network",
    "copy_task",
)  # fmt: skip


def sample_spec(
    key: jax.Array,
    kinds: Sequence[str] = tuple(DISTRIBUTIONS),
    *,
    augment: bool = False,
    accept: Callable[[TaskSpec], bool] = lambda spec: True,
) -> TaskSpec:
    """A spec at random: a distribution, uniformly, then its ranges.

    Args:
      key: equal keys give equal specs.
      kinds: names of distributions.
      augment: with VeLO's augmentations, see `velo_augmentations`.
      accept: what it refuses is drawn again, of the same distribution, up to 512 times;
        see `l2o.tasks.within`, for a budget.

    Raises:
      ValueError: unknown names; or nothing was accepted.

    Example:
      >>> import jax
      >>> from l2o.tasks import sample_spec
      >>> spec = sample_spec(jax.random.key(0), ["image_mlp"])
      >>> spec.kind
      'supervised'

    Source: the sampler of VeLO (Metz et al., 2022), with its rejection by cost.
    """
    for kind in kinds:
        if kind not in DISTRIBUTIONS:
            raise ValueError(unknown_name("distribution", kind, DISTRIBUTIONS))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    kind = _one(rng, kinds)
    for _ in range(_TRIES):
        spec = DISTRIBUTIONS[kind](rng)
        if augment:
            smaller = spec.kind in _WITH_EXAMPLES
            spec = spec.augmented(*velo_augmentations(rng, smaller_batches=smaller))
        if accept(spec):
            return spec
    raise ValueError(
        f"none of {_TRIES} draws of {kind} was accepted: choose a larger budget"
    )


# Step times on VeLO's accelerators, in seconds, and their weights.
_PHASES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((2e-5, 1e-4, 4e-4, 1e-3), (0.65, 0.3, 0.1, 0.05)),
    2: ((1e-4, 4e-4, 1e-3, 3e-3), (0.4, 0.2, 0.2, 0.2)),
}
_LIGHT = ("image_mlp", "image_conv", "image_autoencoder", "image_vae", "image_vit")
_HEAVY = ("rnn_lm", "transformer_lm", "image_resnet", "learned_optimizer")


def velo_mixture(key: jax.Array, phase: int = 1, *, slower: float = 1.0) -> TaskSpec:
    """A spec from VeLO's mixture: a step time first, then a family that keeps to it.

    A bucket of step times is drawn with the phase's weights; then, uniformly, one of
    five light families or, in buckets above 1e-4 s, of nine; then VeLO's augmentations.
    What takes longer on this machine, timed by `spec_cost`, is drawn again.

    Args:
      key: equal keys give equal specs where timings are remembered, or clear-cut.
      phase: of VeLO's training, 1 or 2; the second has longer steps.
      slower: this machine's step times divided by those of VeLO's accelerators; a
        hundred or so for a laptop.

    Raises:
      ValueError: another phase, or nothing was fast enough.

    Source: VeLO (Metz et al., 2022); google/learned_optimization,
    research/general_lopt/tasks/parametric.py, where the bucket of 1e-4 s is compared in
    float32 and so counts as below it.
    """
    if phase not in _PHASES:
        raise ValueError(f"VeLO has the phases 1 and 2, not {phase}")
    buckets, weights = _PHASES[phase]
    k_bucket, k_spec = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(k_bucket)))
    seconds = rng.choice(buckets, p=np.divide(weights, sum(weights)))
    kinds = _LIGHT + _HEAVY if seconds > 1e-4 else _LIGHT
    accept = within(seconds=slower * float(seconds))
    return sample_spec(k_spec, kinds, augment=True, accept=accept)


def _hidden(rng: Generator, low: int = 8) -> tuple[int, ...]:
    return (log_int(rng, low, 128),) * int(rng.integers(5))


def _images(rng: Generator, size: int, batch: int = 512) -> tuple[str, int]:
    """A dataset and a batch size."""
    name = _one(rng, TRAIN_IMAGES)
    drawn = log_int(rng, 4, batch)
    return name, _cut(drawn, (name,), size=size)


def _cut(batch_size: int, datasets: Sequence[str], **geometry: Any) -> int:
    """No more than the smallest split has."""
    (data,) = load_all(datasets, **geometry)
    return min(batch_size, *(len(split["y"]) for split in data))


def _text(rng: Generator) -> dict[str, Any]:
    geometry: dict[str, Any] = {
        "datasets": (_one(rng, TRAIN_TEXTS),),
        "length": log_int(rng, 4, 512),
    }
    if _coin(rng):
        geometry["vocabulary"] = log_int(rng, 300, 10_000)
    drawn = log_int(rng, 4, 512)
    return {**geometry, "batch_size": _cut(drawn, **geometry)}


def _with(spec: TaskSpec, **options: Any) -> TaskSpec:
    return TaskSpec(spec.kind, {**spec.options, **options}, spec.augmentations)
