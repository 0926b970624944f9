"""Weight files that were damaged: loaded whole, or refused by name."""

import hashlib
import json
import random
import re

import jax
import msgpack
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from every_weight_file import HUGE, KINDS, LEAKS, write
from weight_files import CONFIG, WEIGHTS

import l2o

MUTANTS = 120  # of each kind
DEEP = "@deep@"
VALUES = (
    *(None, True, False, -1, 0, 1, 3, 17, HUGE, 10**18, 10**400, 0.5, -0.1, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "relu", "(", f"a{{{HUGE}00}}", "\0"),
    *([], [1], ["x"], [None], [0.9] * 5000, [[0.9]], ["g"] * 5000, {}, {"x": 1}),
    *({"name": "small_fc", "arguments": {}}, {"name": "clip", "arguments": 3}, DEEP),
)
DTYPES = ("F16", "F64", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "X", 3)


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
