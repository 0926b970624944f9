"""Everything that evaluations store, mutated: read as it was, or refused by name."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest

from l2o.meta_train.evaluation import (
    Board,
    Protocol,
    Result,
    Store,
    _follow,
    _store,
    load_board,
    save_board,
)
from l2o.meta_train.evaluation import _timing as timing
from l2o.meta_train.evaluation._board import Contestant
from l2o.meta_train.evaluation._store import (
    encode,
    key_of,
    read_database,
    write_database,
)
from l2o.meta_train.files._sealed import digest_of
from l2o.meta_train.tradeoffs import load_study
from l2o.meta_train.tradeoffs._rows import write_study
from l2o.meta_train.tradeoffs._store import Measurements
from l2o.meta_train.training._metrics import read_metrics, read_records

MUTANTS = 150  # of every store
PROTOCOL = Protocol("mine", 1, 20, 2, 10, 2)
TIMING = timing.Timing(1.5, 1.25, 1.75, 40, 10)
SETTING = {"version": 1, "stage": "costs"}


def _result(name, rate, steps=20):
    curve = np.linspace(1, rate, 2 * (steps // 10 + 1)).reshape(2, -1)
    protocol = PROTOCOL._replace(steps=steps)._asdict()
    setting = {"version": 1, "task": "t", "identity": {"baseline": name}, "rate": rate}
    curves = {split: {"loss": curve} for split in ("train", "outer_valid", "test")}
    origin = {"l2o": "0"}
    return Result({**setting, **protocol}, name, False, curves, 8.0, 10, 1e-4, origin)


def _write_board(folder):
    def contestant(name):
        trials = {"t": [_result(name, rate) for rate in (0.1, 0.2)]}
        return Contestant(name, False, "learning_rate", trials, card={"a": 1})

    long = {"t": [_result("adam", 0.1, 40)]}
    contestants = {name: contestant(name) for name in ("adam", "sgd")}
    rest = "task", "test", ("t",), contestants, long, {"sgd": TIMING}, ("a note",)
    save_board(folder, Board(PROTOCOL, *rest), Store(folder / "results"))


def _read_board(folder):
    board = load_board([folder])
    trials = [*(x.trials for x in board.contestants.values()), board.long]
    results = [encode(x) for found in trials for x in found["t"]]
    return results, [
        board.protocol,
        *board[1:4],
        *(x._replace(trials=None) for x in board.contestants.values()),
        *board[6:],
    ]


def _write_study(folder):
    flat = {"state_bytes": 1.5, "tensor_bytes": 1.5, "flops": 1.5, "tensor_flops": 1.5}
    costs = {**flat, "temporary_bytes": 1.5, "xla_temporary_bytes": 1.5}
    names = ("xla_ratio", "xla_low", "xla_high", "compile_seconds")
    times: dict[str, float] = dict.fromkeys(names, 1.5)
    times |= {"low": 1.0, "ratio": 1.25, "high": 1.5, "parameters": 100, "n": 4}
    score = {"mean": 0.5, "low": 0.25, "high": 0.75, "seeds": 2, "runs": 4}
    score |= {"diverged": 0, "tasks": {"t": 0.5}, "seconds": None, "inner_steps": 9}
    row = {
        "name": "mlp w8",
        "architecture": "mlp",
        "axis": "width",
        "optimizer": {"name": "mlp", "arguments": {}},
        "costs": {**costs, "meta_parameters": 12, "kernels": True},
        "times": [{**times, "seconds": 1e-3, "adam_seconds": 1e-3}],
        "too_large_to_time": [],
        "score": {**score, "stopped_early": 0},
    }
    rest = {"scale": "smoke", "training": {}, "evaluation": {}, "origin": {"l2o": "0"}}
    write_study(folder / "tradeoffs.json", {**rest, "rows": [row]})


def _write_scores(folder):
    setting = {"steps": 10, "tasks": ["t"]}
    rest = {"tasks": {"t": 0.5}, "seconds": 1.0, "setting": setting}
    records = [{"step": step, "score": 0.5 / step, **rest} for step in (4, 8)]
    lines = [json.dumps({**x, "digest": digest_of(x)}) + "\n" for x in records]
    (folder / "evaluations.jsonl").write_text("".join(lines))


def _write_metrics(folder):
    records = [{"step": i, "family": "mlp", "meta_loss": 1 / i} for i in (1, 2, 3)]
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))


STORES = {
    "board": (_write_board, _read_board),
    "study": (_write_study, load_study),
    "timings": (
        lambda folder: timing.write_timings(folder, {"a" * 32: TIMING}),
        timing.read_timings,
    ),
    "measurement": (
        lambda folder: Measurements(folder).put(SETTING, {"flops": 1.5}),
        lambda folder: Measurements(folder).get(SETTING),
    ),
    "database": (
        lambda folder: write_database(folder / "a.jsonl.xz", [_result("adam", 0.1)]),
        lambda folder: [encode(x) for x in read_database(folder / "a.jsonl.xz")],
    ),
    "scores": (
        _write_scores,
        lambda folder: read_records(
            folder / "evaluations.jsonl", "l2o scores", "move it", _follow._check
        ),
    ),
    "metrics": (_write_metrics, read_metrics),
}
ODD = (None, True, -1, 0, 7, 1.5, 1e30, "", "x", "../x", [], {}, [[1]], {"a": 1})


def _places(x, path=()):
    """Paths to everything in a tree."""
    yield path
    if isinstance(x, dict | list):
        for key, value in x.items() if isinstance(x, dict) else enumerate(x):
            yield from _places(value, (*path, key))


def _mutated(content, draw):
    """Something is another value, a little more, gone, or elsewhere."""
    content = copy.deepcopy(content)
    *path, last = draw.choice([x for x in _places(content) if x])
    at = content
    for key in path:
        at = at[key]
    old, kind = at[last], draw.randrange(4)
    if kind == 0 and isinstance(old, int | float):
        at[last] = old + 1
    elif kind == 1:
        del at[last]
    elif kind == 2 and isinstance(at, dict):
        at["y"] = at.pop(last)
    else:
        at[last] = copy.deepcopy(draw.choice(ODD))
    return content


def _bytes(data, draw):
    at, kind = draw.randrange(len(data)), draw.randrange(4)
    piece = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 4)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + piece + data[at:]
    if kind == 2:
        return data[:at] + data[at + len(piece) :]
    return data[:at] + piece + data[at + len(piece) :]


def _deep(data, draw):
    return b"[" * 100_000


def _attempt(path, data, draw):
    """Writes a mutant; whether its digest is right for what it holds."""
    way = draw.randrange(6)
    if way < 2 or path.suffix == ".xz":
        path.write_bytes(_bytes(data, draw) if way else _deep(data, draw))
        return False
    lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    i = draw.randrange(len(lines))
    content = _mutated(json.loads(lines[i]), draw)
    forged = way > 3 and isinstance(content, dict)
    if forged and "digest" in content:
        content["digest"] = digest_of(content)
    lines[i] = json.dumps(content)
    path.write_text("\n".join([*lines, ""]))
    return forged


@pytest.fixture(autouse=True)
def _without_databases(monkeypatch, tmp_path):
    for module in (timing, _store):
        monkeypatch.setattr(module, "DATABASES", tmp_path / "none")


@pytest.mark.parametrize("store", STORES)
def test_a_mutant_is_refused_by_name_or_changes_nothing(store, tmp_path):
    write, read = STORES[store]
    write(tmp_path)
    whole = read(tmp_path)
    files = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    draw, refused = random.Random(store), 0
    for _ in range(MUTANTS):
        path: Path = draw.choice(list(files))
        forged = _attempt(path, files[path], draw)
        try:
            found = read(tmp_path)
        except ValueError as error:
            refused += 1
            named = path.name in str(error) or f"{path.parent}" in str(error)
            assert named, (str(error), path.read_bytes()[-200:])
            assert "TypedDict" not in str(error) and "<class" not in str(error)
        else:
            cut = path.suffix == ".jsonl"  # a last line that a kill cut short
            same = repr(found) == repr(whole)
            assert (
                same
                or forged
                or store == "metrics"
                or (cut and repr(found) == repr(whole[: len(found)]))
            ), path.read_bytes()[-300:]
        path.write_bytes(files[path])
    assert refused > MUTANTS / 3
    assert repr(read(tmp_path)) == repr(whole)


def test_keys_of_results_stay_in_their_folder(tmp_path):
    _write_board(tmp_path)
    path = tmp_path / "evaluation.json"
    content = json.loads(path.read_text())
    content["long"]["t"] = [f"../../{key_of(SETTING)}"]
    content["digest"] = digest_of(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"evaluation\.json is no l2o evaluation"):
        load_board([tmp_path])
