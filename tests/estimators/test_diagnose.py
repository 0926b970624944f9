"""`l2o diagnose`: what is known of chaos and variances, measured; and the command."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o import meta_train as mt
from l2o.meta_train import learn_optimizer
from l2o.meta_train.cli._main import main
from l2o.meta_train.diagnosis import _samples
from l2o.meta_train.diagnosis._compare import compare, crossover, squared_mean
from l2o.meta_train.diagnosis._diagnose import diagnose
from l2o.meta_train.diagnosis._probes import measure_dynamics
from l2o.meta_train.diagnosis._samples import Samples, sample_gradients
from l2o.meta_train.diagnosis._settings import ESTIMATORS, Diagnosis
from l2o.tasks import TaskFamily, make_family, stateless

STD = 0.01


def _problem(update, theta, init, loss=lambda x: x):
    """Inner dynamics x' = update(theta, x)."""

    def bind(theta, *, num_steps=None):
        def step(gradients, state, x, **extra):
            return update(theta, x) - x, state

        return optax.GradientTransformationExtraArgs(lambda x: (), step)

    task = stateless(
        init=init,
        batch=lambda key, split: (),
        loss=lambda x, key, batch: loss(x),
    )
    family = TaskFamily(lambda key: (), lambda config, data: task)
    return learn_optimizer(l2o.LearnedOptimizer(lambda key: theta, bind), family)


def _logistic(r, low=0.2, high=0.8):
    """Chaotic at r = 3.9, a cycle of two at 3.2; the loss is the state."""
    return _problem(
        lambda r, x: r * x * (1 - x),
        jnp.float32(r),
        lambda key: jax.random.uniform(key, minval=low, maxval=high),
    )


def _column(samples, length, config):
    column = compare({name: x[length] for name, x in samples.items()}, config)
    return {c.estimator: c for c in column}


@pytest.fixture(scope="module", autouse=True)
def _large_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_samples, "_BATCH", 4096)  # for tiny problems
        yield


CHAOS = Diagnosis(
    lengths=(5, 10, 20, 40), truncation=5, particles=256, std=STD, runs=8, points=5
)


@pytest.fixture(scope="module")
def chaotic():
    problem = _logistic(3.9)
    return diagnose(problem, jnp.float32(3.9), CHAOS)


def _variances(findings, name):
    return np.array([c.variance for c in findings.cells if c.estimator == name])


def test_backprop_explodes_at_the_rate_of_the_exponent(chaotic):
    exponent, error = chaotic.dynamics.exponent
    # Published for r = 3.9: 0.4945; from 8 runs of 30 steps.
    assert abs(exponent - 0.4945) < 4 * error + 0.02
    variance = _variances(chaotic, "backprop")
    rate = math.log(variance[-1] / variance[1]) / (2 * 30)
    # A variance follows its largest samples, which grow faster than typical ones.
    assert 0.9 * 0.4945 < rate < 1.6 * 0.4945
    assert _variances(chaotic, "forward_gradient")[-1] > 1e6 * variance[1]


def test_es_is_bounded_by_its_differences(chaotic):
    # d E[difference^2] / (4 std^2), the differences by another implementation.
    rng = np.random.default_rng(0)
    n = 20_000
    x0, noise = rng.uniform(0.2, 0.8, n), rng.normal(0, STD, n)

    def losses(r):
        x, total = x0.copy(), np.zeros((40, n))
        for t in range(40):
            total[t] = x
            x = r * x * (1 - x)
        return total

    difference = losses(3.9 + noise) - losses(3.9 - noise)
    variance = _variances(chaotic, "full_es")
    for length, measured in zip(CHAOS.lengths[2:], variance[2:]):
        mean = difference[:length].mean(0)
        exact = np.var(noise * mean / (2 * STD**2))
        np.testing.assert_allclose(measured, exact, rtol=0.5)  # 4 errors at n = 256
        bound = np.mean(mean**2) / (4 * STD**2)
        assert measured < 1.5 * bound
    assert variance.max() < 1 / (4 * STD**2)
    backprop = _variances(chaotic, "backprop")
    assert backprop[0] < variance[0] and backprop[-1] > 1e6 * variance[-1]
    assert 5 < chaotic.crossover < 20


def test_what_is_recommended_where_it_is_chaotic(chaotic):
    chosen = chaotic.recommendation
    assert chosen.estimator in ("nres", "pes", "full_es")
    assert f"Use {chosen.estimator}" in chosen.sentence
    assert f"no more than {chaotic.crossover:.0f} steps" in chosen.sentence
    last = {c.estimator: c for c in chaotic.cells if c.length == 40}
    assert last["backprop"].reference == "full_es"
    first = {c.estimator: c for c in chaotic.cells if c.length == 5}
    assert first["nres"].reference == "backprop"
    # Windows of 5: the same runs, noise and sum as full ES. In 20 steps rounding has
    # not yet grown to what is measured.
    middle = {c.estimator: c.variance for c in chaotic.cells if c.length == 20}
    np.testing.assert_allclose(middle["nres"], middle["full_es"], 1e-2)


