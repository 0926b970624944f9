"""The page about an evaluation, in a browser."""

import re
import shutil

import numpy as np
import pytest
from boards import RECORDS, a_board
from matplotlib.figure import Figure

from l2o.meta_train.evaluation._page import write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    figure = Figure()
    figure.subplots().plot([0, 1])
    return write_page(
        tmp_path_factory.mktemp("page") / "report.html",
        a_board(),
        records=RECORDS,
        behaviour={"fast": [("What it does", figure, "a line")]},
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"]
        )
        yield launched
        launched.close()


@pytest.fixture
def tab(browser, page):
    problems, asked = [], []
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    yield opened
    opened.close()
    assert problems == []
    assert [x for x in asked if not x.startswith(("data:", page.as_uri()))] == []


def _column(tab, index):
    script = "i => [...document.querySelector('#board tbody').rows].map(r => r.cells[i]"
    return tab.evaluate(script + ".dataset.key)", index)


def _board(tab):
    """The leaderboard, which from here on has an id."""
    tab.evaluate(
        "document.querySelector('[aria-labelledby=leaderboard] table').id = 'board'"
    )
    return tab.locator("#board")


def test_columns_sort_by_click_and_by_key(tab):
    board = _board(tab)
    scores = [float(x) for x in _column(tab, 1)]
    assert scores == sorted(scores, reverse=True)
    score = board.locator("thead button").nth(1)
    heading = board.locator("thead th").nth(1)
    score.click()
    assert heading.get_attribute("aria-sort") == "descending"
    score.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(x) for x in _column(tab, 1)] == sorted(scores)
    # As numbers, not as text: "10" would come before "9".
    p = board.locator("thead button").nth(4)
    p.focus()
    tab.keyboard.press("Enter")
    values = [float(x) for x in _column(tab, 4)]
    assert values == sorted(values, reverse=True)
    name = board.locator("thead button").nth(0)
    name.click()
    names = _column(tab, 0)
    assert names == sorted(names)
    assert heading.get_attribute("aria-sort") is None


def test_a_loss_that_is_not_finite_sorts_as_the_worst(tab):
    script = """() => {
        const table = [...document.querySelectorAll('table')].find(
            t => t.caption.textContent.startsWith('Results per task'));
        const heads = [...table.tHead.rows[0].cells];
        const i = heads.findIndex(h => h.textContent === 'train loss');
        heads[i].firstChild.click();
        return [...table.tBodies[0].rows].map(r => r.cells[i].textContent);
    }"""
    shown = tab.evaluate(script)
    assert "diverged in 1 of 3" in shown[0]


def test_rows_of_a_long_table_are_found_by_their_words(tab):
    _unfold(tab)
    script = """() => [...document.querySelectorAll('label + .table')].map(
        x => [...x.querySelectorAll('tbody tr')].filter(
            r => r.getClientRects().length).map(r => r.textContent))"""
    for width in (1200, 400):
        tab.set_viewport_size({"width": width, "height": 800})
        (every,) = tab.evaluate(script)
        assert len(every) == 15
        tab.get_by_label("Rows with").fill("HARD ada")
        (found,) = tab.evaluate(script)
        assert found == [x for x in every if "hard" in x and "ada" in x] != []
        tab.get_by_label("Rows with").fill("")
        assert tab.evaluate(script) == [every]


def _unfold(tab):
    tab.evaluate("document.querySelectorAll('details').forEach(x => x.open = true)")


def test_texts_with_ranges_sort_by_their_first_number(tab):
    script = """() => {
        const table = [...document.querySelectorAll('table')].find(
            t => t.caption.textContent.includes('beside tuned Adam'));
        return [...table.tBodies[0].rows].map(
            r => [...r.cells].slice(1).map(c => [c.textContent, c.dataset.key]));
    }"""
    for row in tab.evaluate(script):
        for text, key in row:
            if text[0].isdigit():
                assert float(key) == float(re.match(r"[\d.]+(e-?\d+)?", text)[0])
            assert key == "inf" or np.isfinite(float(key))


def test_nothing_is_wider_than_the_screen(tab):
    _unfold(tab)
    loaded = "() => [...document.images].every(x => x.complete && x.naturalWidth > 0)"
    assert tab.evaluate(loaded)
    script = """() => [document.documentElement,
                       ...document.querySelectorAll('.table')].filter(
        x => x.scrollWidth > x.clientWidth).map(x => x.textContent.slice(0, 80))"""
    for width in range(360, 1700, 60):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate(script) == [], width


def test_rows_become_cards_with_labels_where_columns_do_not_fit(tab):
    script = """() => {
        const row = document.querySelector('#board tbody tr');
        const label = getComputedStyle(row.cells[1], '::before').content;
        const tops = [...row.cells].map(x => x.getBoundingClientRect().top);
        return [label, new Set(tops.map(Math.round)).size > 1];
    }"""
    board = _board(tab)
    tab.set_viewport_size({"width": 800, "height": 800})
    assert tab.evaluate(script) == ["none", False]
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate(script) == ['"score"', True]
    # What sorts is still there, and to a screen reader it is still a table.
    assert board.locator("thead button").nth(1).is_visible()
    assert tab.get_by_role("table").first.is_visible()
    assert tab.get_by_role("rowheader", name="lion").first.is_visible()
    assert tab.get_by_role("columnheader", name="score").first.is_visible()


def test_a_wide_screen_is_used(tab):
    tab.set_viewport_size({"width": 1400, "height": 900})
    boxes = """() => [...document.querySelectorAll(
        '[aria-labelledby=leaderboard] figure')].map(
            x => x.getBoundingClientRect()).map(x => [x.left, x.right, x.top])"""
    left, right = tab.evaluate(boxes)
    assert left[2] == right[2] and right[0] > left[1]
    assert right[1] > 1300 and _board(tab).bounding_box()["width"] > 1200


def test_without_a_script_no_control_is_dead(browser, page):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(page.as_uri())
    assert opened.locator("button, input").count() == 0
    assert opened.locator("thead th").first.is_visible() is False  # folded
    context.close()


def test_what_is_folded_opens_with_a_key_and_focus_is_seen(tab):
    tab.keyboard.press("Tab")
    skip = tab.locator("a.skip")
    assert skip.evaluate("x => x === document.activeElement")
    assert skip.bounding_box()["x"] >= 0
    summary = tab.locator("summary").first
    summary.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("details").first.evaluate("x => x.open")
    assert summary.evaluate("x => getComputedStyle(x).outlineStyle") == "solid"


def test_in_print_the_leaderboard_is_a_table_on_white(tab):
    tab.emulate_media(media="print", color_scheme="dark")
    tab.set_viewport_size({"width": 720, "height": 1000})
    board = _board(tab)
    assert (
        board.locator("tbody tr").first.evaluate("x => getComputedStyle(x).display")
        == "table-row"
    )
    back = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(back) == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 720


def test_the_dark_scheme_is_dark(tab):
    back = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        parts = re.findall(r"\d+", tab.evaluate(back))
        seen.append(sum(map(int, parts[:3])) / 3)
    assert seen[0] > 200 and seen[1] < 60
