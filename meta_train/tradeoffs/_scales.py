"""How large a study is: which variants, sizes, budgets and seeds."""

from typing import NamedTuple

from l2o.names import unknown_name

from .._config import Config, Evaluation
from ._grid import Variant, grid


class Scale(NamedTuple):
    """What a study measures.

    Attributes:
      variants: what is compared.
      parameters: sizes of the matrix whose update is timed.
      updates: that are timed, at most.
      training: one budget for all.
      evaluation: of what came out of it.
      seeds: of meta-training, from 0.
    """

    variants: dict[str, Variant]
    parameters: tuple[int, ...]
    updates: int
    training: Config
    evaluation: Evaluation
    seeds: int


# In this order tables and legends show them.
_SMOKE = ("small_fc", "celo2_base", "celo2_base -m")
_LAPTOP = (
    *("small_fc", "small_fc w8", "small_fc w16", "small_fc w32"),
    *("small_fc l1", "small_fc l3", "small_fc m1"),
    *("small_fc bf16", "small_fc factored", "small_fc bf16 factored"),
    "celo2_base",
    *(f"celo2_base -{x}" for x in ("g", "p", "m", "m_norm", "fac_g", "fac_m")),
    *("celo", "velo", "nn_adam", "learnable_adam", "mlp", "rnn_mlp", "lstm"),
)


def _smoke() -> Scale:
    training = Config(
        families=("mlp16",),
        particles=2,
        truncation=10,
        episode_length=(20, 40),
        outer_steps=4,
        outer_warmup=1,
        keep_checkpoints=1,
    )
    evaluation = Evaluation(
        tasks=("deep_mlp",),
        trials=2,
        steps=20,
        seeds=2,
        eval_every=5,
        eval_batches=1,
        adam_horizon=1,
    )
    return Scale(_named(_SMOKE), (10**3, 10**5), 20, training, evaluation, 1)


def _laptop() -> Scale:
    training = Config(
        families=("mlp32", "mlp64", "mlp32x32"),
        episode_length=(100, 500),
        outer_steps=1000,
        keep_checkpoints=1,
    )
    evaluation = Evaluation(seeds=3, eval_every=10, adam_horizon=1)
    sizes = (10**3, 10**4, 10**5, 10**6, 10**7)
    return Scale(_named(_LAPTOP), sizes, 30, training, evaluation, 3)


def _cluster() -> Scale:
    training = Config(
        families=("train/fast",),
        particles=32,
        episode_length=(100, 2000),
        outer_steps=10_000,
        outer_warmup=100,
        outer_optimizer="adamw",
        keep_checkpoints=1,
    )
    evaluation = Evaluation(
        suite="heldout/small", trials=7, seeds=5, eval_every=10, adam_horizon=1
    )
    sizes = (10**3, 10**4, 10**5, 10**6, 10**7)
    return Scale(grid(), sizes, 100, training, evaluation, 5)


SCALES = {"smoke": _smoke, "laptop": _laptop, "cluster": _cluster}


def scale_of(name: str) -> Scale:
    """The scale of that name.

    Raises:
      ValueError: there is none; the message lists the known ones.
    """
    if name not in SCALES:
        raise ValueError(unknown_name("scale", name, SCALES))
    return SCALES[name]()


def _named(names: tuple[str, ...]) -> dict[str, Variant]:
    known = grid()
    return {name: known[name] for name in names}
