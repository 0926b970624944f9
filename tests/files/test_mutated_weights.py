"""Weight files that were damaged or forged: loaded whole, or refused by name."""

import functools
import hashlib
import inspect
import json
import random
import re
import tempfile
from pathlib import Path

import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from weight_files import CONFIG, PYLO, PYLO_VELO, SMALL, WEIGHTS, some_theta

import l2o
from l2o.files._reading import Malformed, reading
from l2o.files._recorded import check_recorded, extent
from l2o.files._trees import to_tree

MUTANTS = 120  # of each kind
HUGE = 10**9
DEEP = "@deep@"
VALUES = (
    *(None, True, False, -1, 0, 1, 3, 17, HUGE, 10**18, 10**400, 0.5, -0.1, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "relu", "(", f"a{{{HUGE}00}}", "\0"),
    *([], [1], ["x"], [None], [0.9] * 5000, [[0.9]], ["g"] * 5000, {}, {"x": 1}),
    *({"name": "small_fc", "arguments": {}}, {"name": "clip", "arguments": 3}, DEEP),
)
# What Python, NumPy and JAX say.
LEAKS = re.compile(
    r"has no attribute|subscriptable|unhashable|recursion|unsupported operand|argument "
    r"of type|must be real|\w\(\) (arg|got|missing|takes)|not iterable|reshape|codec"
)
DTYPES = ("F16", "F64", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "X", 3)
OWN = {
    "small_fc": SMALL["small_fc"],
    "celo2": SMALL["celo2"],
    "velo": SMALL["velo"],
    "rnn_mlp": SMALL["rnn_mlp"],
    "lstm": l2o.lstm(hidden_size=3),
    "l2o_pa": l2o.l2o_pa(hidden_size=3),
    "l2o_scale": l2o.l2o_scale(level_sizes=(3, 4, 5)),
    "muon": l2o.hypergradient(l2o.learnable_muon(weight_decay=0.0)),
    "wrapped": l2o.decay_weights(l2o.clip_gradients(SMALL["mlp"]), 0.01),
    "grafted": l2o.grafted(SMALL["mlp"], l2o.learnable_sgd()),
}
GIN = {
    "HyperV2": l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5),
    "AdafacMLPLOpt": SMALL["small_fc"],
    "Celo2": SMALL["celo2"],
}
GIN_ARGUMENTS = {
    "HyperV2": "lstm_hidden_size = 7\nHyperV2.param_inits = 3\nHyperV2.ff_hidden_size "
    "= 5\nHyperV2.initial_rms_decays = (0.999,)",
    "AdafacMLPLOpt": "hidden_size = 3\nAdafacMLPLOpt.hidden_layers = 1",
    "Celo2": "ff_hidden_size = 5\nCelo2.ff_hidden_layers = 3\n"
    "Celo2.regex_1d = '.*bias.*'",
}


def _with_theta(optimizer):
    return optimizer, some_theta(optimizer)


def _own(name, folder):
    return l2o.save(folder, *_with_theta(OWN[name])), {}


def _flax(name, folder):
    name, _, form = name.partition(" ")
    tree = to_tree(some_theta(SMALL[name]), SMALL[name])
    if form == "scalars":
        tree = {**tree, "nn": {"~": _scalars(tree["nn"]["~"])}}
    elif form == "wrapped":
        tree = {"params": tree, "gen_id": "", "step": 0}
    (folder / "theta.state").write_bytes(flax.serialization.to_bytes(tree))
    return folder, {}


def _scalars(arrays):
    return {
        "_".join([name, *map(str, index)]): np.float32(x)
        for name, array in arrays.items()
        for index, x in np.ndenumerate(array)
    }


def _pylo(name, folder):
    optimizer = PYLO.get(name, PYLO_VELO)
    l2o.save(folder, *_with_theta(optimizer), format="pylo")
    if name == "velo":
        return folder / "VeLO_RNN", {}
    return folder, {"optimizer": name}


