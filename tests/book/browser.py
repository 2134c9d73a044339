"""The rendered book in a real browser, with the network cut: `make test-pages` (a file that plain `make test` skips).

Every page in both themes: axe-core finds nothing serious or critical (WCAG 2 A and AA), the console says nothing, no
request fails, nothing is wider than the window, no code is cut off, and a page weighs under 1.5 MB before its images.
PAGES names the rendered folder (default `_build/html`), CHROMIUM the browser.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, sync_playwright

from ..imports import REPO

HTML = Path(os.environ.get("PAGES", REPO / "_build" / "html")).resolve()
FRONT = "index.html"  # leads to the landing page, and has nothing of its own
PAGES = sorted(
    name
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts and (name := f"{path.relative_to(HTML)}") != FRONT
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
WIDTHS = (390, 600, 768, 992, 1280, 1600)  # pixels
IMAGES = re.compile(r"\.(png|jpe?g|gif|webp|svg)$")
AXE = "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa'], resultTypes: ['violations'], preload: false})"
CUT_OFF = """() => [...document.querySelectorAll('main :is(pre, .kdc-scroll)')].filter(
    (e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert path, f"no browser: install one of {', '.join(NAMES)}, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        switches = [f"--disable-{name}" for name in QUIET] + ["--no-first-run"]
        yield playwright.chromium.launch(executable_path=path, args=switches, chromium_sandbox=False)


def test_the_front_leads_to_the_landing_page_with_one_field_to_search_in(browser):
    assert (HTML / FRONT).is_file(), f"no book in {HTML}; make book renders it"
    page = browser.new_page()
    page.goto((HTML / FRONT).as_uri())
    page.wait_for_url("**/book/intro.html")
    assert page.locator(".search-button-field:visible").count() == 1
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page(browser, name, theme):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=theme)
    context.set_offline(True)
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    page, faults, loaded = context.new_page(), [], set()
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    page.on("requestfinished", lambda request: loaded.add(request.url))
    try:
        page.goto((HTML / name).as_uri(), wait_until="load")
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        faults += axe(page)
        faults += [f"cut off: {text}" for text in page.evaluate(CUT_OFF)]
        files = [Path(unquote(urlparse(url).path)) for url in loaded if url.startswith("file:")]
        weight = sum(path.stat().st_size for path in files if not IMAGES.search(path.name))
        if weight > 1.5e6:
            faults.append(f"{weight / 1e6:.2f} MB before its images")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            needed = page.evaluate("document.documentElement.scrollWidth")
            if needed > width:
                faults.append(f"{needed} pixels wide in a window of {width}")
    finally:
        context.close()
    assert faults == []


def axe(page: Page) -> list[str]:
    """List the serious and critical faults that axe-core finds."""
    page.evaluate(Path(AXE_FILE_PATH).read_text())
    return [
        f"{found['id']} ({found['impact']}): {len(found['nodes'])} times, as {found['nodes'][0]['html'][:120]}"
        for found in page.evaluate(AXE)["violations"]
        if found["impact"] in ("serious", "critical")
    ]


def test_a_first_visit_is_no_fault(browser):
    """With nothing stored yet: the theme follows the system."""
    context = browser.new_context(color_scheme="dark")
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.goto((HTML / "book" / "intro.html").as_uri(), wait_until="load")
    assert said == [] and page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()


def test_search_works_from_a_file(browser):
    page = browser.new_page()
    page.goto((HTML / "search.html").as_uri() + "?q=replay")
    page.wait_for_selector("#search-results li", timeout=20_000)
    page.close()


def test_pictures_move_along_their_slider_by_keyboard(browser):
    page = browser.new_page()
    page.goto((HTML / "notebooks" / "13-latent-replay.html").as_uri())
    page.focus(".kdcs input")
    last = page.inner_text(".kdcs output")
    where = "getComputedStyle(document.querySelector('.kdcs i')).backgroundPositionY"
    below = page.evaluate(where)
    page.keyboard.press("Home")
    assert page.inner_text(".kdcs output") != last and page.get_attribute(".kdcs input", "aria-valuetext") != last
    assert (page.evaluate(where), below) == ("0%", "100%"), "the first row of the sheet, where the last one was"
    page.close()


def test_a_long_table_sorts_and_filters(browser):
    page = browser.new_page()
    page.goto((HTML / "notebooks" / "04-plausibility.html").as_uri())
    table = page.locator("table.kdc-table", has=page.locator("thead button")).first
    rows, words = table.locator("tbody tr"), page.locator(".kdc-filter input").first
    count, head = rows.count(), table.locator("thead button").nth(2)
    head.click()
    cells = [cell.strip() for cell in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
    assert cells == sorted(cells, key=str.lower) and table.locator("[aria-sort=ascending]").count() == 1
    words.fill("kdc-diff refuted")
    shown = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < count and all("refuted" in row.inner_text().lower() for row in shown)
    assert page.inner_text(".kdc-filter output") == f"{len(shown)} of {count} rows"
    page.close()