@pytest.mark.exhaustive
def test_backprop_is_best_where_differences_shrink():
    config = Diagnosis(
        lengths=(5, 40), truncation=5, particles=128, std=STD, runs=4, points=3
    )
    # Starts away from 1 - 1 / r, from where it takes runs long to get to the cycle.
    problem, theta = _logistic(3.2, 0.4, 0.6), jnp.float32(3.2)
    dynamics = measure_dynamics(problem, theta, config)
    assert dynamics.exponent[0] < -0.5
    names = ("backprop", "truncated_backprop", "full_es", "nres", "forward_gradient")
    samples = {name: sample_gradients(name, problem, theta, config) for name in names}
    for length in config.lengths:
        cells = _column(samples, length, config)
        assert all(c.reference == "backprop" for c in cells.values())
        for name in names[2:]:
            assert cells["backprop"].variance < cells[name].variance, name
    # What the windows before did to x has no part in truncated gradients.
    assert cells["truncated_backprop"].significant
    assert not cells["truncated_backprop"].usable
    assert cells["backprop"].usable


def test_the_orders_of_pes_and_nres():
    # x' = v . theta, the loss is x: the loss of window w is made by the perturbation of
    # window w - 1 alone. A call of PES accumulates w + 1 draws.
    v = jnp.array([1.0, -2.0, 0.5])
    size, d = float(jnp.sum(v**2)), 3
    problem = _problem(
        lambda theta, x: v @ theta, jnp.zeros(3), lambda key: jnp.float32(0.0)
    )
    config = Diagnosis(lengths=(2, 4, 16), truncation=1, particles=4096, std=0.1)
    names = ("backprop", "full_es", "pes", "nres")
    samples = {
        name: sample_gradients(name, problem, jnp.zeros(3), config) for name in names
    }
    for length in config.lengths:
        cells = _column(samples, length, config)
        share = (length - 1) / length
        draws = np.arange(2, length + 1)
        pes = size * (np.sum(draws * d + 2) / length - share**2)
        nres = size * (share * (d + 2) - share**2)
        np.testing.assert_allclose(cells["pes"].call_variance, pes, rtol=0.1)
        np.testing.assert_allclose(cells["nres"].call_variance, nres, rtol=0.1)
        for name in ("nres", "full_es"):  # (d + 1) |gradient|^2, whatever the length
            np.testing.assert_allclose(
                cells[name].variance, (d + 1) * share**2 * size, rtol=0.1
            )
        for name in names:
            c = cells[name]
            assert abs(c.mean_norm - share * math.sqrt(size)) < 4 * c.standard_error + (
                1e-5
            )
            assert c.usable and c.calls == (length if name in ("pes", "nres") else 1)
            steps = {"backprop": 1}.get(name, 2) * length
            assert c.inner_steps == steps


def test_windows_that_do_not_divide_the_episode_have_the_mean_of_its_steps():
    problem = _problem(
        lambda theta, x: x + theta, jnp.float32(0.0), lambda key: jnp.float32(0.0)
    )
    config = Diagnosis(lengths=(3, 7), truncation=5, particles=16, std=0.1)
    exact = sample_gradients("backprop", problem, jnp.float32(0.0), config)
    nres = sample_gradients("nres", problem, jnp.float32(0.0), config)
    full = sample_gradients("full_es", problem, jnp.float32(0.0), config)
    for length in config.lengths:
        # The loss after t steps is t theta.
        np.testing.assert_allclose(exact[length].gradients, (length - 1) / 2, rtol=1e-5)
        np.testing.assert_allclose(
            nres[length].gradients, full[length].gradients, rtol=1e-3
        )


def test_squared_mean():
    rng = np.random.default_rng(1)
    mean, spread = np.array([1.5, 0.0, -1.0, 0.5]), np.array([1.0, 2.0, 0.5, 0.1])
    found = [
        squared_mean(mean + spread * rng.standard_normal((24, 4))) for _ in range(4000)
    ]
    values = np.array([x.value for x in found])
    exact = float(mean @ mean)
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values))
    error = math.sqrt(np.mean([x.error**2 for x in found]))
    np.testing.assert_allclose(error, values.std(), rtol=0.15)
    null = [squared_mean(spread * rng.standard_normal((24, 4))) for _ in range(4000)]
    deviation = np.std([x.value for x in null])
    measured = math.sqrt(np.mean([x.null_error**2 for x in null]))
    np.testing.assert_allclose(measured, deviation, rtol=0.1)
    # Rarely taken for significant; a mean that is there is seen.
    assert np.mean([x.value > 4 * x.null_error for x in null]) < 0.02
    seen = squared_mean(mean + spread * rng.standard_normal((200, 4)))
    assert seen.value > 4 * seen.null_error


@pytest.mark.parametrize(
    "backprop, es, expected",
    [
        ([1, 1, 1], [2, 2, 2], None),
        ([4, 4, 4], [2, 2, 2], 1.0),
        ([0, 1, 16], [0, 4, 4], 2 * math.sqrt(2)),
        ([1, math.inf, math.inf], [2, 2, 2], 2.0),
    ],
)
def test_crossover(backprop, es, expected):
    found = crossover((1, 2, 4), backprop, es)
    assert found == (expected and pytest.approx(expected))