def _gin(cls, folder):
    text = f"run_train.lopt = @{cls}()\n{cls}.{GIN_ARGUMENTS[cls]}\n"
    (folder / "config.gin").write_text(text)
    tree = to_tree(some_theta(GIN[cls]), GIN[cls])
    (folder / "params").write_bytes(flax.serialization.to_bytes(tree))
    return folder, {}


FLAX = ("celo", "celo wrapped", "celo_adam", "small_fc", "small_fc scalars", "rnn_mlp")
KINDS = {
    "own": (_own, tuple(OWN)),
    "flax": (_flax, (*FLAX, "nn_adam", "mlp wrapped")),
    "pylo": (_pylo, (*PYLO, "velo")),
    "gin": (_gin, tuple(GIN)),
}


def write(kind, name, folder):
    """Writes sound weights; what to load, and what `load` needs to be told."""
    files, source, arguments = _files(kind, name)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder / source, arguments


@functools.cache
def _files(kind, name):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, arguments = KINDS[kind][0](name, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder): path.read_bytes() for path in paths}
        return files, source.relative_to(folder), arguments


# Mutations.


def _mutated(rng, path):
    """Other content for a file."""
    content = path.read_bytes()
    if rng.random() < 0.25:
        return _other_bytes(rng, content)
    if path.suffix == ".json":
        return _dumped(_other_node(rng, json.loads(content)))
    if path.suffix == ".gin":
        return _other_text(rng, content.decode()).encode()
    if path.name == WEIGHTS:
        return _other_safetensors(rng, content)
    tree = msgpack.unpackb(content, strict_map_key=False)
    tree = _other_node(rng, tree, _other_array)
    try:
        return msgpack.packb(tree)
    except (OverflowError, ValueError):  # of what msgpack cannot hold
        return b"\x91" * 600 + content


def _other_bytes(rng, content):
    at, size = rng.randrange(len(content)), rng.randrange(1, 9)
    return rng.choice(
        [
            content[:at] + rng.randbytes(size) + content[at + size :],
            content[:at]
            + bytes([content[at] ^ 1 << rng.randrange(8)])
            + content[at + 1 :],
            content[:at] + rng.randbytes(size) + content[at:],
            content[:at] + content[at + size :],
            content[:at],
            b"",
        ]
    )


def _dumped(tree):
    return json.dumps(tree).replace(f'"{DEEP}"', 50_000 * "[" + 50_000 * "]").encode()


