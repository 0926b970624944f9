"""Every command on a page is one that the program takes.

Nothing is trained: what the commands would do is replaced, the rest is as it is. The
tutorials' commands and the demo are run by `test_cli`, in small.
"""

import re
import shlex
from pathlib import Path

import pytest

import l2o
from l2o.meta_train import Result
from l2o.meta_train.cli import _main as cli
from l2o.meta_train.cli._main import main

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.parent.name != "lab_notes"  # they say what was typed then
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
PROGRAMS = ("l2o", "make", "python")


def commands(page):
    """Those in blocks, and those with options or a second word within a line."""
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language in ("", "console", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] in PROGRAMS:
                    yield _whole(words)
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        words = code.split()
        if words[0] in PROGRAMS and len(words) > 1:
            yield _whole(words)


def _whole(words):
    """With what "..." and a shell's variables stand for."""
    words = [re.sub(r"\$\w+", "1", word) for word in words if word != "..."]
    if words[1] == "meta-train" and "--out" not in words:
        words += ["--out", "runs/mine"]
    return words


# Made up on docs/extending.md; `test_doors` has a distribution with such names.
MADE_UP = {"half_sgd", "my_preset", "./my_preset.py"}
COMMANDS = {
    shlex.join(words): words
    for page in PAGES
    for words in sorted(commands(page))
    if not MADE_UP & set(words)
}


@pytest.fixture
def done(monkeypatch):
    """Names of what would have been done."""
    seen = []

    def replace(name, result=None):
        def instead(*args, **kwargs):
            seen.append(name)
            return result

        monkeypatch.setattr(cli, name, instead)

    completed = Result({}, l2o.learnable_sgd(), None, True, 3)
    for name, result in {"run": completed, "demo": completed}.items():
        replace(name, result)
    for name in (
        "evaluate_command",
        "follow",
        "report_command",
        "study",
        "list_tasks",
        "show_task",
        "print_list",
        "show",
    ):
        replace(name)

    class Findings:
        class recommendation:
            estimator = "pes"

    replace("diagnose_source", Findings)
    return seen


def test_pages_have_commands():
    assert len(COMMANDS) > 30
    assert {words[1] for words in COMMANDS.values() if words[0] == "l2o"} >= {
        "meta-train",
        "evaluate",
        "report",
        "tradeoffs",
        "diagnose",
        "tasks",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_program_takes_it(command, done, capsys):
    program, *words = COMMANDS[command]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {w for w in words if "=" not in w and w[0] != "-"} <= set(targets)
    elif program == "python":
        _check_script(words)
    elif "--help" in words or "--help-all" in words:
        with pytest.raises(SystemExit, match="0"):
            main(words)
    else:
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        told = capsys.readouterr().err
        if len(words) == 1 and re.search("missing|name (a|what)", told):
            return  # the command is named, not typed
        if words[-1].startswith("--") and f"{words[-1]} needs a value" in told:
            return  # so is the option
        assert status == 0, told
        assert done or words == ["--version"]


def _check_script(words):
    path = next((w for w in words if w.endswith(".py")), None)
    if path is None:
        return  # a module of someone else's
    text = (ROOT / path).read_text()
    for word in words[words.index(path) :]:
        if word.startswith("--"):
            assert f'"{word}"' in text, (path, word)
