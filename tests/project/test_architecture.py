"""Who may import whom, by a table of rooms; how long files and functions may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "l2o.tasks": ROOT / "tasks",
    "l2o.meta_train": ROOT / "meta_train",
    "l2o.checkpoints": ROOT / "checkpoints",
    "l2o": ROOT / "l2o",
}

# A room is a folder, or a module on top of its package. Of its own package it imports
# what stands in its row, of other packages only what is public.
ROOMS = {
    "l2o": {
        "__init__": "files kernels optimizers wrappers recurrent rule _available _axes "
        "_base _options _registry _runs _transformation names",
        "_runs": "_arguments",
        "_axes": "names",
        "_views": "_axes _tensors",
        "_stacks": "_tensors",
        "_available": "files _base _registry",
        "files": "recurrent rule _arguments _base _options _registry names",
        "_registry": "optimizers wrappers _base _options doors",
        "optimizers": "kernels recurrent rule wrappers _arguments _axes _base _options "
        "_stacks _tensors _transformation _views names",
        "wrappers": "rule _arguments _axes _base _options _tensors _transformation "
        "_views names",
        "kernels": "rule _tensors names",
        "rule": "_tensors names",
        "recurrent": "_tensors",
        "_transformation": "_tensors",
        "_base": "_arguments",
        "_arguments": "_options",
        "_options": "names",
        "_tensors": "",
        "doors": "names",
        "names": "",
    },
    "l2o.tasks": {
        "__init__": "augment data families suites _adapters _base _cost "
        "_distributions _losses _registry _spec",
        "_registry": "suites _base _spec",
        "suites": "data _distributions _spec",
        "_distributions": "augment data _choices _cost _spec",
        "families": "augment data models _adapters _base _choices _losses "
        "_orthonormal _spec",
        "models": "_adapters",
        "_adapters": "data _base _choices",
        "_cost": "_base _spec",
        "augment": "data _base _spec",
        "_spec": "_base",
        "_base": "data",
        "_choices": "_orthonormal",
        "data": "",
        "_losses": "",
        "_orthonormal": "",
    },
    "l2o.meta_train": {
        "__main__": "cli",
        "__init__": "diagnosis estimators evaluation training _config _mesh _processes",
        "cli": "diagnosis evaluation presets tradeoffs training _config _mesh _palette "
        "_processes _progress",
        "tradeoffs": "evaluation files training _config _palette _progress",
        "evaluation": "estimators files training _config _palette",
        "diagnosis": "estimators _config _palette _progress",
        "training": "estimators files _config _mesh _processes _progress",
        "presets": "_config",
        "_config": "estimators",
        "estimators": "_mesh",
        "files": "",
        "_palette": "",
        "_processes": "_mesh",
        "_progress": "",
        "_mesh": "",
    },
    "l2o.checkpoints": {"__init__": ""},
}
BETWEEN_PACKAGES = {
    "l2o": set(),
    "l2o.checkpoints": set(),
    "l2o.tasks": {"l2o"},
    "l2o.meta_train": {"l2o", "l2o.tasks"},
}


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *(x for x in parts if x != "__init__")])


MODULES = {
    module_name(package, path): path
    for package, folder in PACKAGES.items()
    for path in folder.rglob("*.py")
}


def package_of(module: str) -> str:
    return next(x for x in PACKAGES if f"{module}.".startswith(f"{x}."))


def room_of(module: str) -> str:
    inside = module.removeprefix(package_of(module)).strip(".")
    return inside.partition(".")[0] or "__init__"


def imported(path: Path, module: str = "") -> Iterator[tuple[str, str]]:
    """Modules of l2o that a file imports, each with the name taken from it."""
    here = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((x.name, "") for x in node.names if x.name.startswith("l2o"))
        if not isinstance(node, ast.ImportFrom):
            continue
        up = here[: len(here) - node.level + 1] if node.level else []
        source = ".".join([*up, *([node.module] if node.module else [])])
        if source.partition(".")[0] != "l2o":
            continue
        for name in (x.name for x in node.names):
            whole = f"{source}.{name}"
            yield (whole, "") if whole in MODULES else (source, name)


def is_private(module: str, name: str) -> bool:
    return any(x.startswith("_") for x in [*module.split("."), name])


IMPORTS = {m: list(imported(path, m)) for m, path in MODULES.items()}


def test_every_import_of_the_package_is_understood():
    unknown = {(m, x) for m, found in IMPORTS.items() for x, _ in found}
    assert {x for _, x in unknown} <= MODULES.keys()
    assert sum(map(len, IMPORTS.values())) > 500


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_what_their_row_says(package):
    found: dict[str, set[str]] = {}
    for module in MODULES:
        if package_of(module) == package:
            into = found.setdefault(room_of(module), set())
            for target, _ in IMPORTS[module]:
                if package_of(target) == package and room_of(target) != room_of(module):
                    into.add(room_of(target))
    table = {room: set(row.split()) for room, row in ROOMS[package].items()}
    # Both ways: a row that allows what nobody needs hides a door.
    assert found == table


def test_no_module_takes_what_another_calls_its_own():
    for module, found in IMPORTS.items():
        for target, name in found:
            assert not name.startswith("_"), (module, target, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way_and_nothing_private(package):
    for module in MODULES:
        if package_of(module) != package:
            continue
        for target, name in IMPORTS[module]:
            if package_of(target) != package:
                assert package_of(target) in BETWEEN_PACKAGES[package], module
                assert not is_private(target, name), (module, target, name)


def test_scripts_import_nothing_private():
    for path in (ROOT / "scripts").rglob("*.py"):
        for target, name in imported(path):
            assert not is_private(target, name), (path.name, target, name)


def test_no_circle_of_rooms():
    """The rows, in whatever order, lead down only."""
    for rows in ROOMS.values():
        left = {room: set(row.split()) for room, row in rows.items()}
        while left:
            ready = {room for room, row in left.items() if not row & left.keys()}
            assert ready, f"a circle among {sorted(left)}"
            left = {room: row for room, row in left.items() if room not in ready}


def test_no_circle_of_modules():
    left = {m: {x for x, _ in found} - {m} for m, found in IMPORTS.items()}
    while left:
        ready = {m for m, targets in left.items() if not targets & left.keys()}
        assert ready, f"a circle among {sorted(left)}"
        left = {m: targets for m, targets in left.items() if m not in ready}


LARGEST_FILE, LARGEST_FUNCTION = 500, 100  # lines
SOURCES = [
    path
    for folder in ("l2o", "tasks", "meta_train", "checkpoints", "scripts", "tests")
    for suffix in ("py", "h", "cc")
    for path in (ROOT / folder).rglob(f"*.{suffix}")
    if "site-packages" not in path.parts
]


def test_a_file_is_one_idea():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in SOURCES
    }
    assert len(lines) > 400
    assert {k: n for k, n in lines.items() if n > LARGEST_FILE} == {}


def test_a_function_fits_a_screen_or_two():
    """Without its docstring, and without the functions that it defines."""
    found = {}
    for path in SOURCES:
        if path.suffix != ".py" or path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found[path.name, node.name] = _own_lines(node)
    assert {k: n for k, n in found.items() if n > LARGEST_FUNCTION} == {}


def _own_lines(node):
    first = node.body[0]
    told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    lines = node.end_lineno - (first.end_lineno if told else node.lineno)
    inner = [x for x in ast.walk(node) if isinstance(x, ast.FunctionDef)][1:]
    return lines - sum(x.end_lineno - x.lineno for x in inner if x in node.body)
