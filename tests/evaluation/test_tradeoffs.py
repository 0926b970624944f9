"""The study of memory, compute and performance: costs, fronts, resuming, results."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from rich.console import Console

import l2o
from l2o.meta_train.tradeoffs import (
    Options,
    _costs,
    _performance,
    _times,
    figures,
    grid,
    load_study,
    pareto,
    study,
)
from l2o.meta_train.tradeoffs import (
    _study as _study_module,
)
from l2o.meta_train.tradeoffs._costs import count_costs
from l2o.meta_train.tradeoffs._grid import identity_of
from l2o.meta_train.tradeoffs._program import abstract
from l2o.meta_train.tradeoffs._rows import common_size, score_of
from l2o.meta_train.tradeoffs._scales import scale_of
from l2o.meta_train.tradeoffs._tables import ablations, cost_table
from l2o.meta_train.tradeoffs._times import time_update


@pytest.mark.parametrize(
    ("name", "bytes_", "flops"),
    [
        # docs/performance.md, roofline: about 270 with features.
        ("small_fc", 16, 270),
        ("learnable_adam", 8, 13),
    ],
)
def test_costs_are_those_of_closed_forms(name, bytes_, flops):
    found = count_costs(grid()[name].optimizer)
    assert found["state_bytes"] == bytes_
    assert flops / 2 < found["flops"] < flops * 2
    # The gradient is donated nowhere: an update of the same size may be temporary.
    assert 0 <= found["temporary_bytes"] < 20
    theta = {"small_fc": 197, "learnable_adam": 4}
    assert found["meta_parameters"] == theta[name]


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        ("small_fc m1", 8),
        ("small_fc bf16", 10),
        ("small_fc factored", 12),
        ("small_fc bf16 factored", 6),
        ("mlp", 24),
        ("mlp m1", 4),
        ("learnable_sgd", 0),
        ("lstm", 320),
    ],
)
def test_state_bytes_by_hand(name, bytes_, monkeypatch):
    monkeypatch.setattr(_costs, "_flops", lambda *_: 0.0)
    monkeypatch.setattr(_costs, "_temporaries", lambda *_: 0.0)
    fake = type("Fake", (), {"kernels": False})
    monkeypatch.setattr(_costs, "update_program", lambda *_: fake)
    assert count_costs(grid()[name].optimizer)["state_bytes"] == bytes_


def test_wider_networks_take_the_flops_of_their_layers():
    flops = [_costs._flops(grid()[x].optimizer, 64) for x in ("mlp", "mlp w4")]
    # Of 19 inputs 8 are of each parameter; 8 x w, w x w and w x 2 multiply-adds.
    layers = [2 * (8 * w + w * w + w * 2) for w in (32, 4)]
    assert (flops[0] - flops[1]) / 64**2 == pytest.approx(
        layers[0] - layers[1], rel=0.1
    )


def test_every_variant_can_be_initialised_and_named_again():
    seen = set()
    for name, variant in grid().items():
        abstract(variant.optimizer, (8, 8))
        identity = identity_of(variant.optimizer)
        again = l2o.make(identity["name"], **identity["arguments"])
        assert identity_of(again) == identity
        seen.add(json.dumps(identity))
        assert name.startswith(variant.architecture)
    assert len(seen) == len(grid())
    assert {x.architecture for x in grid().values()} == set(l2o.factories())


def test_an_update_is_timed_beside_adams():
    found = time_update(grid()["learnable_adam"].optimizer, 1000, 4)
    assert found["parameters"] == 31**2 and found["n"] == 4
    assert 0 < found["low"] <= found["ratio"] <= found["high"]
    # It has no kernels.
    assert found["xla_ratio"] == found["ratio"]


def test_what_is_too_large_is_not_timed(monkeypatch):
    costs = {"state_bytes": 8, "temporary_bytes": 1, "xla_temporary_bytes": 4}
    assert _times.memory(costs, 10) == 10 * (8 + 8 + 2 * (8 + 8) + 4)


def test_pareto_by_hand():
    points = np.array([[1, 5], [2, 3], [2, 4], [3, 3], [4, 1], [2, 3], [9, np.nan]])
    assert pareto(points) == [0, 1, 5, 4]
    assert pareto(np.array([[np.inf, 0.0]])) == []
    assert pareto(np.zeros((0, 2))) == []


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pareto_is_what_brute_force_finds(dimensions):
    rng = np.random.default_rng(dimensions)
    for _ in range(50):
        points = rng.integers(0, 6, (rng.integers(1, 20), dimensions)).astype(float)
        points[rng.random(points.shape) < 0.05] = np.nan

        def beaten(x, points=points):
            return any(
                all(a <= b for a, b in zip(y, x)) and any(y < x)
                for y in points
                if np.isfinite(y).all()
            )

        expected = [
            i for i, x in enumerate(points) if np.isfinite(x).all() and not beaten(x)
        ]
        found = pareto(points)
        assert sorted(found) == expected
        first = points[found, 0]
        assert all(a <= b for a, b in itertools.pairwise(first))


def _run(scores, **rest):
    return {"scores": scores, "diverged": 1, **rest}


def test_scores_of_several_meta_trainings():
    assert score_of([]) is None
    found = score_of(
        [
            _run({"a": [0.0, 1.0], "b": [1.0, 1.0]}, seconds=2.0, inner_steps=7),
            _run({"a": [0.0, 0.0], "b": [0.5, 0.5]}, seconds=4.0, inner_steps=7),
        ]
    )
    assert found["mean"] == 0.5
    assert (found["low"], found["high"]) == (0.25, 0.75)
    assert (found["seeds"], found["runs"], found["diverged"]) == (2, 8, 2)
    assert found["tasks"] == {"a": 0.25, "b": 0.75}
    assert (found["seconds"], found["inner_steps"]) == (3.0, 7)


@pytest.fixture
def measured(monkeypatch):
    """Made-up measurements, and what was asked for."""
    asked = []

    def costs(optimizer):
        asked.append(("costs", optimizer.name))
        flops = 100.0 + len(str(optimizer.arguments))
        return {
            "meta_parameters": 1234,
            "state_bytes": 16.0,
            "tensor_bytes": 4.0,
            "flops": flops,
            "tensor_flops": 1.0,
            "temporary_bytes": 4.25,
            "xla_temporary_bytes": 4.5,
            "kernels": True,
        }

    def times(optimizer, parameters, updates):
        asked.append(("times", optimizer.name, parameters))
        ratio = 1.5 + len(str(optimizer.arguments)) / 1000
        return {
            "parameters": parameters,
            **{"ratio": ratio, "low": ratio - 0.25, "high": ratio + 0.25},
            **{"xla_ratio": 2 * ratio, "xla_low": ratio, "xla_high": 3 * ratio},
            **{"n": updates, "seconds": 1e-3, "adam_seconds": 5e-4},
            "compile_seconds": 0.3,
        }

    def performance(variant, training, evaluation, out):
        asked.append(("performance", variant.name, training.seed))
        score = 0.5 + len(variant.name) / 100
        return _run({"deep_mlp": [score, score + training.seed / 10]})

    monkeypatch.setattr(_costs, "count_costs", costs)
    monkeypatch.setattr(_times, "time_update", times)
    monkeypatch.setattr(_performance, "perform", performance)
    return asked


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(_study_module, "figures", lambda rows: [])


def _study(out, **options):
    console = Console(record=True, width=80, file=io.StringIO())
    path = study("smoke", out, console=console, options=Options(**options))
    return load_study(path)["rows"], console.export_text()


def test_a_second_call_measures_nothing_and_a_third_what_was_deleted(
    tmp_path, measured
):
    rows, _ = _study(tmp_path, seeds=2)
    assert [row["name"] for row in rows] == [
        "optax.adam",
        *scale_of("smoke").variants,
    ]
    stages = [x[0] for x in measured]
    # Cheap ones first; Adam is not meta-trained twice.
    assert stages == ["costs"] * 4 + ["times"] * 8 + ["performance"] * 7
    seeds = [x[2] for x in measured if x[0] == "performance"]
    assert seeds == [0] * 4 + [1] * 3
    measured.clear()
    again, _ = _study(tmp_path, seeds=2)
    assert measured == [] and again == rows
    for path in (tmp_path / "measurements").iterdir():
        content = json.loads(path.read_text())
        if content["setting"]["stage"] == "times":
            gone = content["setting"]
            path.unlink()
            break
    _study(tmp_path, seeds=2)
    assert measured == [("times", gone["optimizer"]["name"], gone["parameters"])]


def test_a_study_that_is_ended_keeps_what_it_has(
    tmp_path, measured, undrawn, monkeypatch
):
    real = _performance.perform

    def perform(variant, *rest):
        if variant.name == "celo2_base":
            raise KeyboardInterrupt
        return real(variant, *rest)

    monkeypatch.setattr(_performance, "perform", perform)
    with pytest.raises(KeyboardInterrupt):
        _study(tmp_path)
    rows = {row["name"]: row for row in load_study(tmp_path)["rows"]}
    assert rows["small_fc"]["score"] is not None
    assert rows["celo2_base"]["score"] is None
    monkeypatch.setattr(_performance, "perform", real)
    measured.clear()
    rows, _ = _study(tmp_path)
    assert all(row["score"] for row in rows)
    assert ("performance", "small_fc", 0) not in measured


def test_performance_depends_on_budgets_and_weights_on_training_alone(tmp_path):
    scale = scale_of("smoke")
    small_fc = scale.variants["small_fc"]
    training = _performance.training_setting(small_fc, scale.training)
    longer = type(scale.training)(
        **{**_fields(scale.training), "outer_steps": scale.training.outer_steps + 1}
    )
    assert _performance.training_setting(small_fc, longer) != training
    other = _performance.training_setting(scale.variants["celo2_base"], scale.training)
    assert other != training and other["config"] == training["config"]
    json.dumps(_performance.evaluation_setting(scale.evaluation))


def _fields(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: text.replace('"version": 1', '"version": 0', 1), "version 0"),
        (lambda text: text.replace('"stage": "', '"stage": "x'), "digest"),
    ],
)
def test_a_damaged_measurement_is_named(tmp_path, measured, undrawn, damage, message):
    _study(tmp_path, until="costs", variants=("mlp",))
    for path in (tmp_path / "measurements").iterdir():
        path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"measurements/\w+\.json.*{message}.*delete"):
        _study(tmp_path, until="costs", variants=("mlp",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace("l2o tradeoffs", "other"), "damaged"),
        (
            lambda text: text.replace(
                '"version": 2,\n  "scale', '"version": 7,\n  "scale'
            ),
            "version 7",
        ),
    ],
)
def test_a_damaged_results_file_is_named(tmp_path, measured, undrawn, damage, message):
    _study(tmp_path, until="costs", variants=("mlp",))
    path = tmp_path / "tradeoffs.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"tradeoffs\.json.*{message}.*delete it"):
        load_study(tmp_path)


def test_unknown_names_list_the_known(tmp_path):
    console = Console(quiet=True)
    with pytest.raises(ValueError, match="'huge'; known: smoke, laptop, cluster"):
        study("huge", tmp_path, console=console)
    for options, message in (
        (
            {"variants": ("small_fc w5",)},
            "'small_fc w5'; the scale.* Did you mean 'small_fc w",
        ),
        ({"seeds": 0}, "seeds must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            study("smoke", tmp_path, console=console, options=Options(**options))
    assert list(tmp_path.iterdir()) == []


def test_tables_say_what_the_json_says(tmp_path, measured, undrawn):
    rows, text = _study(tmp_path, seeds=2)
    size = common_size(rows)
    assert size == 10**5
    first, _, rest = text.partition("Results, times at 100,000 parameters")
    second, _, third = rest.partition("Without a group")
    for row in rows:
        at = next(x for x in row["times"] if x["parameters"] == size)
        costs, score = row["costs"], row["score"]
        _has_line(
            first,
            row["name"],
            f"{costs['meta_parameters']:,}",
            f"{costs['state_bytes']:.4g}",
            f"{costs['temporary_bytes']:.4g}",
            f"{costs['xla_temporary_bytes']:.4g}",
            f"{costs['flops']:.4g}",
        )
        spread = f" ({score['low']:.3f}-{score['high']:.3f})"
        _has_line(
            second,
            row["name"],
            f"{at['ratio']:.2f} ({at['low']:.2f}-{at['high']:.2f})",
            f"{at['xla_ratio']:.2f}",
            f"{at['compile_seconds']:.1f}",
            f"{score['mean']:.3f}" + (spread if score["seeds"] > 1 else ""),
            f"{score['seeds']}",
        )
    (ablation,) = ablations(rows)
    known = {row["name"]: row for row in rows}
    whole, less = known["celo2_base"], known["celo2_base -m"]
    assert ablation["features"] == "m"
    assert ablation["flops"] == whole["costs"]["flops"] - less["costs"]["flops"]
    assert ablation["score"] == less["score"]["mean"] - whole["score"]["mean"]
    assert f"{ablation['score']:+.3f}" in third


def _has_line(table, *cells):
    """Fails unless a line has these cells and no others."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    assert list(cells) in lines


