"""The documentation site: `make docs` builds it, and fails where Sphinx warns."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "l2o"
author = "the l2o authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "l2o"
exclude_patterns = ["conf.py"]
default_role = "code"  # `x` in docstrings
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True  # attributes are described in the class's text
napoleon_custom_sections = [("Source", "notes_style")]
copybutton_exclude = ".linenos, .gp, .go"
REPOSITORY = os.environ.get("L2O_REPOSITORY", "")  # where links out of docs/ lead


def _help(match: re.Match) -> str:
    command = match.group(1)
    line = ["l2o", *([command] if command else []), "--help"]
    done = subprocess.run(
        [Path(sys.executable).with_name("l2o"), *line[1:]],
        env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return f"## `{' '.join(line[:-1])}`\n\n```text\n{done.stdout.rstrip()}\n```\n\n"


def _link(match: re.Match, folder: Path) -> str:
    """A link within docs as it is, another one to the repository if there is one."""
    image, text, target = match.groups()
    if image or target.startswith(("https://", "#")):
        return match.group(0)
    found = (folder / target.partition("#")[0]).resolve()
    if not found.exists() or found.is_relative_to(ROOT / "docs"):
        return match.group(0)
    inside = found.relative_to(ROOT).as_posix()
    if REPOSITORY:
        return f"[{text}]({REPOSITORY}/blob/main/{inside})"
    return f"{text} (`{inside}`)"


def _fill_in(app, docname, content):
    """The README, help texts, and links out of docs."""
    del app
    folder = (ROOT / "docs" / docname).parent
    text = content[0]
    if "<!-- README -->" in text:
        readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
        text = text.replace("<!-- README -->", readme)
        text = re.sub(r"\]\((?=CONTRIBUTING|CHANGELOG)", "](../", text)
    text = re.sub(r"<!-- help: ?([\w-]*) -->\n?", _help, text)
    pattern = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
    content[0] = pattern.sub(lambda match: _link(match, folder), text)


def _as_rst(app, what, name, obj, options, lines):
    """Tables of docstrings, which are in Markdown, as reStructuredText."""
    del app, what, name, obj, options
    out, rows = [], []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if rows:
            head, _, *body = rows
            out += ["", ".. list-table::", "   :header-rows: 1", ""]
            for row in (head, *body):
                out += [
                    f"   {'* -' if i == 0 else '  -'} {cell}"
                    for i, cell in enumerate(row)
                ]
            out += [""]
            rows = []
        out.append(line)
    lines[:] = out[:-1]


def _skip(app, what, name, obj, skip, options):
    """Fields of named tuples, which their class describes."""
    del app, what, name, options
    return True if type(obj).__name__ == "_tuplegetter" else skip


def setup(app):
    app.connect("autodoc-skip-member", _skip)
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-docstring", _as_rst)
