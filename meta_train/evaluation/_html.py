"""The skeleton of a page: sections, tables, folded parts and pictures, in one file."""

import base64
import contextlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import matplotlib

from ._figures import Picture

_MANY_ROWS = 13  # of more some can be searched
_WIDE, _MANY = 7, 9  # columns that need a wide screen, or a wider one
_FULL = 9.5  # inches of a picture that takes a whole row


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
      text: what is shown.
      key: what it is sorted by.
      note: shown smaller, behind the text.
      span: (low, value, high) to draw, from 0 to 1, and where to draw a mark.
    """

    text: str
    key: float | str
    note: str = ""
    span: tuple[float, float, float, float] | None = None


class Page:
    """Collects the parts of the body, and writes pictures as they come.

    Args:
      path: of the HTML file; pictures go to `figures/` beside it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._parts: list[str] = []
        self._sections: dict[str, str] = {}

    @contextlib.contextmanager
    def section(self, title: str) -> Iterator[None]:
        """A part with a heading, which the table of contents lists."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self._sections[name] = title
        self._parts.append(
            f'<section aria-labelledby="{name}">\n'
            f'<h2 id="{name}">{html.escape(title)}</h2>'
        )
        yield
        self._parts.append("</section>")

    @contextlib.contextmanager
    def folded(self, summary: str, *, heading: bool = False) -> Iterator[None]:
        """A part that opens when its summary is clicked."""
        text = html.escape(summary)
        text = f"<h3>{text}</h3>" if heading else text
        self._parts.append(f"<details><summary>{text}</summary>")
        yield
        self._parts.append("</details>")

    @contextlib.contextmanager
    def box(self, kind: str) -> Iterator[None]:
        """A group of a class that the style sheet has."""
        self._parts.append(f'<div class="{kind}">')
        yield
        self._parts.append("</div>")

    def heading(self, text: str) -> None:
        """Of a part within a section."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """Plain text."""
        kind = f' class="{kind}"' if kind else ""
        self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def items(self, texts: Sequence[str]) -> None:
        """A list."""
        inside = "".join(f"<li>{html.escape(x)}</li>" for x in texts)
        self._parts.append(f"<ul>{inside}</ul>")

    def terms(self, pairs: Sequence[tuple[str, str]], kind: str = "terms") -> None:
        """Terms, each with its text."""
        inside = "".join(
            f"<div><dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd></div>"
            for term, text in pairs
        )
        self._parts.append(f'<dl class="{kind}">{inside}</dl>')

    def verbatim(self, text: str) -> None:
        """Text with its line breaks."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str
    ) -> None:
        """A table; on a narrow screen every row is a card.

        Roles are spelled out, because the cards' display would take them away.
        """
        head = "".join(
            f'<th scope="col" role="columnheader">{html.escape(x)}</th>' for x in header
        )
        body = "\n".join(
            f'<tr role="row">{_row_html(header, row)}</tr>' for row in rows
        )
        size = " many" if len(header) >= _MANY else " wide"
        kind = "table" + (size if len(header) >= _WIDE else "")
        search = " data-search" if len(rows) > _MANY_ROWS else ""
        self._parts.append(
            f'<div class="{kind}"{search}><table role="table"><caption>'
            f'{html.escape(caption)}</caption><thead role="rowgroup"><tr role="row">'
            f'{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
        )

    def gallery(self, pictures: Sequence[tuple[str, Picture]]) -> None:
        """Pictures side by side, as many as fit; each with the name of its file."""
        if pictures:
            inside = "\n".join(self._figure(*x) for x in pictures)
            self._parts.append(f'<div class="gallery">{inside}</div>')

    def _figure(self, name: str, picture: Picture) -> str:
        title, figure, words = picture
        folder = self.path.parent / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        safe = "".join(x if x.isalnum() or x in "-_" else "_" for x in name)
        buffer = io.BytesIO()
        # Fixed identifiers and no date: the same numbers give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        (folder / f"{safe}.svg").write_bytes(buffer.getvalue())
        figure.savefig(folder / f"{safe}.png", dpi=120, metadata={"Software": None})
        data = base64.b64encode(buffer.getvalue()).decode()
        width, height = figure.get_size_inches()
        # To be scrolled with the keyboard it has to take the focus.
        return (
            f'<figure tabindex="0"{" class=full" if width > _FULL else ""}>'
            f"<figcaption>{html.escape(title)}</figcaption>"
            f'<img alt="{html.escape(words)}" width="{round(96 * width)}" '
            f'height="{round(96 * height)}" src="data:image/svg+xml;base64,{data}">'
            "</figure>"
        )

    def write(self, title: str) -> Path:
        """Writes the file; returns its path."""
        links = "".join(
            f'<li><a href="#{name}">{html.escape(text)}</a></li>'
            for name, text in self._sections.items()
        )
        here = resources.files(__package__)
        style, script = (
            (here / f"page.{kind}").read_text(encoding="utf-8")
            for kind in ("css", "js")
        )
        page = _PAGE.format(
            title=html.escape(title),
            style=style,
            script=script,
            links=links,
            body="\n".join(self._parts),
        )
        self.path.write_text(page, encoding="utf-8")
        return self.path


def _row_html(header: Sequence[str], row: Sequence[Cell]) -> str:
    def cell(i: int, cell: Cell) -> str:
        key = f"{cell.key:.17g}" if isinstance(cell.key, int | float) else cell.key
        note = f" <small>{html.escape(cell.note)}</small>" if cell.note else ""
        # A long name breaks before its rate, not within.
        text = html.escape(cell.text).replace(":", ":<wbr>")
        inside = text + note + _span_html(cell.span)
        if i == 0:
            tag, kind = "th", 'scope="row" role="rowheader"'
        else:
            tag, kind = "td", f'role="cell" data-label="{html.escape(header[i])}"'
        return f'<{tag} {kind} data-key="{html.escape(key)}">{inside}</{tag}>'

    return "".join(cell(i, each) for i, each in enumerate(row))


def _span_html(span: tuple[float, float, float, float] | None) -> str:
    """An interval as a line with a dot; its numbers stand in the same cell."""
    if span is None:
        return ""
    low, value, high, mark = (f"{2 + 196 * x:.1f}" for x in span)
    return (
        '<svg viewBox="0 0 200 10" aria-hidden="true">'
        f'<path class="one" d="M{mark} 0V10" stroke-dasharray="2 2"/>'
        f'<path d="M{low} 5H{high}" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{value}" cy="5" r="3.5" fill="currentColor"/></svg>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>l2o: {title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{title}</h1>
</header>
<nav aria-label="Contents">
<ul>{links}</ul>
</nav>
<main id="content" tabindex="-1">
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