def test_what_is_not_finite_is_counted_and_left_out():
    rng = np.random.default_rng(0)
    config = Diagnosis(particles=16)

    def samples(bad):
        gradients = 1 + rng.standard_normal((16, 2))
        finite = np.ones(16, bool)
        finite[:bad] = False
        gradients[:bad] = np.nan
        return Samples(gradients, np.sum(gradients**2, -1), finite, 10, 1, 1)

    cells = {
        c.estimator: c
        for c in compare(
            {"backprop": samples(3), "full_es": samples(0), "pes": samples(16)}, config
        )
    }
    assert [cells[n].nonfinite for n in ("backprop", "full_es", "pes")] == [3, 0, 16]
    assert cells["backprop"].reference == "full_es"  # not all of backprop is there
    assert not cells["backprop"].usable and cells["full_es"].usable
    assert 0.5 < cells["backprop"].variance < 6
    assert cells["pes"].variance == math.inf and not cells["pes"].usable


TINY = "--lengths 2 4 --truncation 2 --particles 16 --runs 2 --points 3 --std 0.05"


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    line = f"diagnose learnable_sgd --family quadratic10 {TINY} --seed 3"
    assert main([*line.split(), "--out", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert "Variance of one particle" in out and "Lyapunov" in out
    content = json.loads((tmp_path / "d/diagnosis.json").read_text())
    words = " ".join(out.split())
    assert content["recommendation"]["sentence"] in words
    picture = (tmp_path / "d/diagnosis.svg").read_text()
    assert picture.startswith("<?xml") and "<path" in picture
    assert content["config"]["seed"] == 3 and content["meta_parameters"] == 1
    assert len(content["cells"]) == 2 * len(ESTIMATORS)
    assert {s["length"] for s in content["slices"]} == {2, 4}
    assert len(content["slices"]) == 2 * 2 * 3

    # One cell by hand: whole episodes of 4 steps by plain differentiation.
    family, optimizer = make_family("quadratic10"), l2o.learnable_sgd()
    theta = optimizer.init_theta(jax.random.key(3))

    @jax.jit
    def gradient(key):
        k_run = jax.random.split(jax.random.split(jax.random.fold_in(key, 0))[1], 1)[0]
        k_config, _, k_init, k_steps = jax.random.split(k_run, 4)
        task = family.task(family.sample(k_config), family.data)

        def objective(theta):
            tx = optimizer.bind(theta)
            inner, total = mt.inner_init(tx, task, k_init), 0.0
            for t in range(4):
                k_step = jax.random.fold_in(k_steps, t)
                inner, loss, _ = mt.inner_step(tx, task, inner, k_step)
                total += task.normalize(loss) / 4
            return total

        return jax.grad(objective)(theta)["log_lr"]

    keys = jax.random.split(jax.random.key(3), 16)
    gradients = np.array([gradient(key) for key in keys], np.float64)
    cells = {(c["estimator"], c["length"]): c for c in content["cells"]}
    cell = cells["backprop", 4]
    np.testing.assert_allclose(cell["mean_norm"], abs(gradients.mean()), rtol=1e-4)
    np.testing.assert_allclose(cell["variance"], gradients.var(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(
        cell["standard_error"], gradients.std(ddof=1) / 4, rtol=1e-4
    )
    # And the bias of one: mean of the differences, task by task.
    assert cells["truncated_backprop", 4]["reference"] == "backprop"
    assert cells["truncated_backprop", 2]["bias"] < 1e-6
    assert cells["truncated_backprop", 4]["bias"] > 0
    # A point of a slice through theta itself is the mean meta-loss there.
    middle = {s["losses"][1] for s in content["slices"] if s["length"] == 4}
    assert len(middle) == 1


@pytest.mark.parametrize(
    "line, words",
    [
        (
            "small_fc --family mnist",
            ["--family: unknown task 'mnist'", "l2o tasks"],
        ),
        ("nowhere", ["'nowhere'", "unknown optimizer", "small_fc", "velo"]),
        ("small_fc --options depth 3", ["depth", "hidden_size"]),
        ("small_fc --lengths 5 2", ["increasing", "(5, 2)"]),
        ("small_fc --lengths 0 2", ["positive"]),
        ("small_fc --lengths many", ["--lengths", "many"]),
        ("small_fc --particles 12", ["multiple of 8", "12"]),
        ("small_fc --std 0", ["std must be positive"]),
        ("small_fc --truncation 0", ["truncation must be positive"]),
        ("small_fc --stdd 1", ["--stdd", "mean --std"]),
    ],
)
def test_complaints_come_before_any_compilation(line, words, capsys):
    try:
        status = main(["diagnose", *line.split()])
    except SystemExit as done:
        status = done.code
    assert status == 2
    captured = capsys.readouterr()
    for word in words:
        assert word in captured.err + captured.out
