"""Evaluation, its numbers, and the report people look at."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import l2o
from l2o.meta_train import Evaluation, evaluate
from l2o.meta_train._demo import evaluate_frozen
from l2o.meta_train._report import table_rows, write_report
from l2o.meta_train._speedup import best_learning_rate, compare, smooth
from l2o.tasks import TaskFamily, stateless

CONFIG = Evaluation(
    tasks=("quadratic10",),
    steps=40,
    seeds=3,
    learning_rates=(1e-3, 0.3, 1e3),
    eval_every=10,
    eval_batches=2,
)


@pytest.fixture(scope="module")
def results():
    # SGD with a rate near the inverse of the largest curvature: beats Adam at 1e-3.
    tx = l2o.learnable_sgd().bind({"log_lr": jnp.log(0.9)})
    return evaluate(tx, CONFIG)


def test_curves_are_those_of_a_plain_loop(results):
    (result,) = results
    from l2o.meta_train import inner_init, inner_step
    from l2o.tasks import make_family

    family = make_family("quadratic10")
    k_config, k_init, k_steps, _ = jax.random.split(jax.random.key(1), 4)
    task = family.task(family.sample(k_config), family.data)
    for tx, curves in (
        (optax.sgd(0.9), result.learned),
        (optax.adam(result.adam_learning_rate), result.adam),
    ):
        tx = optax.with_extra_args_support(tx)
        step = jax.jit(lambda state, key, tx=tx: inner_step(tx, task, state, key))
        state = inner_init(tx, task, k_init)
        losses = []
        for t in range(CONFIG.steps):
            if t % 10 == 0:
                losses.append(task.loss(state.params, (), k_init, 0.0)[0])
            state, *_ = step(state, jax.random.fold_in(k_steps, t))
        losses.append(task.loss(state.params, (), k_init, 0.0)[0])
        # Quadratic without noise: every evaluation batch has the same loss.
        np.testing.assert_allclose(curves["train"][1], losses, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(curves["test"][1], losses, rtol=1e-4, atol=1e-7)


def test_adam_gets_the_best_rate_of_the_grid(results):
    (result,) = results
    assert result.adam_learning_rate == 0.3
    assert min(result.adam_grid, key=result.adam_grid.get) == 0.3
    assert list(result.steps) == [0, 10, 20, 30, 40]


def test_a_diverging_rate_is_not_chosen():
    grid = np.ones((3, 2, 4))
    grid[0] *= 0.5
    grid[0, 1, -1] = np.nan  # the lowest, but one seed diverged
    grid[1] *= 0.7
    best, finals = best_learning_rate(grid)
    assert best == 1 and finals[0] == np.inf


def test_smoothing_is_a_trailing_mean_of_up_to_five_points():
    x = np.arange(8.0) ** 2
    expected = [np.mean(x[max(0, i - 4) : i + 1]) for i in range(8)]
    np.testing.assert_allclose(smooth(x), expected)


def test_speedup_by_hand():
    steps = np.arange(0, 101, 10)
    slow = np.linspace(1.0, 0.0, 11)  # loss 1 - step / 100
    fast = np.maximum(1.0 - steps / 50, 0.0)
    c = compare(steps, np.stack([fast, slow]), np.stack([slow, fast]))
    # Smoothed finals: mean of the last five points.
    assert np.allclose(c.adam_final, [0.2, 0.0])
    # fast's trailing mean falls to 0.2 at step 60 (0.6 0.4 0.2 0 0 -> .24 at 60?).
    trailing = [np.mean(fast[max(0, i - 4) : i + 1]) for i in range(11)]
    first = steps[np.argmax(np.array(trailing) <= 0.2)]
    assert c.speedup[0] == 100 / first
    assert np.isnan(c.speedup[1])  # slow never reaches fast's 0
    assert c.adam_fraction[1] == first / 100


def test_diverged_runs_are_named_in_the_table(results):
    (result,) = results
    curves = result.learned["train"].copy()
    curves[2, -1] = np.nan
    broken = dataclasses.replace(result, learned={"train": curves})
    (row,) = table_rows([broken])
    assert "diverged in 1 of 3" in row[1]
    assert row[5] == "2/3"


def test_a_worse_optimizer_is_reported_as_behind():
    tx = l2o.learnable_sgd().bind({"log_lr": jnp.log(1e-3)})
    (row,) = table_rows(evaluate(tx, CONFIG))
    assert row[4:6] == ("<1 (<1–<1)", "0/3")
    assert 0 < int(row[6].removesuffix("%")) < 100


def test_own_families_and_progress():
    task = stateless(
        init=lambda key: jnp.ones(2),
        batch=lambda key, split: (),
        loss=lambda x, key, batch: jnp.sum(x**2),
    )
    family = TaskFamily(lambda key: (), lambda config, data: task, name="mine")
    seen = []
    (result,) = evaluate(
        optax.sgd(0.1), CONFIG, families=[family], on_progress=lambda *x: seen.append(x)
    )
    assert result.task == "mine" and seen == [(0, 2), (1, 2), (2, 2)]


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.cells, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.links += [attributes[k] for k in ("src", "href") if k in attributes]
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_whole_evaluation_of_a_frozen_optimizer(tmp_path):
    optimizer = l2o.learnable_sgd(learning_rate=0.5)
    folder = l2o.save("frozen", optimizer, optimizer.init_theta(jax.random.key(0)))
    records = [
        {"step": i, "family": f"family{i % 2}", "meta_loss": 1 / (1 + i)}
        for i in range(1, 9)
    ]
    (tmp_path / "run").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    console = Console(record=True, width=200)
    path = evaluate_frozen(
        folder,
        CONFIG,
        tmp_path / "out",
        run_folder=tmp_path / "run",
        console=console,
    )
    text = console.export_text()
    assert str(path) in text and "quadratic10" in text
    assert "n = 3 seeds; Adam's grid: 0.001, 0.3, 1000" in text

    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["evaluation"]["seeds"] == 3
    curve = np.array(stored["results"][0]["learned"]["train"])
    assert curve.shape == (3, 5)

    html = path.read_text()
    page = _Page()
    page.feed(html)
    # Self-contained: every picture is inside, with words for who cannot see it.
    assert len(page.images) == 2
    assert all(image["alt"] for image in page.images)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for image in page.images:
        svg = base64.b64decode(image["src"].split(",")[1]).decode()
        assert svg.lstrip().startswith("<?xml") and "</svg>" in svg
    # The page's numbers are the terminal's, which are those of the stored curves.
    final = f"{np.median(smooth(curve)[:, -1]):.3g}"
    assert any(cell.startswith(final + " (") for cell in page.cells)
    assert re.search(rf"\b{re.escape(final)}\b", text)


def test_the_page_escapes_what_it_is_given(results, tmp_path):
    card = {
        "optimizer": {"name": "<script>alert(1)</script>"},
        "meta_parameters": 1,
        "card": {},
    }
    path = tmp_path / "report.html"
    write_report(path, results, card=card, evaluation=CONFIG, notes=["<b>&"])
    html = path.read_text()
    assert (
        "<script>" not in html and "&lt;script&gt;" in html and "&lt;b&gt;&amp;" in html
    )


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"tasks": ("mnist",)}, "Evaluation.tasks: unknown task 'mnist'"),
        ({"learning_rates": ()}, "empty grid"),
        ({"learning_rates": (0.1, -1.0)}, "must be positive"),
        ({"steps": 15}, "multiple of eval_every"),
        ({"seeds": 0}, "seeds must be positive"),
        ({"sedes": 1}, "unknown option sedes"),
    ],
)
def test_bad_evaluation(bad, match):
    with pytest.raises(ValueError, match=match):
        Evaluation(**bad)
