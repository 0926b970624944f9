"""Streams: chunks in a known order, runs that go on with the next one."""

import dataclasses
import doctest
import importlib
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cpu_devices

import l2o
from l2o import tasks
from l2o.meta_train import Config, run
from l2o.meta_train.training._checkpoints import read, steps
from l2o.meta_train.training._feed import Feed, side_by_side
from l2o.meta_train.training._recipe import make_recipe
from l2o.tasks import Dataset, Stream, TaskFamily, data, stateless

ARRAYS = {
    "x": np.random.default_rng(0).uniform(size=(200, 4, 4, 1)).astype(np.float32),
    "y": np.arange(200) % 10,
    "index": np.arange(200),
}
DIGITS = tasks.digits()


def _take(stream, count, cursor=0):
    return [c.train for c in itertools.islice(stream.chunks(cursor), count)]


def _same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_a_window_and_its_splits_hold_every_example_once():
    stream = tasks.stream(ARRAYS, 20)
    aside = [np.asarray(split["index"]) for split in stream.window[1:]]
    assert [len(x) for x in aside] == [20, 20, 20]
    epoch = [chunk["index"] for chunk in _take(stream, 7)]
    assert sorted(np.concatenate([*aside, *epoch])) == list(range(200))
    np.testing.assert_array_equal(stream.window.train["index"], epoch[0])
    assert stream.window.train["x"].dtype == jnp.float32
    assert stream.window.train["y"].dtype == jnp.int32


def test_an_example_keeps_its_arrays_together():
    for chunk in _take(tasks.stream(ARRAYS, 30), 8):
        np.testing.assert_array_equal(chunk["x"], ARRAYS["x"][chunk["index"]])
        np.testing.assert_array_equal(chunk["y"], ARRAYS["y"][chunk["index"]])


def test_epochs_differ_and_chunks_reach_over_their_ends():
    stream = tasks.stream(ARRAYS, 32, held_out=DIGITS)
    index = np.concatenate([chunk["index"] for chunk in _take(stream, 25)])
    assert len(index) == 4 * 200
    assert np.all(np.bincount(index[:192]) <= 1)
    assert np.all(np.bincount(index) == 4)  # which chunks sort within themselves
    assert not np.array_equal(index[:32], index[-32:])
    for kept, split in zip(stream.window[1:], DIGITS[1:], strict=True):
        assert kept["x"] is split["x"]


def test_a_chunk_is_a_function_of_seed_and_number():
    stream = tasks.stream(ARRAYS, 32)
    chunks = _take(stream, 9)
    assert _same(_take(stream, 4, cursor=5), chunks[5:])
    assert _same(_take(tasks.stream(ARRAYS, 32, ahead=1), 9), chunks)
    other = tasks.stream(ARRAYS, 32, seed=1)
    assert not _same(_take(other, 1), chunks[:1])
    assert _same(other.window[1:], stream.window[1:])  # splits are the dataset's


def test_any_random_access_source_and_memory_maps(tmp_path):
    for name, x in ARRAYS.items():
        np.save(tmp_path / name, x)
    mapped = {n: np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ARRAYS}

    class Batched:
        def __len__(self):
            return 200

        def __getitems__(self, indices):
            return [{name: x[i] for name, x in ARRAYS.items()} for i in indices]

    one_by_one = [{name: x[i] for name, x in ARRAYS.items()} for i in range(200)]
    expected = _take(tasks.stream(ARRAYS, 32), 3)
    for source in (mapped, Batched(), one_by_one):
        assert _same(_take(tasks.stream(source, 32), 3), expected)


def test_what_was_read_is_transformed():
    def transform(batch):
        return {"x": batch["x"][:, ::2, ::2] + 1, "index": batch["index"]}

    stream = tasks.stream(ARRAYS, 32, transform=transform)
    assert stream.window.test["x"].shape == (32, 2, 2, 1)
    (chunk,) = _take(stream, 1)
    np.testing.assert_array_equal(chunk["x"], ARRAYS["x"][chunk["index"], ::2, ::2] + 1)


