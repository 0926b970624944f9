"""The page about an evaluation: its numbers, its structure, its colours."""

import base64
import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from boards import (
    HOSTILE,
    PROTOCOL,
    RECORDS,
    TASKS,
    a_board,
    board_of,
    card,
    contestant,
    result,
)
from matplotlib.figure import Figure

from l2o.meta_train.evaluation import leaderboard
from l2o.meta_train.evaluation._aggregate import iqm
from l2o.meta_train.evaluation._figures import names_in_picture, one_rate_figure
from l2o.meta_train.evaluation._page import write_page
from l2o.meta_train.evaluation._tables import task_rows, task_table, terminal_table

SPEEDS = {"adam": 3.0, "fast": 5.0}


@pytest.fixture(scope="module")
def board():
    return a_board()


@pytest.fixture(scope="module")
def page(board, tmp_path_factory):
    figure = Figure()
    figure.subplots().plot([0, 1])
    return write_page(
        tmp_path_factory.mktemp("page") / "report.html",
        board,
        records=RECORDS,
        behaviour={"fast": [("What it does", figure, "a line")]},
    )


class _Parser(HTMLParser):
    """All tags with their attributes; tables as caption -> rows of texts."""

    def __init__(self):
        super().__init__()
        self.tags, self.tables, self._rows = [], {}, []
        self._into = None  # texts of the cell or caption that is open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._into = []

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption"):
            text = " ".join("".join(self._into).split())
            if tag == "caption":
                assert text not in self.tables
                self.tables[text] = self._rows
            else:
                self._rows[-1].append(text)
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def _parsed(path):
    parser = _Parser()
    parser.feed(path.read_text())
    return parser


def test_good_rates_are_counted_by_the_judged_loss_without_the_diverged(board):
    def with_speeds(speeds, lost=()):
        trials = [result("x", "easy", rate, v) for rate, v in speeds.items()]
        for i in lost:
            found = trials[i].curves.items()
            curves = {split: {"loss": x["loss"].copy()} for split, x in found}
            curves["train"]["loss"][0, -1] = np.nan
            trials[i] = dataclasses.replace(trials[i], curves=curves)
        one = contestant("x", 1.0, (1.0,))._replace(trials={"easy": tuple(trials)})
        return board._replace(contestants={"x": one}).rate_range("x", "easy")

    speeds = {1e-2: 3.0, 1e-1: 2.95, 1e-3: 2.9, 1e0: 1.0}
    assert with_speeds(speeds) == pytest.approx(2.0)
    assert with_speeds(speeds, lost=[1]) == pytest.approx(1.0)
    assert np.isnan(with_speeds({1e-2: 3.0, 1e-1: 2.95}))


def test_numbers_on_the_page_are_those_of_the_curves(board, page):
    stored = json.loads(page.with_name("leaderboard.json").read_text())
    assert stored["protocol"] == PROTOCOL._asdict()
    tables = _parsed(page).tables
    header, *rows = tables["All columns"]
    names = [row["name"] for row in stored["rows"]]
    cells = {next(x for x in names if row[0].startswith(x)): row for row in rows}
    assert len(cells) == len(rows) == len(stored["rows"]) == 5
    short, *first = tables["All optimizers, the best score first"]
    assert len(short) == 6
    for row in first:
        columns = [header.index(name) for name in short]
        assert row in [[x[i] for i in columns] for x in rows]
    for row in stored["rows"]:
        scores = []
        for task in TASKS:
            chosen, adam = board.chosen(row["name"], task), board.chosen("adam", task)
            loss, rival = (x.curves["test"]["loss"] for x in (chosen, adam))
            gain = loss[:, 0].mean() - rival[:, -5:].mean()
            share = (loss[:, 0] - loss[:, -5:].mean(1)) / gain
            scores.append(np.nan_to_num(share, nan=0.0))
        assert row["score"]["value"] == pytest.approx(iqm(np.ravel(scores)))
        areas = []
        for task in TASKS:
            mine, adam = (
                board.chosen(x, task).curves["train"]["loss"]
                for x in (row["name"], "adam")
            )
            under = [(x[:, 1:] + x[:, :-1]).mean(1) / 2 for x in (mine, adam)]
            gain = mine[:, 0].mean() - under[1].mean()
            areas.append(np.nan_to_num((mine[:, 0] - under[0]) / gain, nan=0.0))
        assert row["area"]["value"] == pytest.approx(iqm(np.ravel(areas)))
        shown = cells[row["name"]]
        # Adam's three rates end at 0.20, 0.23 and 0.26, lion's alike: the best alone
        # is within 5 %. The others tried one.
        decades = {"adam": 0.0, "lion": 0.0}.get(row["name"])
        assert row["rate_range"] == decades
        assert shown[-1] == ("–" if decades is None else f"{decades:.2f}")
        assert shown[1].startswith(f"{row['score']['value']:.2f} (")
        p = "–" if row["name"] == "adam" else f"{row['p']:.2g}"
        assert shown[header.index("p")] == p
    assert names == [row.name for row in leaderboard(board)]
    assert [(x["name"], x["against"]) for x in stored["claims"]] == [
        ("fast", "adam"),
        ("fast", "lion"),
        (HOSTILE, "adam"),
        (HOSTILE, "lion"),
    ]
    assert cells["sgd"][header.index("diverged")] == "1 of 9"
    assert cells["adam"][header.index("better than Adam")] == "–"
    assert cells["fast"][header.index("better than Adam")] == "3 of 3"
    assert cells["fast"][header.index("update / Adam")] == "2.50"
    # Adam's chosen rate is the middle one of three, lion's too: no star.
    assert cells["fast"][0] == "fast learned, untuned"
    assert cells["adam"][0] == "adam 3 rates tried"


