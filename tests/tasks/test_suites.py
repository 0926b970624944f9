"""Suites, the names of their tasks, and specs in files."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from l2o import tasks
from l2o.tasks import (
    DATASETS,
    DISTRIBUTIONS,
    SPLITS,
    Augmentation,
    TaskSpec,
    held_out,
    load_suite,
    named_tasks,
    suites,
    task_specs,
)

SUITES = suites()


def _models(suite):
    found = set()
    for spec in SUITES[suite].tasks.values():
        found.add((spec.kind, spec.options.get("model", "")))
    return found


def _datasets(suite):
    return {d for spec in SUITES[suite].tasks.values() for d in spec.datasets}


def test_suites_are_the_ones_that_are_documented():
    sizes = {name: len(suite.tasks) for name, suite in SUITES.items()}
    assert sizes == {
        "demo/train": 5,
        "demo/heldout": 4,
        "train/fast": 4,
        "train/mixed": 16,
        "train/layouts": 10,
        "train/broad": 30,
        "heldout/small": 18,
        "heldout/medium": 7,
        "axes": 17,
        "heldout/velodrome": 119,
        "convex": 25,
    }
    assert all(s.version == 1 and s.split in SPLITS for s in SUITES.values())
    assert all(s.steps > 0 and s.about for s in SUITES.values())


def test_names_of_tasks_are_unique_and_their_labels():
    names = [name for suite in SUITES.values() for name in suite.tasks]
    assert len(names) == len(set(names)) == len(named_tasks())
    for name, spec in named_tasks().items():
        assert spec.label == name and name not in SUITES


def test_specs_are_accepted_by_their_factories_and_survive_json():
    for name, spec in named_tasks().items():
        assert TaskSpec.from_json(spec.to_json()) == spec, name
    assert len({spec.digest() for spec in named_tasks().values()}) == len(named_tasks())


# A suite that changes is another version: whoever changes one on purpose raises it and
# records the new digest here.
DIGESTS = {
    "demo/train": "ad09397e3bc8",
    "demo/heldout": "7ec6f606facd",
    "train/fast": "8afcb27e5399",
    "train/mixed": "b13ff03dfa66",
    "train/layouts": "e2af614b79d6",
    "train/broad": "348df5d6233c",
    "heldout/small": "74fb743b5157",
    "heldout/medium": "4674d6d060fe",
    "heldout/velodrome": "f40a742394ed",
    "axes": "04182401a9c0",
    "convex": "8466c8858288",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_suites_do_not_change(name):
    suite = SUITES[name]
    assert _digest(suite) == DIGESTS[name]


def _digest(suite):
    content = {name: spec.to_dict() for name, spec in sorted(suite.tasks.items())}
    content = [suite.version, suite.seed, suite.steps, suite.metric, content]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def test_heldout_shares_no_model_and_no_data_with_the_fast_recipe():
    assert not _models("heldout/small") & _models("train/fast")
    assert not _datasets("heldout/small") & _datasets("train/fast")


def test_heldout_shares_no_data_with_any_training_suite():
    seen = set.union(
        *(_datasets(f"train/{name}") for name in ("fast", "mixed", "layouts", "broad"))
    )
    for name in ("heldout/small", "heldout/medium"):
        assert not _datasets(name) & seen
    assert seen & set(DATASETS) == seen - {"china", "flower"}


def test_what_is_held_out_is_known_whatever_it_is_called():
    for name in ("heldout/small", "heldout/medium", "demo/heldout"):
        assert all(map(held_out, SUITES[name].tasks.values()))
    for name in (
        *("train/fast", "train/mixed", "train/layouts", "train/broad"),
        "demo/train",
    ):
        assert not any(map(held_out, SUITES[name].tasks.values()))
    graphs = SUITES["heldout/small"].tasks["graphs"]
    harder = graphs.augmented(Augmentation("reduced_batch", {"fraction": 0.5}))
    mine = dataclasses.replace(harder, label="mine")
    assert held_out(mine) == "graphs of heldout/small"
    options = {"model": "mlp", "datasets": ("digits", "glyphs")}
    mine = TaskSpec("supervised", options, label="mine")
    assert held_out(mine) == "the data glyphs of heldout/small"


def test_broad_has_two_of_every_distribution_that_fits_the_budget():
    drawn = [name.removeprefix("broad-")[:-2] for name in SUITES["train/broad"].tasks]
    kinds = {kind.replace("_", "-") for kind in DISTRIBUTIONS} - {"transformer-lm"}
    assert sorted(drawn) == sorted([*kinds, *kinds])
    used = {
        a.name for s in SUITES["train/broad"].tasks.values() for a in s.augmentations
    }
    assert used >= {"reparametrize", "reduced_precision", "reduced_batch"}


def test_resolve_expands_suites_tasks_and_files(tmp_path):
    assert next(iter(task_specs(["mlp16", "train/fast"]))) == "mlp16"
    assert len(task_specs(["mlp16", "train/fast"])) == 5
    own = TaskSpec("quadratic", {"dim": 3}, label="mine")
    file = tmp_path / "own.json"
    file.write_text(json.dumps([own.to_dict()]))
    assert task_specs(str(file)) == {"mine": own}
    with pytest.raises(ValueError, match="mlp16: named twice"):
        task_specs(["mlp16", "demo/train"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "own.json is not valid JSON"),
        ('{"kind": "quadratic"}', "holds no list"),
        ('[{"kind": "quadratic"}]', "every task needs a label"),
        (
            '[{"kind": "quadratik", "label": "a"}]',
            "own.json: unknown kind of task 'quadratik'.* Did you mean 'quadratic'",
        ),
        ('[{"kind": "quadratic", "options": {"dmi": 1}}]', "no option dmi"),
        ('[{"kinds": "quadratic"}]', "'kind' is needed; not kinds"),
    ],
)
def test_resolve_says_what_is_wrong_with_a_file(tmp_path, content, message):
    file = tmp_path / "own.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        task_specs(str(file))


def test_tasks_can_be_named_without_flax():
    code = (
        "import sys, l2o.tasks as t; t.task_specs('train/broad'); t.quadratic(3);"
        "assert not {'flax', 'haiku', 'sklearn', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_met_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'mpl32';.*mean 'mlp32'"):
        tasks.make_family("mpl32")
    with pytest.raises(ValueError, match=r"unknown task 'train/fats'.*'train/fast'"):
        task_specs("train/fats")
    with pytest.raises(ValueError, match="unknown suite 'fast'; known: demo/train"):
        load_suite("fast")
    with pytest.raises(ValueError, match="there is no file .*none.json"):
        task_specs(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "quadratic", "options": [1, 2]},
        {"kind": "quadratic", "augmentations": ["es_gradient"]},
        {"kind": "quadratic", "augmentations": [{"nam": "es_gradient"}]},
        {"kind": "quadratic", "augmentations": [{"name": "es_gradient", "std": 1}]},
        {"kind": "quadratic", "augmentations": [{"name": "es_gradient", "options": 1}]},
    ],
)
def test_parts_of_a_spec_that_are_no_mappings(content):
    with pytest.raises(ValueError, match="mapping"):
        TaskSpec.from_dict(content)


def test_numbers_of_numpy_in_a_spec():
    options = {"dim": np.int64(3), "noise": np.float32(0.5), "rotated": np.True_}
    spec = TaskSpec("quadratic", options)
    assert spec == TaskSpec("quadratic", {"dim": 3, "noise": 0.5, "rotated": True})
    assert TaskSpec.from_json(spec.to_json()) == spec
    hidden = TaskSpec("image_mlp", {"datasets": ("digits",), "hidden": np.arange(1, 3)})
    assert hidden.options["hidden"] == (1, 2)


@pytest.mark.parametrize(
    ("labels", "match"), [(("a", "a"), "a: named twice"), ((5, "a"), "needs a label")]
)
def test_labels_in_a_file(labels, match, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"kind": "quadratic", "label": x} for x in labels]))
    with pytest.raises(ValueError, match=match):
        task_specs(str(path))


def test_tasks_are_listed_without_what_some_of_them_need(monkeypatch, capsys):
    from l2o.meta_train.cli._main import main

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tasks.data.python_docs.cache_clear()
    assert main(["tasks", "transformer-docs-pieces", "pinn-heat"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "word pieces need tokenizers" in printed.replace("│", " ")
    assert "1,185" in printed
