"""What there is, and how large."""

import re

import pytest
from weight_files import PUBLISHED_SIZES

import l2o
from l2o.files._hub import IMPORTABLE

# What there is.

# Meta-parameters, and bytes of state per parameter of a large matrix.


@pytest.fixture(scope="module")
def available():
    return l2o.available()


def test_everything_is_listed_once(available):
    kinds = {"architecture": l2o.factories(), "shipped": l2o.shipped()}
    for kind, names in {**kinds, "importable": IMPORTABLE}.items():
        assert [x.name for x in available if x.kind == kind] == list(names)
    assert len(available) == len(l2o.factories()) + len(l2o.shipped()) + len(IMPORTABLE)
    for row in available:
        assert row.needs == row.optimizer.needs
        assert re.search(r"\(.*20\d\d\)", row.source), row.name


def test_sizes_are_those_published(available):
    rows = [x for x in available if x.kind == "architecture"]
    sizes = {x.name: (x.meta_parameters, x.state_bytes) for x in rows}
    assert sizes == PUBLISHED_SIZES


def test_weights_are_listed_with_what_they_need(available):
    rows = {x.name: x for x in available if x.kind != "architecture"}
    for name, (factory, arguments) in IMPORTABLE.items():
        optimizer = l2o.make(factory, **arguments)
        assert rows[name].optimizer.name == factory
        assert rows[name].optimizer.arguments == optimizer.arguments
    assert rows["amoudgl/velo-s"].meta_parameters == 46_337
    assert rows["amoudgl/velo-4000"].meta_parameters == 2_320_385
    for name in l2o.shipped():
        assert rows[name].meta_parameters == l2o.read_card(name)["meta_parameters"]