def test_the_page_needs_nothing_else_and_escapes_what_it_is_given(page):
    text = page.read_text()
    parsed = _parsed(page)
    images = parsed.all("img")
    assert len(images) == 6
    for image in images:
        svg = base64.b64decode(image["src"].split(",")[1]).decode()
        assert svg.lstrip().startswith("<?xml") and "</svg>" in svg
    names = ("src", "href", "srcset", "action", "poster")
    links = [x[k] for _, x in parsed.tags for k in names if k in x]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|fetch\(|import\(", text)
    assert len(parsed.all("script")) == 1 and "<script>alert" not in text
    assert "a note &amp; more" in text
    assert sorted(x.suffix for x in (page.parent / "figures").iterdir()) == (
        [".png"] * 6 + [".svg"] * 6
    )


def test_headings_are_in_order_and_the_contents_lead_to_them(page):
    parsed = _parsed(page)
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and {2, 3} <= set(levels)
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [x["id"] for _, x in parsed.tags if "id" in x]
    assert len(set(ids)) == len(ids)
    skip, *links = [x["href"].removeprefix("#") for x in parsed.all("a")]
    assert skip == parsed.all("main")[0]["id"]
    assert links == [x["id"] for x in parsed.all("h2")] != []
    assert links == [x["aria-labelledby"] for x in parsed.all("section")]
    assert links[0] == "verdict"
    for landmark in ("header", "nav", "main"):
        assert len(parsed.all(landmark)) == 1
    assert parsed.all("nav")[0]["aria-label"] and parsed.all("html")[0]["lang"] == "en"


def test_pictures_and_tables_say_what_they_are(page):
    parsed = _parsed(page)
    assert all(x["alt"] for x in parsed.all("img"))
    drawn = parsed.all("svg")
    assert len(drawn) == 5
    assert all(x.get("aria-hidden") == "true" or x.get("aria-label") for x in drawn)
    assert len(parsed.tables) == len(parsed.all("table")) >= 5
    assert all(parsed.tables)
    assert all(x["role"] == "table" for x in parsed.all("table"))
    heads = parsed.all("th")
    assert {x["scope"] for x in heads} == {"col", "row"}
    for x in heads:
        assert x["role"] == {"col": "columnheader", "row": "rowheader"}[x["scope"]]
    # On a narrow screen the label stands beside the cell.
    labels = iter(x["data-label"] for x in parsed.all("td"))
    for header, *rows in parsed.tables.values():
        for row in rows:
            assert [next(labels) for _ in row[1:]] == header[1:]


def _schemes():
    """The colours of the style sheet by name, light and dark."""
    style = resources.files("l2o.meta_train.evaluation") / "page.css"
    text = style.read_text()
    blocks = re.findall(r":root \{(.*?)\}", text, re.S)
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks
    )
    assert light.keys() == dark.keys()
    rest = re.sub(r":root \{.*?\}", "", text, flags=re.S)
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb|hsl", rest)  # or it is not seen here
    return {"light": light, "dark": dark}


def _contrast(one, other):
    """As WCAG 2 defines it."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
        ]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_colours_have_contrast(scheme):
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = _schemes()[scheme]
    for back in ("back", "soft"):
        for text in ("text", "muted", "link"):
            assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)
        for mark in ("accent", "focus"):
            assert _contrast(colours[mark], colours[back]) >= 3, (mark, back)


def test_of_a_long_leaderboard_the_first_and_adam_are_shown(board, tmp_path):
    many = {f"o{i}": contestant(f"o{i}", 4.0 + i / 10, (None,)) for i in range(20)}
    contestants = {"adam": board.contestants["adam"], **many}
    path = write_page(tmp_path / "p.html", board._replace(contestants=contestants))
    tables = _parsed(path).tables
    (title,) = (x for x in tables if x.startswith("The first"))
    assert title == "The first 13 of 21 optimizers, the best score first"
    names = [row[0].split()[0] for row in tables[title][1:]]
    assert names == [*(f"o{19 - i}" for i in range(12)), "adam"]
    assert len(tables["All columns"]) == 22


def test_one_seed_has_no_intervals(tmp_path):
    everyone = [contestant(x, v, (1.0,), seeds=1) for x, v in SPEEDS.items()]
    path = write_page(tmp_path / "p.html", board_of(everyone, seeds=1))
    _, *rows = _parsed(path).tables["All columns"]
    assert not any("(" in cell for row in rows for cell in row)


def test_a_page_without_adam_says_so(board, tmp_path):
    contestants = {"lion": board.contestants["lion"]}
    path = write_page(tmp_path / "p.html", board._replace(contestants=contestants))
    assert "Adam did not take part" in path.read_text()
    assert _parsed(path).tables == {}
    assert json.loads(path.with_name("leaderboard.json").read_text())["rows"] == []


def test_the_same_board_gives_the_same_bytes(board, page, tmp_path):
    again = write_page(tmp_path / "report.html", board, records=RECORDS)
    write_page(tmp_path / "other.html", board, records=RECORDS)
    assert again.read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_page_of_a_run_alone(tmp_path):
    path = write_page(tmp_path / "p.html", None, records=RECORDS, card=card("mine"))
    text = path.read_text()
    assert "Meta-training" in text and "197 meta-parameters" in text
    assert not (tmp_path / "leaderboard.json").exists()


def test_names_are_no_mathematics_and_the_folder_is_made(board, tmp_path):
    name = r"_$\frac{$"
    odd = board.contestants["lion"]._replace(name=name)
    contestants = {**board.contestants, name: odd}
    path = tmp_path / "new" / "report.html"
    assert name in write_page(path, board._replace(contestants=contestants)).read_text()


def test_overfitting_is_not_divergence(board, tmp_path):
    fast = board.contestants["fast"]
    (result,) = fast.trials["hard"]
    test = {"loss": 5 * result.curves["test"]["loss"][:, ::-1]}
    result = dataclasses.replace(result, curves={**result.curves, "test": test})
    fast = fast._replace(trials={**fast.trials, "hard": (result,)})
    contestants = {**board.contestants, "fast": fast}
    path = write_page(tmp_path / "p.html", board._replace(contestants=contestants))
    table = _parsed(path).tables["Results per task"]
    (row,) = (x for x in table if x[:2] == ["hard", "fast"])
    middle = np.median(test["loss"][:, -5:].mean(1))
    assert row[table[0].index("test loss")].startswith(f"{middle:.3g} (")


def test_figures_show_the_learned_ones_adam_and_the_best(board):
    assert names_in_picture(leaderboard(board)) == [
        "fast",
        HOSTILE,
        "adam",
        "lion",
        "sgd",
    ]
    assert names_in_picture(leaderboard(board), 4) == ["fast", HOSTILE, "adam", "lion"]


def test_scores_with_one_rate_for_all(board):
    found = board.scores_by_rate("adam")
    assert list(found) == [0.0003, 0.001, 0.003]
    np.testing.assert_array_equal(found[0.001], board.scores("adam"))
    assert iqm(found[0.0003]) < iqm(found[0.003]) < iqm(found[0.001])
    np.testing.assert_array_equal(board.scores_by_rate("sgd")[0.001][1, 1], 0.0)
    assert board.scores_by_rate("fast") == {}
    # A rate that was tried on some of the tasks only.
    lion = board.contestants["lion"]
    trials = {**lion.trials, "easy": lion.trials["easy"][:2]}
    contestants = {**board.contestants, "lion": lion._replace(trials=trials)}
    assert list(board._replace(contestants=contestants).scores_by_rate("lion")) == [
        0.001,
        0.003,
    ]

    _, figure, words = one_rate_figure(board, ["fast", "adam", "sgd", "lion"])
    (axes,) = figure.axes
    adam, lion = axes.lines  # of the others there is one rate, or none
    np.testing.assert_allclose(adam.get_xdata(), [0.3, 1, 3])
    np.testing.assert_allclose(adam.get_ydata(), [iqm(x) for x in found.values()])
    assert "lion 1.03 at 0.001, at least 10-fold" in words
    assert one_rate_figure(board, ["fast"]) is None


def test_tables_of_the_terminal(board):
    rows = task_rows(board, "fast")
    assert [row[0] for row in rows] == list(TASKS)
    loss = board.chosen("fast", "easy").curves["train"]["loss"][:, -5:].mean(1)
    assert rows[0][1].startswith(f"{np.median(loss):.3g} (")
    assert rows[0][5] == "3/3" and rows[0][6] == "-"
    behind = task_rows(board, "sgd")
    assert behind[1][1] == "diverged in 1 of 3"
    assert behind[0][4] == "<1 (<1–<1)" and behind[0][5] == "0/3"
    assert 0 < int(behind[0][6].removesuffix("%")) < 100
    assert terminal_table(board).row_count == 5
    assert task_table(board, "fast").row_count == 3
