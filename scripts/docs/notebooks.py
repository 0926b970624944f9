"""Writes docs/notebooks/ from tutorial pages.

    python scripts/docs/notebooks.py          # writes the notebooks
    python scripts/docs/notebooks.py --check  # exit status 1 if one is out of date

A page's Python is its code cells. A block of text after it is that cell's output, so
that numbers stand in the page alone; `tests/project/test_readme.py` runs the page and
compares what it prints.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "notebooks"
PAGES = ("tutorials/train_a_model", "tutorials/own_optimizer")
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https://|#)([^)#\s]+)")
AS_A_NOTEBOOK = re.compile(r" The same\s\[as a notebook\]\([^)]*\)\.")
ABOUT = """\
*Made from [the page](../{page}.md) by `scripts/docs/notebooks.py`.*

This notebook needs l2o. In a clone: `pip install '.[train]'`. In Colab, upload the
notebook, then run `!git clone ADDRESS l2o` and `%pip install './l2o[train]'`.
"""


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines(keepends=True)


def from_here(text: str, page: Path) -> str:
    """The text with its links relative to the folder of notebooks."""

    def link(match: re.Match) -> str:
        target = (page.parent / match.group(1)).resolve()
        return f"]({Path(os.path.relpath(target, FOLDER)).as_posix()}"

    return LINK.sub(link, AS_A_NOTEBOOK.sub("", text))


def notebook(name: str) -> dict[str, Any]:
    """The notebook of a page: nbformat 4.5."""
    page = DOCS / f"{name}.md"
    title, _, rest = page.read_text().partition("\n\n")
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str, **more: Any) -> None:
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        cells.append({**cell, "source": lines(text), **more})

    add("markdown", f"{title}\n\n{ABOUT.format(page=name)}")
    end, code = 0, None
    for block in BLOCK.finditer(rest):
        if prose := from_here(rest[end : block.start()], page).strip():
            add("markdown", prose)
        if block.group(1) == "python":
            add("code", block.group(2), execution_count=None, outputs=[])
            code = cells[-1]
        elif code is not None:
            code["outputs"] = [
                {
                    "name": "stdout",
                    "output_type": "stream",
                    "text": block.group(2).splitlines(keepends=True),
                }
            ]
            if cells[-1] is not code:  # "It prints:", between the two
                cells.pop()
            code = None
        end = block.end()
    add("markdown", from_here(rest[end:], page))
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name in PAGES:
        path = FOLDER / f"{Path(name).name}.ipynb"
        text = json.dumps(notebook(name), indent=1, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(DOCS.parent).as_posix())
        if not options.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    print("\n".join(stale) or "up to date")
    sys.exit(bool(options.check and stale))


if __name__ == "__main__":
    main()