def test_figures_draw_the_front_with_names_and_say_it_in_words(tmp_path, measured):
    rows, _ = _study(tmp_path, seeds=2)
    found = {title: (figure, words) for title, figure, words in figures(rows)}
    assert list(found) == [
        "Performance against state",
        "Performance against FLOPs",
        "Performance against update time",
        "Performance against update time in plain JAX",
        "Update time against tensor size",
        "Without a group of features",
    ]
    figure, words = found["Performance against FLOPs"]
    learned = [row for row in rows if row["name"] != "optax.adam"]
    points = [(row["costs"]["flops"], -row["score"]["mean"]) for row in learned]
    front = [learned[i]["name"] for i in pareto(np.array(points))]
    assert words.partition("front: ")[2].count("(") == len(front)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert set(front) <= set(names)
    (line,) = (x for x in figure.axes[0].lines if x.get_label() == "front")
    np.testing.assert_allclose(
        line.get_xdata(), sorted(p[0] for p in points)[: len(front)]
    )
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"performance_against_state.svg", "performance_against_state.png"} <= drawn
    assert len(drawn) == 2 * len(found)


def test_names_of_points_that_are_close_do_not_overlap(tmp_path, measured, undrawn):
    rows, _ = _study(tmp_path)
    crowd = []
    for i in range(12):
        row = json.loads(json.dumps(rows[1]))
        row["name"] = f"optimizer {i}"
        row["costs"]["flops"] = 100.0 + i % 3
        row["score"]["mean"] = 0.5 + i / 50
        crowd.append(row)
    figure = next(f for title, f, _ in figures(crowd) if title.endswith("FLOPs"))
    texts = figure.axes[0].texts
    assert len(texts) > 6
    for text in texts:
        text.set_path_effects([])
    boxes = [super(type(x), x).get_window_extent() for x in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_without_results_there_is_no_figure(tmp_path, measured, undrawn):
    rows, text = _study(tmp_path, until="costs")
    assert [title for title, *_ in figures(rows)] == ["Without a group of features"]
    assert cost_table(rows).row_count == 4 and "nan" not in text


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_smoke_study(tmp_path):
    rows, _ = _study(tmp_path)
    by_name = {row["name"]: row for row in rows}
    assert by_name["optax.adam"]["score"]["mean"] == pytest.approx(1, abs=1e-3)
    assert by_name["optax.adam"]["costs"]["state_bytes"] == 8
    assert by_name["celo2_base -m"]["costs"]["meta_parameters"] == 323
    for row in rows:
        assert [x["parameters"] for x in row["times"]] == [31**2, 316**2]
        assert 0 <= row["score"]["mean"] <= 2
    # 4 outer steps of 2 antithetic pairs, each for at most 10 inner steps.
    assert 0 < by_name["small_fc"]["score"]["inner_steps"] <= 4 * 2 * 2 * 10
    before = (tmp_path / "tradeoffs.json").read_text()
    again, _ = _study(tmp_path)
    assert again == rows
    after = json.loads((tmp_path / "tradeoffs.json").read_text())
    assert {**after, "origin": None} == {**json.loads(before), "origin": None}
