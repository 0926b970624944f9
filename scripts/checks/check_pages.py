"""Looks at HTML pages in a browser: accessibility, widths, both themes, print.

    npm install --prefix FOLDER axe-core
    python scripts/checks/check_pages.py PAGE... --axe FOLDER --out PICTURES

Every page is opened 400, 800 and 1400 pixels wide, light and dark, as it is and with
all that is folded opened. Printed are a line per view and what is wrong with it: the
rules of axe-core that it breaks, elements that are wider than the screen, messages of
the console, and requests of anything but the page itself. Beside them go a screenshot
of every view and the page as it is printed. It needs playwright and a Chromium on the
path, and no network. CI does not run it.
"""

import argparse
import itertools
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (400, 800, 1400)
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 300_000  # milliseconds, for machines that do other things too
UNFOLD = "document.querySelectorAll('details').forEach(x => x.open = true)"
# What scrolls by itself, such as a picture on a phone, may be wider.
TOO_WIDE = """width => [...document.querySelectorAll('body *')].filter(
    x => !x.closest('figure, pre, .skip') && x.getBoundingClientRect().right > width + 1
).map(x => x.tagName + ': ' + x.textContent.trim().slice(0, 40))"""
BROKEN = """async () => (await axe.run(document)).violations.map(
    x => `${x.id} (${x.impact}): ${x.nodes.length} times, ${x.help}`)"""


def look(browser: Browser, page: Path, out: Path, axe: str) -> int:
    """Prints a line per view; returns how many problems there are."""
    count = 0
    for scheme, width, folded in itertools.product(SCHEMES, WIDTHS, (True, False)):
        name = f"{page.stem}_{width}_{scheme}_{'folded' if folded else 'open'}"
        tab = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        found = problems(tab, page, out / f"{name}.png", axe, folded=folded)
        tab.close()
        print(f"{name}: {'; '.join(found) or 'fine'}", flush=True)
        count += len(found)
    tab = browser.new_page()
    tab.goto(page.as_uri())
    tab.pdf(path=out / f"{page.stem}.pdf", format="A4", print_background=True)
    tab.close()
    return count


def problems(
    tab: Page, page: Path, picture: Path, axe: str, *, folded: bool
) -> list[str]:
    """What is wrong with one view, of which a picture is kept."""
    found: list[str] = []
    asked: list[str] = []
    tab.set_default_timeout(PATIENCE)
    tab.on("console", lambda message: found.append(message.text))
    tab.on("pageerror", lambda error: found.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    if not folded:
        tab.evaluate(UNFOLD)
    tab.screenshot(path=picture, full_page=True)
    width = tab.evaluate("innerWidth")
    found += [f"too wide: {x}" for x in tab.evaluate(TOO_WIDE, width)]
    found += [x for x in asked if not x.startswith((page.as_uri(), "data:"))]
    tab.evaluate(axe)
    return found + tab.evaluate(BROKEN)


def main() -> None:
    """Looks at all pages; fails if something is wrong with one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument(
        "--axe", type=Path, required=True, help="where npm put axe-core"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures")
    options = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"there is no browser: install one of {', '.join(BROWSERS)}")
    axe = options.axe / "node_modules" / "axe-core" / "axe.min.js"
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        text = axe.read_text(encoding="utf-8")
        pages = [page.resolve() for page in options.pages]
        count = sum(look(browser, page, options.out, text) for page in pages)
        browser.close()
    if count:
        sys.exit(f"{count} problems")


if __name__ == "__main__":
    main()
