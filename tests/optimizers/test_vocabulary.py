"""One name for one meaning: CONTRIBUTING's table, and every signature."""

import collections
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path

import optax
import pytest
from every_optimizer import FACTORIES

import l2o
from l2o._options import hints_of, old_names_of

ROOT = Path(__file__).parents[2]
ALL = {**l2o.factories(), **l2o.wrapper_factories()}


def short(hint):
    """A type as the table writes it: None is said in words."""
    if hint == optax.ScalarOrSchedule:
        return "ScalarOrSchedule"
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = [x for x in parts if x is not type(None)]
        return short(hint)
    if origin is typing.Literal:
        return "Literal"
    if origin is Sequence or (origin is tuple and Ellipsis in parts):
        return f"Sequence[{short(parts[0])}]"
    if origin is tuple:
        return f"tuple[{', '.join(map(short, parts))}]"
    return getattr(hint, "__name__", str(hint))


def table():
    """argument -> the types that its row names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## One vocabulary")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if "| `" in line]
    return {
        name: {kind.strip(" `"), *re.findall(r": `([^`]+)`", meaning)}
        for names, kind, meaning in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def users():
    found = collections.defaultdict(dict)
    for name, factory in ALL.items():
        for argument, hint in hints_of(factory).items():
            found[argument][name] = short(hint)
    return found


def test_what_two_share_is_in_the_table_with_its_type():
    known = table()
    for argument, kinds in users().items():
        if len(kinds) > 1:
            assert argument in known, f"{argument} of {', '.join(kinds)}"
        if argument in known:
            unlisted = {k: v for k, v in kinds.items() if v not in known[argument]}
            assert not unlisted, f"{argument} is {unlisted}, not {known[argument]}"


def test_the_table_lists_nothing_that_nobody_has():
    assert set(table()) <= set(users())


def test_names_left_behind_are_left_by_all():
    left = {old for factory in ALL.values() for old in old_names_of(factory)}
    assert not left & set(users())


VALUES = {
    "bound": 2.0,
    "bounds": (0.5, 2.0),
    "dead_mix_layer": False,
    "decays": (0.5,),
    "factoring": {"elo_celo2": "torch_native"},
    "fused_row_mean": True,
    "layers": 3,
    "min_lr": 1e-4,
    "torch_layout": True,
    "use_bugged_loss_features": True,
    "use_bugged_next_lstm_state": True,
}
OLD = [
    (name, old, new)
    for name, factory in ALL.items()
    for old, new in old_names_of(factory).items()
]


@pytest.mark.parametrize(
    ("name", "old", "new"), OLD, ids=[f"{name}-{old}" for name, old, _ in OLD]
)
def test_an_old_name_works_and_warns_and_files_keep_it(name, old, new):
    value = VALUES.get(old, 0.5)
    if isinstance(value, dict):
        value = value.get(name, "native")
    parts = {"optimizer", "learned"} & set(hints_of(ALL[name]))
    with pytest.warns(DeprecationWarning, match=rf"{name} .*{old} is .* go in 0\.2"):
        made = ALL[name](**dict.fromkeys(parts, FACTORIES["small_fc"]), **{old: value})
    plain = {key: {"name": "small_fc", "arguments": {}} for key in parts}
    again = l2o.make(name, **plain, **{old: value})  # as a file has it: no warning
    assert again.arguments == made.arguments
    if isinstance(new, str):
        assert again.arguments[new] == json.loads(json.dumps(value))
        with pytest.raises(ValueError, match=f"{new} and {old}, its old name"):
            l2o.make(name, **plain, **{old: value, new: value})
    else:
        assert again.arguments != l2o.make(name).arguments or old == "torch_layout"


def test_an_unknown_option_is_refused_with_the_one_that_was_meant():
    with pytest.raises(TypeError, match=r"celo2\(\).*'hiden_size'.*'hidden_size'"):
        l2o.celo2(hiden_size=3)


def test_layouts_that_no_published_code_has_are_refused():
    with pytest.raises(ValueError, match="rows and columns alone"):
        l2o.make("celo2_base", factoring="torch")
    with pytest.raises(ValueError, match="torch_layout True does not go with"):
        l2o.make("elo_celo2", factoring="stable", torch_layout=True)
    assert l2o.make("celo2", variant="pylo", factoring="torch").arguments
