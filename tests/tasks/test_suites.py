"""Suites, names, sampled specs and their costs."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, KEYS, few

from l2o import tasks
from l2o.tasks import (
    DATASETS,
    DISTRIBUTIONS,
    SPLITS,
    Augmentation,
    TaskSpec,
    _distributions,
    held_out,
    load_suite,
    named_tasks,
    sample_spec,
    suites,
    task_specs,
)
from l2o.tasks._distributions import log_int

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
        "train/broad": 30,
        "heldout/small": 18,
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
    "train/broad": "348df5d6233c",
    "heldout/small": "74fb743b5157",
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
        *(_datasets(f"train/{name}") for name in ("fast", "mixed", "broad"))
    )
    assert not _datasets("heldout/small") & seen
    assert seen & set(DATASETS) == seen - {"china", "flower"}


def test_what_is_held_out_is_known_whatever_it_is_called():
    for name in ("heldout/small", "demo/heldout"):
        assert all(map(held_out, SUITES[name].tasks.values()))
    for name in ("train/fast", "train/mixed", "train/broad", "demo/train"):
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
    with pytest.raises(ValueError, match="cannot be read"):
        task_specs(str(tmp_path / "none.json"))


def _shapes(family, split):
    def one(key, data):
        task = family.task(family.sample(key), data)
        params, state = task.init(key)
        batch = task.batch(key, split)
        loss, (new_state, aux) = task.loss(params, state, key, batch)
        return params, (state, new_state), batch, loss, task.normalize(loss), aux

    return jax.eval_shape(one, KEY, family.data)


def _batch(family, split):
    def one(key, data):
        return family.task(family.sample(key), data).batch(key, split)

    return jax.eval_shape(one, KEY, family.data)


def check_contract(family):
    """What every family keeps, by shapes alone."""
    batches = []
    for split in SPLITS:
        batch = _batch(family, split)
        if batch in batches:  # of which all else follows
            batches.append(batch)
            continue
        params, (state, new), batch, loss, normalized, aux = _shapes(family, split)
        assert all(
            jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params)
        )
        assert loss.shape == normalized.shape == ()
        assert loss.dtype == normalized.dtype == jnp.float32
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), new
        )
        assert all(x.shape == () for x in aux.values())
        batches.append(batch)
    structures = {jax.tree.structure(batch) for batch in batches}
    assert len(structures) == 1
    return batches


_CHECKED = [
    *SUITES["demo/train"].tasks,
    *SUITES["demo/heldout"].tasks,
    *SUITES["heldout/small"].tasks,
    *SUITES["train/broad"].tasks,
    *SUITES["convex"].tasks,
]


# The second of a kind, drawn with other sizes.
_SECOND = [n for n in _CHECKED if "broad" in n and n.endswith("-1")]


@pytest.mark.parametrize("name", few(_CHECKED, set(_CHECKED) - set(_SECOND)))
def test_named_task_keeps_the_contract(name):
    family = tasks.make_family(name)
    assert family.name == name
    batches = check_contract(family)
    if name not in ("l2o-pa-logistic-breast-cancer",):  # a batch is all there is
        assert all(batch == batches[0] for batch in batches)


@pytest.mark.parametrize("name", [n for n in _CHECKED if "broad" not in n])
def test_named_task_compiles_no_dataset_in(name):
    family = tasks.reparametrize(tasks.make_family(name), "global")

    def one(key, data):
        task = family.task(family.sample(key), data)
        return task.loss(*task.init(key), key, task.batch(key, "train"))

    constants = jax.make_jaxpr(one)(KEY, family.data).consts
    assert sum(np.size(x) for x in constants) < 3000


_CLASSES = {"cifar100": 100, "food101": 101}
_VELODROME = SUITES["heldout/velodrome"].tasks
_FEW = (
    "ImageMLP_Cifar10_128x128_Dropout05_Relu_MSE",
    "ImageMLPAE_Cifar10_256x256x256_bs1024",
    "Conv_Cifar10_32x64x64_batchnorm",
    "Resnet_MultiRuntime_10",
    "VIT_Cifar100_skinnydeep",
    "MLPMixer_Cifar100_tiny16",
    "TransformerLM_LM1B_MultiRuntime_11",
    "RNNLM_wikipediaenbytes_Patch32_GRU256_Embed128",
    "ESWrapped_1pair_ImageMLP_Cifar10BW8_Relu32",
    # Not that of `train_learned_optimizer`, of which `test_families` has one.
)


@pytest.fixture
def standins(monkeypatch):
    """Data of the right shapes in place of what has to be prepared."""

    def images(name):
        classes = _CLASSES.get(name, 1000 if "imagenet" in name else 10)
        native = {"m": 28, "c": 32, "f": 64}[name[0]] if "net" not in name else 64

        def load(size=native, grey=True):
            x = np.broadcast_to(np.float32(0.5), (1024, size, size, 1 if grey else 3))
            y = np.arange(1024, dtype=np.int32) % classes
            return tasks.Dataset(*({"x": x, "y": y} for _ in SPLITS))

        return load

    def texts(length=32, vocabulary=None):
        x = np.broadcast_to(np.int32((vocabulary or 256) - 1), (1024, length))
        return tasks.Dataset(*({"x": x, "y": x} for _ in SPLITS))

    for name in {d for spec in _VELODROME.values() for d in spec.datasets}:
        loader = texts if name in ("lm1b", "wikipedia") else images(name)
        monkeypatch.setitem(DATASETS._own, name, loader)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in _FEW else pytest.mark.exhaustive)
        for name in _VELODROME
    ],
)
def test_known_task_keeps_the_contract(name, standins):
    family = tasks.make_family(name)
    params, (state, _), _, loss, normalized, _ = _shapes(family, "train")
    assert loss.shape == normalized.shape == () and loss.dtype == jnp.float32
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert parameters == _PARAMETERS.get(name, parameters)
    assert bool(jax.tree.leaves(state)) == (
        "esnet" in name or "batchnorm" in name.lower()
    )


def _resnet(stem, blocks, channels):
    """Parameters of a pre-activation bottleneck ResNet with 1000 classes."""
    width, total = 64, stem * stem * 3 * 64
    for count, out in zip(blocks, channels):
        for block in range(count):
            inner = out // 4
            total += width * out if block == 0 else 0  # projection
            total += width * inner + 9 * inner**2 + inner * out
            total += 2 * (width + 2 * inner)  # norms before each convolution
            width = out
    return total + 2 * width + 1000 * width + 1000


# By hand, from the sizes that are published.
_PARAMETERS = {
    "Resnet_MultiRuntime_0": _resnet(3, (1, 1, 1, 1), (8, 16, 16, 16)),
    "Resnet_MultiRuntime_10": _resnet(5, (1, 1, 3, 4), (256, 512, 1024, 1024)),
    "ImageMLP_Cifar10_128x128_Dropout05_Relu_MSE": 3072 * 128 + 128 * 130 + 1290,
    "ESWrapped_1pair_ImageMLP_Cifar10BW8_Relu32": 64 * 32 + 32 + 330,
    # Convolutions 3-32-64-64 have 56 320 parameters; of norms, only scale and shift.
    "Conv_Cifar10_32x64x64_batchnorm": 896 + 18_496 + 36_928 + 2 * 160 + 650,
    "RNNLM_wikipediaenbytes_Patch32_GRU256_Embed128": (
        256 * 128 + 3 * 256 * (128 + 256 + 1) + 256 + 257 * 256
    ),
}


def test_log_int_never_draws_its_upper_end():
    rng = np.random.default_rng(0)
    drawn = np.array([log_int(rng, 2, 8) for _ in range(4000)])
    assert set(drawn) == set(range(2, 8))
    # Log-uniform: as many below 4 as above.
    assert abs(np.mean(drawn < 4) - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_sampled_specs_are_decided_by_their_key_and_within_their_ranges():
    kinds = ["image_mlp", "image_autoencoder", "table", "coordinates"]
    drawn = [sample_spec(key, kinds, augment=True) for key in KEYS[:60]]
    assert drawn == [sample_spec(key, kinds, augment=True) for key in KEYS[:60]]
    assert len({spec.digest() for spec in drawn}) > 50
    mlps = [s for s in drawn if s.options.get("model") == "mlp" and "data" in s.options]
    assert len(mlps) > 5
    for spec in mlps:
        hidden = spec.options["options"]["hidden"]
        assert len(hidden) <= 4 and all(8 <= width < 128 for width in hidden)
        assert 4 <= spec.options["data"]["size"] < 32
        assert 4 <= spec.options["batch_size"] < 512
    assert any(spec.augmentations for spec in drawn)
    for spec in drawn:
        assert TaskSpec.from_json(spec.to_json()) == spec


def test_a_budget_is_respected_or_said_to_be_too_small():
    accept = tasks.within(parameters=600)
    for key in KEYS[:5]:
        spec = sample_spec(key, ["table"], accept=accept)
        assert tasks.parameter_count(spec.family()) <= 600
    with pytest.raises(ValueError, match=r"none of 512 draws of table was accepted"):
        sample_spec(KEY, ["table"], accept=lambda spec: False)
    with pytest.raises(ValueError, match="unknown distribution 'mlps'; known: image_"):
        sample_spec(KEY, ["mlps"])


def test_velo_mixture_draws_a_step_time_and_keeps_to_it(monkeypatch):
    drawn = []

    def sample_spec(key, kinds, *, augment, accept):
        drawn.append((accept, kinds))

    monkeypatch.setattr(_distributions, "within", lambda seconds: seconds)
    monkeypatch.setattr(_distributions, "sample_spec", sample_spec)
    for key in KEYS[:300]:
        tasks.velo_mixture(key, slower=10.0)
    budgets = [seconds for seconds, _ in drawn]
    shares = np.array([budgets.count(10 * s) for s in (2e-5, 1e-4, 4e-4, 1e-3)]) / 300
    weights = np.array([0.65, 0.3, 0.1, 0.05]) / 1.1
    assert np.all(abs(shares - weights) < 4 * np.sqrt(weights * (1 - weights) / 300))
    for seconds, kinds in drawn:
        assert len(kinds) == (9 if seconds > 1.1e-3 else 5)
        assert set(kinds) <= set(DISTRIBUTIONS)
    with pytest.raises(ValueError, match="phases 1 and 2, not 3"):
        tasks.velo_mixture(KEY, 3)


def test_cost_is_counted_timed_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    small, large = (
        TaskSpec("image_mlp", {"datasets": ("digits",), "hidden": (width,)})
        for width in (8, 16)
    )
    assert tasks.remembered_cost(small) is None
    cost = tasks.spec_cost(small)
    assert cost.parameters == 64 * 8 + 8 + 8 * 10 + 10 and cost.seconds is None
    # Forward and back: six operations per weight and example, but for the first layer,
    # whose inputs need no gradient.
    assert 4 * 64 * cost.parameters < cost.flops < 8 * 64 * cost.parameters
    assert tasks.spec_cost(large).flops > 1.5 * cost.flops
    assert tasks.remembered_cost(small) == cost
    timed = tasks.spec_cost(small, measure=True)
    assert timed.seconds > 0 and timed[:3] == cost[:3]
    # What is remembered is used, and what is damaged found again.
    monkeypatch.setattr(tasks._cost, "step_cost", None)
    assert tasks.spec_cost(small, measure=True) == timed
    monkeypatch.undo()
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    for file in (tmp_path / "costs").iterdir():
        file.write_text("{")
    assert tasks.spec_cost(small) == cost


def test_a_budget_in_operations_refuses_what_costs_more(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    spec = TaskSpec("quadratic", {"dim": 1000})
    assert tasks.within(flops=1e7)(spec)
    assert tasks.within(flops=1e7, bytes=1e7)(spec)
    assert not tasks.within(flops=1e3)(spec)
    assert not tasks.within(bytes=1e3)(spec)
    assert not tasks.within(parameters=999)(spec)
    assert not tasks.within(seconds=0.0)(TaskSpec("quadratic", {"dim": 3}))


def test_a_bound_on_parameters_may_be_above_the_default():
    wide = TaskSpec("quadratic", {"dim": 20_000_000})
    assert not tasks.within()(wide)
    assert tasks.within(parameters=5e7)(wide)


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


def test_batches_of_texts_fit_their_splits(monkeypatch):
    class Large(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            # No word pieces, and else the end of every range.
            return 0.9 if (low, high) == (0.0, 1.0) else high - 1e-6

    spec = _distributions.rnn_lm(Large(np.random.PCG64(0)))
    assert spec.options["length"] == 511
    smallest = min(len(s["y"]) for s in tasks.load_dataset("python_code", length=511))
    assert spec.options["batch_size"] == smallest < 511


def test_tasks_are_listed_without_what_some_of_them_need(monkeypatch, capsys):
    from l2o.meta_train.cli._main import main

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tasks.data.python_docs.cache_clear()
    assert main(["tasks", "transformer-docs-pieces", "pinn-heat"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "word pieces need tokenizers" in printed.replace("│", " ")
    assert "1,185" in printed
