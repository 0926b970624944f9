"""The results store: content hashes, damage, versions, databases."""

import dataclasses
import json
import lzma

import numpy as np
import pytest

import l2o
from l2o.meta_train.evaluation import DATABASES, Result, Store
from l2o.meta_train.evaluation._entrants import entrant
from l2o.meta_train.evaluation._store import (
    decode,
    encode,
    key_of,
    read_database,
    write_database,
)
from l2o.meta_train.files._sealed import digest_of

SETTING = {
    "version": 1,
    "task": "t",
    "identity": {"baseline": "adam"},
    "rate": 0.1,
    "steps": 10,
    "seeds": 2,
    "eval_every": 10,
}


def _result(rate=0.1, **changes):
    curves = {"train": {"loss": np.array([[1.0, 0.123456789], [np.nan, np.inf]])}}
    made = Result(
        setting={**SETTING, "rate": rate},
        entrant="adam",
        learned=False,
        curves=curves,
        state_bytes=8.0,
        parameters=10,
        seconds=1e-4,
        origin={"l2o": "0"},
    )
    return dataclasses.replace(made, **changes)


def _sealed(text, change):
    content = json.loads(text)
    change(content)
    return json.dumps({**content, "digest": digest_of(content)})


def test_what_is_put_is_found_and_not_finite_is_nan(tmp_path):
    store = Store(tmp_path / "results", shipped=False)
    key = key_of(SETTING)
    assert store.get(key) is None
    store.put(_result())
    found = store.get(key)
    loss = found.curves["train"]["loss"]
    np.testing.assert_array_equal(loss, [[1.0, 0.123457], [np.nan, np.nan]])
    assert found.rate == 0.1 and found.task == "t"
    assert [path.name for path in (tmp_path / "results").iterdir()] == [f"{key}.json"]
    assert encode(decode(encode(found))) == encode(found)


def test_keys_depend_on_every_part_of_a_setting_and_not_on_its_order():
    changes = ({"version": 2}, {"rate": 0.2}, {"identity": {}}, {"task": "u"})
    keys = {key_of(SETTING), *(key_of({**SETTING, **change}) for change in changes)}
    assert len(keys) == 5
    assert key_of(dict(reversed(SETTING.items()))) == key_of(SETTING)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "more": 1}),
        lambda text: text.replace("0.123457", "0.123456"),
        lambda text: text.replace("null", "NaN"),
        # With a digest of its own, but not a result.
        lambda text: _sealed(text, lambda x: x.update(more=1)),
        lambda text: _sealed(text, lambda x: x.pop("seconds")),
        lambda text: _sealed(text, lambda x: x.update(parameters=True)),
        lambda text: _sealed(text, lambda x: x["setting"].update(seeds=3)),
        lambda text: _sealed(text, lambda x: x["curves"].pop("train")),
        lambda text: _sealed(text, lambda x: x["curves"]["train"].update(loss=[[1]])),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    store = Store(tmp_path, shipped=False)
    store.put(_result())
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=rf"{path.name} is no l2o result.*delete it"):
        store.get(key_of(SETTING))


def test_a_file_under_another_name_or_of_another_version_is_refused(tmp_path):
    store = Store(tmp_path, shipped=False)
    store.put(_result(rate=0.3))
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / f"{key_of(SETTING)}.json")
    with pytest.raises(ValueError, match="another setting"):
        store.get(key_of(SETTING))
    store.put(_result(setting={**SETTING, "version": 99}))
    with pytest.raises(ValueError, match=r"version 99, this l2o reads 1.*delete it"):
        store.get(key_of({**SETTING, "version": 99}))


def test_a_database_holds_results_in_any_order_as_the_same_bytes(tmp_path):
    results = [_result(rate) for rate in (0.1, 0.2, 0.3)]
    one, other = tmp_path / "a.jsonl.xz", tmp_path / "b.jsonl.xz"
    write_database(one, results)
    write_database(other, results[::-1])
    assert one.read_bytes() == other.read_bytes()
    assert {x.rate for x in read_database(one)} == {0.1, 0.2, 0.3}


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed, text: packed[:-10],
        lambda packed, text: text,
        lambda packed, text: lzma.compress(text.replace(b"0.123457", b"0.123456")),
        # A result less.
        lambda packed, text: lzma.compress(text[: text[:-1].rindex(b"\n") + 1]),
        lambda packed, text: lzma.compress(text.partition(b"\n")[2]),
    ],
)
def test_a_database_is_read_as_it_was_written_or_refused(tmp_path, damage):
    path = tmp_path / "a.jsonl.xz"
    write_database(path, [_result(rate) for rate in (0.1, 0.2)])
    packed = path.read_bytes()
    path.write_bytes(damage(packed, lzma.decompress(packed)))
    with pytest.raises(ValueError, match=r"a\.jsonl\.xz is no l2o results.*install"):
        read_database(path)


def test_without_a_folder_nothing_is_kept():
    store = Store(None, shipped=False)
    store.put(_result())
    assert store.get(key_of(SETTING)) is None


def test_results_that_ship_are_found_whatever_arguments_came_since():
    shipped = {
        x.entrant: x.setting["identity"]
        for x in read_database(DATABASES / "heldout_small.jsonl.xz")
    }
    names = [name for name in shipped if name.partition(":")[0] in l2o.shipped()]
    assert len(names) >= len(l2o.shipped())
    for name in names:
        if name != "adaptive_muon:0.03":  # of which there are later results
            assert entrant(name).identity == shipped[name], name