def _other_node(rng, tree, other_leaf=None):
    """A tree with one node replaced, renamed or removed."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        value = tree[key]
        rest = {k: v for k, v in tree.items() if k != key}
        if isinstance(value, dict | list) and rng.random() < 0.7:
            return {**tree, key: _other_node(rng, value, other_leaf)}
        return rng.choice(
            [
                {**tree, key: rng.choice(VALUES)},
                {**tree, key: rng.choice(VALUES)},
                {**tree, key: (other_leaf or _other_node)(rng, value)},
                {**tree, key: {key: value}},
                {
                    **rest,
                    rng.choice([f"{key}9", "b99999999", "w0_9_9", "", "x"]): value,
                },
                {**tree, rng.choice(["b999", "w0.99999", "x", "w0_0_99999"]): value},
                rest,
            ]
        )
    if isinstance(tree, list) and tree and rng.random() < 0.7:
        at = rng.randrange(len(tree))
        return [*tree[:at], rng.choice(VALUES), *tree[at + 1 :]]
    return rng.choice(VALUES)


def _other_array(rng, leaf):
    """An array as flax writes it, or one that claims to be another."""
    if not isinstance(leaf, msgpack.ExtType):
        return rng.choice(VALUES)
    shape, dtype, raw = msgpack.unpackb(leaf.data)
    shape = rng.choice(
        [shape, shape, [*shape, 1], shape[::-1], [HUGE, 0], [HUGE], [-1]]
    )
    dtype = rng.choice([dtype, dtype, "float16", "float64", "O", "V4", "x", 3])
    raw = rng.choice([raw, raw, raw * 2, raw[:-1], b"", b"\xff" * len(raw)])
    return msgpack.ExtType(rng.choice([1, 1, 2, 3]), msgpack.packb((shape, dtype, raw)))


def _other_safetensors(rng, content):
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if rng.random() < 0.3:
        arrays = safetensors.numpy.load(content)
        name = rng.choice(list(arrays))
        x = arrays.pop(name)
        bad = x.copy()
        bad.flat[:1] = rng.choice([np.nan, np.inf])
        new = [bad, bad, x.T.copy(), x.astype(np.float64), np.zeros((HUGE, 0)), x[None]]
        return safetensors.numpy.save({**arrays, name: rng.choice(new)})
    if rng.random() < 0.5:
        name = rng.choice(list(header))
        shape = rng.choice([[HUGE], [HUGE, 0], [2**40, 2**40], [-1], [], "x", DEEP])
        key, value = rng.choice([("dtype", rng.choice(DTYPES)), ("shape", shape)])
        header[name] = {**header[name], key: value}
    else:
        header = _other_node(rng, header)
    text = _dumped(header)
    return len(text).to_bytes(8, "little") + text + data


def _other_text(rng, text):
    tokens = list(re.finditer(r"[\w.@']+|\S", text))
    token = rng.choice(tokens)
    values = [
        *(
            "1",
            "-1",
            "None",
            "'x'",
            str(HUGE),
            "1e999",
            "9" * 5000,
            "x",
            "",
            "é",
            "@x()",
        ),
        *(
            "(0.9,)",
            "(" + "0.9," * 5000 + ")",
            5000 * "(",
            5000 * "[" + 5000 * "]",
            "\0",
        ),
        *(
            "'a{99999999999}'",
            "{}",
            "nan",
            "0.5",
            "True",
            "-" * 5000 + "1",
            "hidden_size",
        ),
    ]
    return text[: token.start()] + rng.choice(values) + text[token.end() :]


def mutant(kind, seed, folder):
    """A folder of weights with one file changed; and what `load` needs to be told."""
    rng = random.Random(f"{kind} {seed}")
    source, arguments = write(kind, rng.choice(KINDS[kind][1]), folder)
    path = rng.choice(sorted(x for x in folder.rglob("*") if x.is_file()))
    content = _mutated(rng, path)
    path.write_bytes(content)
    card = source / CONFIG
    if kind == "own" and path.name == WEIGHTS and rng.random() < 0.9:
        told = json.loads(card.read_text())
        told["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        card.write_text(json.dumps(told))
    return source, arguments


def check(source, folder, arguments):
    """Whether it loads; raises unless that, or the refusal, is sound."""
    _refusal(lambda: l2o.read_card(source), folder)
    loaded = _refusal(lambda: l2o.load_unbound(source, **arguments), folder)
    if loaded is None:
        return False
    optimizer, theta = loaded
    expected = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
    assert jax.tree.structure(theta) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(theta), jax.tree.leaves(expected)):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.all(np.isfinite(x))
    optimizer.bind(theta, num_steps=3)
    return True


def _refusal(call, folder):
    """What the call returns; None if it refuses as it should."""
    try:
        return call()
    except (ValueError, OSError) as error:
        assert type(error) in (ValueError, FileNotFoundError, IsADirectoryError)
        assert str(folder) in str(error)
        assert len(str(error)) < 1500
        assert not LEAKS.search(str(error))
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_load_whole_or_are_refused_by_name(kind, tmp_path):
    loaded = 0
    for seed in range(MUTANTS):
        folder = tmp_path / str(seed)
        source, arguments = mutant(kind, seed, folder)
        try:
            loaded += check(source, folder, arguments)
        except Exception as error:
            raise AssertionError(f"mutant({kind!r}, {seed}, ...)") from error
    assert 0 < loaded < MUTANTS


# What a file claims.


def _bound(value):
    return f"run_train.lopt = @HyperV2()\nHyperV2.param_inits = {value}".encode()


def _claims(folder, **claims):
    card = json.loads((folder / CONFIG).read_text())
    card["optimizer"]["arguments"].update(claims)
    (folder / CONFIG).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("small_fc", {"hidden_size": HUGE}),
        ("small_fc", {"hidden_layers": HUGE}),
        ("small_fc", {"hidden_layers": 5000}),
        ("small_fc", {"momentum_decays": [0.9] * 10**5}),
        ("celo2", {"ns_iters": HUGE}),
        ("celo2", {"features": ["g"] * 10**5}),
        ("celo2", {"regex_1d": "(" * 20_000}),
        ("velo", {"lstm_hidden_size": HUGE}),
        ("velo", {"param_inits": HUGE}),
        ("lstm", {"hidden_layers": HUGE}),
        ("l2o_scale", {"level_sizes": [3, HUGE, 5]}),
        ("wrapped", {"optimizer": {"name": "mlp", "arguments": {"hidden_size": HUGE}}}),
    ],
)
def test_sizes_are_held_against_the_weights_before_anything_is_built(
    name, claim, tmp_path, monkeypatch
):
    folder = l2o.save(tmp_path / "w", *_with_theta(OWN[name]))
    _claims(folder, **claim)
    monkeypatch.setattr("l2o.files._frozen.make", None)
    with pytest.raises(
        ValueError, match=rf"^{folder / CONFIG}: .* (but the weights a|is)"
    ):
        l2o.load(folder, num_steps=3)


@pytest.mark.parametrize(
    ("kind", "name", "file", "content"),
    [
        ("own", "small_fc", CONFIG, b"[" * 10**5),
        ("own", "small_fc", CONFIG, b'{"a":' * 10**5),
        ("own", "small_fc", CONFIG, b" " * 5 * 10**6),
        ("own", "small_fc", CONFIG, b'{"format": ' + b"9" * 5000 + b"}"),
        ("own", "small_fc", CONFIG, b'{"format": NaN}'),
        ("own", "small_fc", CONFIG, b"\xff"),
        ("own", "small_fc", WEIGHTS, b""),
        ("pylo", "mulo", WEIGHTS, b"\xff" * 100),
        ("pylo", "mulo", WEIGHTS, (10**5).to_bytes(8, "little") + b"[" * 10**5),
        ("pylo", "mulo", "decays.json", b'{"rms_decays": ' + b"[" * 10**5),
        ("pylo", "mulo", "decays.json", b'{"rms_decays": [1' + b"0" * 400 + b"]}"),
        ("pylo", "mulo", "decays.json", b"\xff"),
        ("pylo", "celo2", CONFIG, b'{"activation": {}}'),
        ("flax", "celo", "theta.state", b"\xdd\xff\xff\xff\xff"),
        ("flax", "celo", "theta.state", b"\x81\xa1a" * 10**5),
        ("flax", "celo", "theta.state", msgpack.packb({"0": [], "1": "", "2": 0})),
        (
            "flax",
            "celo",
            "theta.state",
            msgpack.packb({"name": 1, "fields": 2, "values": 3}),
        ),
        (
            "flax",
            "celo",
            "theta.state",
            msgpack.packb({"params": 1, "gen_id": 2, "step": 3}),
        ),
        ("gin", "HyperV2", "config.gin", _bound("(" * 10**5)),
        ("gin", "HyperV2", "config.gin", _bound("-" * 10**5 + "1")),
        ("gin", "HyperV2", "config.gin", _bound("[" * 80 + "]" * 80)),
        ("gin", "HyperV2", "config.gin", _bound("1000000000")),
        ("gin", "HyperV2", "config.gin", b"\xff"),
        ("gin", "HyperV2", "config.gin", b"#" * 5 * 10**6),
        (
            "gin",
            "Celo2",
            "config.gin",
            b"run_train.lopt = @Celo2()\nCelo2.regex_1d = '('",
        ),
    ],
)
def test_hostile_files_are_refused_by_name(kind, name, file, content, tmp_path):
    source, arguments = write(kind, name, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / file}") as error:
        l2o.load_unbound(source, **arguments)
    assert type(error.value) is ValueError and not LEAKS.search(str(error.value))


@pytest.mark.parametrize(
    "error",
    [
        *(AttributeError, KeyError, TypeError, RecursionError, OverflowError),
        *(MemoryError, IndexError, ZeroDivisionError, re.error),
        *(msgpack.ExtraData, msgpack.StackError, safetensors.SafetensorError),
    ],
)
def test_what_libraries_say_gives_way_to_what_was_expected(error, tmp_path):
    raised = error("secret", b"") if error is msgpack.ExtraData else error("secret")
    message = rf"^{tmp_path} .*, expected a card"
    with pytest.raises(ValueError, match=message) as found, reading(tmp_path, "a card"):
        raise raised
    assert type(found.value) is ValueError and "secret" not in str(found.value)


def test_what_l2o_says_is_kept(tmp_path):
    for error in (ValueError("x is 3"), Malformed("x is 3")):
        message = rf"^{tmp_path}: x is 3$"
        with pytest.raises(ValueError, match=message), reading(tmp_path, "a card"):
            raise error
    with pytest.raises(PermissionError), reading(tmp_path, "a card"):
        raise PermissionError(13, "denied")


@pytest.mark.parametrize("keys", [["b99"], ["b9999"], [f"b{i}" for i in range(3000)]])
def test_layers_are_counted_in_the_file(keys, tmp_path):
    tree = to_tree(some_theta(SMALL["small_fc"]), SMALL["small_fc"])
    tree["nn"]["~"] |= dict.fromkeys(keys, np.zeros(1, np.float32))
    path = tmp_path / "theta.state"
    path.write_bytes(flax.serialization.to_bytes(tree))
    message = rf"^{path}: hidden_layers of small_fc is \d+, but the weights are"
    with pytest.raises(ValueError, match=message):
        l2o.load(path)


def test_wrappers_in_wrappers_are_counted(tmp_path):
    folder = l2o.save(tmp_path / "w", *_with_theta(OWN["wrapped"]))
    inner = {"name": "mlp", "arguments": {}}
    for _ in range(200):
        inner = {"name": "clip", "arguments": {"optimizer": inner}}
    _claims(folder, optimizer=inner)
    with pytest.raises(
        ValueError, match=r"more than 16 optimizers are wrapped in each"
    ):
        l2o.load(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_refused(kind, bad, tmp_path):
    source, arguments = write(kind, KINDS[kind][1][0], tmp_path)
    for path in tmp_path.rglob(WEIGHTS):
        arrays = safetensors.numpy.load_file(path)
        name = sorted(arrays)[0]
        arrays[name].flat[0] = bad
        safetensors.numpy.save_file(arrays, path)
    for path in (tmp_path / "theta.state", tmp_path / "params"):
        if path.exists():
            tree = flax.serialization.msgpack_restore(path.read_bytes())
            leaves, structure = jax.tree.flatten(tree)
            leaves[0] = np.full_like(leaves[0], bad)
            tree = jax.tree.unflatten(structure, leaves)
            path.write_bytes(flax.serialization.to_bytes(tree))
    if kind == "own":
        card = json.loads((source / CONFIG).read_text())
        content = (source / WEIGHTS).read_bytes()
        card["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        (source / CONFIG).write_text(json.dumps(card))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}.*: \S+ is NaN or infinite in pl"
    ):
        l2o.load_unbound(source, **arguments)


def test_every_argument_of_every_optimizer_can_be_recorded():
    """Types that `check_recorded` does not understand would refuse sound cards."""
    for name, factory in {**l2o.factories(), **l2o.wrapper_factories()}.items():
        needed = {
            key: 0.1 if key == "decay_per_step" else l2o.learnable_sgd()
            for key, default in l2o.defaults_of(factory).items()
            if default is inspect.Parameter.empty
        }
        optimizer = factory(**needed)
        recorded = json.loads(json.dumps(dict(optimizer.arguments)))
        check_recorded(name, recorded, extent([(512, 512)] * 9))
