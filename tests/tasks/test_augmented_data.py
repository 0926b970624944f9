"""Augmentations of batches, data, labels and precision, each against its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from augmented import BATCH, REGRESSION, entry, first_of
from helpers import ERRORS, KEY, KEYS, assert_close, differ, mapped

from l2o import tasks
from l2o.meta_train import inner_init, unroll
from l2o.tasks import label_noise, reduced_batch, reduced_precision, truncated_data


def _repeated(tree, times):
    return jax.tree.map(lambda x: np.tile(x, (times,) + (1,) * (x.ndim - 1)), tree)


def test_reduced_batch_is_the_first_examples():
    half = reduced_batch(REGRESSION, 0.5)
    few = reduced_batch(REGRESSION, 0.0)
    config = half.sample(KEY)
    whole = REGRESSION.task(config["base"], None).batch(KEY, "train")
    found = half.task(config, None).batch(KEY, "train")
    assert_close(found, first_of(whole, 6), rtol=0, atol=0)
    found = few.task(config, None).batch(KEY, "train")
    assert_close(found, first_of(whole, 1), rtol=0, atol=0)


def test_a_drawn_fraction_of_a_batch_has_the_mean_of_its_first_examples():
    family = reduced_batch(REGRESSION, (0.0, 1.0))
    base = REGRESSION.sample(KEY)
    # Of 12 examples: 5 are rounded down to 4, 11 to 6.
    fractions = [0.0, 0.1, 0.26, 0.45, 0.5, 0.95, 1.0]
    kept = [1, 1, 3, 4, 6, 6, 12]

    def evaluate(fraction):
        task = family.task({"base": base, "fraction": fraction}, None)
        params, state = task.init(KEY)
        batch = task.batch(KEY, "train")
        return batch, jax.value_and_grad(task.loss, has_aux=True)(
            params, state, KEY, batch
        )

    batches, ((losses, _), gradients) = mapped(evaluate)(jnp.array(fractions))
    task = REGRESSION.task(base, None)
    params, state = task.init(KEY)
    whole = task.batch(KEY, "train")
    f = jax.value_and_grad(task.loss, has_aux=True)
    for i, n in enumerate(kept):
        first = first_of(whole, n)
        found = entry((batches, losses, gradients), i)
        (loss, _), gradient = f(params, state, KEY, first)
        assert_close(found, (_repeated(first, BATCH // n), loss, gradient))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_rounds_parameters_and_batches(dtype):
    family = reduced_precision(REGRESSION, dtype)
    config = family.sample(KEY)
    task, base = (
        f.task(c, None) for f, c in ((family, config), (REGRESSION, config["base"]))
    )
    (params, state), (full, _) = task.init(KEY), base.init(KEY)
    low = jnp.dtype(dtype)
    assert {x.dtype for x in jax.tree.leaves(params)} == {low}
    assert_close(params, jax.tree.map(lambda x: x.astype(low), full), rtol=0, atol=0)
    batch, whole = task.batch(KEY, "train"), base.batch(KEY, "train")
    assert_close(batch["x"], whole["x"].astype(low), rtol=0, atol=0)
    assert batch["x"].dtype == low and batch["y"].dtype == whole["y"].dtype
    assert state["mean"].dtype == jnp.float32


def test_reduced_precision_trains_in_its_dtypes_from_step_to_step():
    family = reduced_precision(REGRESSION)
    tx = optax.adam(0.05)

    @jax.jit
    def run():
        task = family.task(family.sample(KEY), family.data)
        start = inner_init(tx, task, KEY)
        return start, unroll(tx, task, start, KEY, jnp.arange(60))

    start, (end, losses) = run()
    dtypes = lambda state: jax.tree.map(lambda x: x.dtype, state)
    assert dtypes(start) == dtypes(end) and end.model_state["step"] == 60
    assert end.opt_state[0].mu["w"].dtype == jnp.bfloat16
    assert losses.dtype == jnp.float32 and losses[-5:].mean() < losses[:5].mean()
    assert not np.array_equal(losses, losses.astype(jnp.bfloat16))


# Every example tells its place: x is its number in the training split.
PLACES = tasks.from_arrays(
    {"x": np.zeros((1000, 1, 1, 1), np.float32), "y": np.arange(1000) % 10}
)
PLACES = PLACES._replace(
    train={**PLACES.train, "x": jnp.arange(700.0).reshape(700, 1, 1, 1)}
)
SEEN = tasks.image_mlp([PLACES], (2,), batch_size=100)


def _drawn(family, config, split="train", draws=40):
    """Places and labels of many batches."""
    task = family.task(config, family.data)
    batches = jax.vmap(lambda key: task.batch(key, split))(KEYS[:draws])
    return batches["x"].reshape(-1).astype(int), batches["y"].reshape(-1)


def test_truncated_data_draws_the_first_examples_only():
    family = truncated_data(SEEN, (0.0, 1.0))
    twice = truncated_data(family, 0.5)
    base = SEEN.sample(KEY)

    def draw(fraction):
        config = {"base": base, "fraction": fraction}
        outer = {"base": config, "fraction": jnp.float32(0.5)}
        return _drawn(family, config)[0], _drawn(twice, outer)[0]

    once, both = mapped(draw)(jnp.array([0.0, 0.1, 0.5, 1.0]))
    for places, n in zip([*once, *both], [1, 70, 350, 700, 1, 35, 175, 350]):
        assert set(np.unique(places)) <= set(range(n))
        assert len(np.unique(places)) > 0.98 * n
    config = truncated_data(SEEN, 0.0).sample(KEY)
    _, labels = _drawn(family, config, "inner_valid")
    assert len(np.unique(labels)) == 10


def test_label_noise_is_the_same_in_every_draw_and_has_its_share():
    truth = np.asarray(PLACES.train["y"])
    families = {
        "one": label_noise(SEEN, 0.3),
        "composed": truncated_data(label_noise(truncated_data(SEEN, 0.5), 0.3), 0.9),
        "twice": label_noise(label_noise(SEEN, 0.3), 0.3),
    }

    @jax.jit
    def draw(key):
        return {
            name: _drawn(f, f.sample(key), draws=60) for name, f in families.items()
        }

    seen = {name: [] for name in families}
    for key in KEYS[:4]:
        first = draw(key)
        for name, (places, labels) in first.items():
            table = np.full(700, -1)
            table[places] = labels
            assert np.array_equal(table[places], labels)  # one label per example
            seen[name].append(table)
    assert_close(draw(KEYS[3]), first, rtol=0, atol=0)
    assert differ(seen["one"][0], seen["one"][1])
    assert max(np.flatnonzero(table >= 0).max() for table in seen["composed"]) == 314
    # The other label is any example's, so it may be the right one.
    other = 1 - np.sum((np.bincount(truth) / 700) ** 2)
    for name, p in {"one": 0.3, "composed": 0.3, "twice": 0.51}.items():
        wrong = np.concatenate([(t != truth)[t >= 0] for t in seen[name]])
        share = p * other
        error = math.sqrt(share * (1 - share) / len(wrong))
        assert abs(wrong.mean() - share) <= ERRORS * error
    config = families["one"].sample(KEY)
    clean = _drawn(SEEN, config["base"], "test", 3)
    assert_close(_drawn(families["one"], config, "test", 3), clean, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cartpole", {"steps": 5, "episodes": 2, "pairs": 1}),
        ("matmul_algorithm", {}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_few_bits_where_a_loop_or_a_decomposition_is(kind, options, dtype):
    family = tasks.reduced_precision(tasks.make_family(kind, **options), dtype)

    def gradient():
        task = family.task(family.sample(KEY), family.data)
        params, state = task.init(KEY)
        batch = task.batch(KEY, "train")
        return jax.grad(task.loss, has_aux=True)(params, state, KEY, batch)[0]

    found = jax.jit(gradient).lower().out_info
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {dtype}


@pytest.mark.parametrize("level", ["global", "tensor", "parameter"])
def test_reparametrisation_keeps_few_bits(level):
    few = tasks.reduced_precision(tasks.quadratic(3))
    family = tasks.reparametrize(few, level)
    task = family.task(family.sample(KEY), family.data)
    params, _ = task.init(KEY)
    assert params.dtype == jnp.bfloat16


@pytest.mark.parametrize("worse", [tasks.truncated_data, tasks.label_noise])
def test_worse_data_of_a_logistic_regression(worse):
    full = tasks.make_family("logistic_regression", dataset="breast_cancer")
    family = worse(full, 0.5)
    task = family.task(family.sample(KEY), family.data)
    with pytest.raises(ValueError, match="need a batch_size"):
        task.batch(KEY, "train")
    with pytest.raises(ValueError, match="have no optimum"):
        family.optimum(family.sample(KEY), family.data)
    family = worse(
        tasks.make_family("logistic_regression", dataset="breast_cancer", batch_size=8),
        0.5,
    )
    task = family.task(family.sample(KEY), family.data)
    assert task.batch(KEY, "test")["labels"].shape == (8,)