def test_streams_are_refused_without_enough_examples():
    with pytest.raises(ValueError, match="of 51 examples and 153 held-out .* from 200"):
        tasks.stream(ARRAYS, 51)
    with pytest.raises(ValueError, match="of 201 examples from 200"):
        tasks.stream(ARRAYS, 201, held_out=DIGITS)
    with pytest.raises(ValueError, match="of 0 examples"):
        tasks.stream(ARRAYS, 0)
    with pytest.raises(ValueError, match="different numbers of examples.*'y': 199"):
        tasks.stream({"x": np.zeros(200), "y": np.zeros(199)}, 10)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'l2o\[data\]'"):
        tasks.stream(ARRAYS, 10)


def test_threads_end_with_the_iterator():
    def reading():
        return [t for t in threading.enumerate() if t.name.startswith("grain")]

    chunks = tasks.stream(ARRAYS, 32).chunks(0)
    next(chunks)
    assert reading()
    chunks.close()
    for thread in reading():
        thread.join(10)
    assert not reading()


PIXELS = {"x": ARRAYS["x"], "y": ARRAYS["y"]}
KEPT = tasks.from_arrays(PIXELS)


def test_a_family_renews_its_windows_and_keeps_the_rest():
    a, b = tasks.stream(PIXELS, 20), tasks.stream(PIXELS, 20, seed=1)
    family = tasks.image_mlp([a.window, KEPT, b.window], batch_size=8)
    streamed = tasks.with_stream(family, b, a)
    assert streamed.data is family.data and streamed.name == family.name
    chunks = streamed.stream.chunks(3)
    for i in (3, 4):
        first, second, third = next(chunks)
        assert _same(first.train, _take(a, 1, i)[0])
        assert all(x is y for x, y in zip(jax.tree.leaves(second), _leaves(KEPT)))
        assert _same(third.train, _take(b, 1, i)[0])
        assert first.test["x"] is a.window.test["x"]


def _leaves(tree):
    return jax.tree.leaves(tree)


def test_an_augmented_family_keeps_its_stream():
    a = tasks.stream(PIXELS, 20)
    family = tasks.with_stream(tasks.image_mlp([a.window], batch_size=8), a)
    assert tasks.reparametrize(family).stream is family.stream
    late = tasks.with_stream(tasks.reparametrize(tasks.image_mlp([a.window])), a)
    assert late.stream is not None


def test_a_family_needs_the_window_of_its_stream():
    a = tasks.stream(PIXELS, 20)
    with pytest.raises(ValueError, match="'mlp32' has not been made with this stream"):
        tasks.with_stream(tasks.image_mlp([KEPT]), a)
    family = tasks.with_stream(tasks.image_mlp([a.window]), a)
    with pytest.raises(ValueError, match="'mlp32' has a stream: give it all of them"):
        tasks.with_stream(family, a)


def test_a_feed_puts_what_is_renewed_and_counts():
    a = tasks.stream(PIXELS, 20)
    put = []

    def spy(x):
        put.append(x.shape)
        return jax.device_put(x)

    counters = {"chunks/2": 4.0}
    feed = Feed(a.window, a, spy, counters, "chunks/2")
    fed = feed.take()
    assert put == [(20, 4, 4, 1), (20,)] and counters == {"chunks/2": 5.0}
    assert _same(fed.train, _take(a, 1, 4)[0])
    assert fed.train["y"].dtype == jnp.int32
    assert fed.inner_valid["x"] is a.window.inner_valid["x"]
    feed.close()
    counters = {}
    still = Feed(a.window, None, spy, counters, "chunks/0")
    assert still.take() is a.window and counters == {}


def test_families_side_by_side():
    a = tasks.stream(PIXELS, 20)
    streamed = tasks.with_stream(tasks.image_mlp([a.window], batch_size=8), a)
    still = tasks.image_mlp([KEPT])
    assert side_by_side([still, still]) is None
    first, second = next(side_by_side([still, streamed]).chunks(2))
    assert first is still.data
    assert _same(second[0].train, _take(a, 1, 2)[0])


CONFIG = Config(
    optimizer="learnable_sgdm",
    particles=2,
    truncation=2,
    episode_length=(2, 6),
    outer_steps=6,
    outer_warmup=0,
    checkpoint_every=3,
    keep_checkpoints=4,
)


def _families(seed=0):
    """The second one streams."""
    a = tasks.stream(PIXELS, 20, seed=seed)
    still = tasks.image_mlp([KEPT], (3,), batch_size=8, name="still")
    family = tasks.image_mlp([a.window, KEPT], (4,), batch_size=8, name="streamed")
    return [still, tasks.with_stream(family, a)]


def _arrays(result):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(result.theta)]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="one"),
        pytest.param(
            {"families_per_step": "all", "checkpoint_every": 2},
            id="all",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param({"population": 2}, id="population", marks=pytest.mark.exhaustive),
    ],
)
def test_a_resumed_run_goes_on_with_the_next_chunk(tmp_path, more):
    config = dataclasses.replace(CONFIG, **more)
    records, again = [], []
    whole = run(config, tmp_path / "a", families=_families(), on_step=records.append)

    class Killed(BaseException):
        pass

    def kill(record):
        again.append(record)
        if record["step"] == 4:  # at the earliest; steps in flight are lost with it
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "b", families=_families(), on_step=kill)
    found = steps(tmp_path / "b" / "checkpoints")
    assert found and max(found) <= 4
    resumed = run(config, tmp_path / "b", families=_families(), on_step=again.append)
    assert _arrays(resumed) == _arrays(whole)
    losses = {r["step"]: r["meta_loss"] for r in again}
    assert losses == {r["step"]: r["meta_loss"] for r in records}


def test_it_matters_which_chunks_there_are(tmp_path):
    results = [
        run(CONFIG, tmp_path / str(seed), families=_families(seed)) for seed in range(2)
    ]
    assert _arrays(results[0]) != _arrays(results[1])


@pytest.mark.slow
def test_a_run_on_two_devices_has_the_same_chunks(tmp_path):
    folder = Path(__file__).parent
    code = f"""
import sys
sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]
import test_stream as t
t.run(t.CONFIG, "run", families=t._families()[1:])
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=100,
        env=cpu_devices(2),
    )
    here = run(CONFIG, tmp_path / "here", families=_families()[1:])
    there = l2o.load_unbound("run/frozen")[1]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), here.theta, there
    )


def _counters(folder, step):
    optimizer = l2o.make(CONFIG.optimizer)
    state = make_recipe(CONFIG, optimizer, _families()).state
    return read(folder / "checkpoints", step, state)[1]


def test_a_checkpoint_has_the_number_of_the_next_chunk(tmp_path):
    records = []
    run(CONFIG, tmp_path, families=_families(), on_step=records.append)
    for step in (3, 6):
        counters = _counters(tmp_path, step)
        steps_of_it = [r for r in records[:step] if r["family"] == "streamed"]
        assert counters["chunks/1"] == len(steps_of_it)
        assert "chunks/0" not in counters
    assert 0 < len(steps_of_it) < 6


def test_every_outer_step_sees_its_own_chunk(tmp_path):
    """A family whose loss says which chunk it sees."""

    def chunks(cursor):
        for i in itertools.count(cursor):
            yield {"number": np.float32([i])}

    def task(config, data):
        return stateless(
            init=lambda key: jnp.zeros(2),
            batch=lambda key, split: data["number"],
            loss=lambda w, key, number: 0 * w.sum() + number[0],
        )

    window = {"number": jnp.zeros(1)}
    family = TaskFamily(
        lambda key: (), task, window, "counting", stream=Stream(window, chunks)
    )
    records = []
    config = dataclasses.replace(CONFIG, outer_steps=9)
    run(config, tmp_path, families=[family], on_step=records.append)
    assert [r["meta_loss"] for r in records] == list(range(9))


def test_a_stream_is_placed_on_a_mesh():
    # As the loop places it, on as many devices as there are.
    from l2o.meta_train._mesh import Topology
    from l2o.meta_train.training._loop import Devices, _feeds
    from l2o.meta_train.training._recipe import Part

    mesh = jax.make_mesh((1, 1), ("particles", "batch"))
    a = tasks.stream(PIXELS, 20)
    part = Part("part", lambda: None, a.window, (), a)
    (feed,) = _feeds([part], {}, Devices(mesh, Topology()), {})
    fed = feed.take()
    assert fed.train["x"].sharding.mesh == mesh
    assert fed.train["x"].sharding.is_fully_replicated
    assert isinstance(fed, Dataset)
    feed.close()


@pytest.mark.parametrize("name", ["_stream"])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"l2o.tasks.data.{name}"))
    assert result.failed == 0 and result.attempted > 2


def test_streams_are_public():
    assert tasks.stream is data.stream
