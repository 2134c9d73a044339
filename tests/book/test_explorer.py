"""The drawing and the explorer: both say what the surgery does, and need nothing but themselves."""

import json
import re
import shutil
import subprocess
from importlib import resources

import matplotlib
import pytest
import soupsieve
from bs4 import BeautifulSoup

from kdcdiff.book import explorer, unet_diagram
from kdcdiff.models import complexity, surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.variants import VARIANTS

from ..conftest import REPO

matplotlib.use("Agg")
SD1 = CONFIGS["sd-1"]
SHOWN = ("fvcore", "thop", "all")


@pytest.fixture(scope="module")
def data():
    return explorer.table()


@pytest.fixture(scope="module")
def page():
    return explorer.page("kdc-described")


def rules(css: str) -> dict[str, dict[str, str]]:
    """Read a style sheet: selector -> declarations, `@media` unwrapped. AssertionError: what a browser would drop."""
    bare = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    bare = re.sub(r"@media [^{]+\{((?:[^{}]+\{[^{}]*\})+)\s*\}", r"\1", bare)
    bare = re.sub(r"@font-face \{[^{}]*\}", "", bare)
    assert bare.count("{") == bare.count("}") and "/*" not in bare and not re.search(r"^\s*(#\s|//)", bare, re.M)
    found = {}
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", bare):
        soupsieve.compile(re.sub(r"::[a-z]+", "", selector).strip())  # SelectorSyntaxError where it is none
        parts = [part for part in map(str.strip, body.split(";")) if part]
        assert all(re.fullmatch(r"[a-z-]+\s*:\s*[^:{}]+", part) for part in parts), body
        found[" ".join(selector.split())] = dict(re.split(r"\s*:\s*", part, maxsplit=1) for part in parts)
    assert "".join(re.split(r"[^{}]+\{[^{}]*\}", bare)).strip() == "", "something stands outside of the rules"
    return found


def row_named(data, name):
    return next(row for row in data["rows"].values() if name in row[5].split(", "))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_named_variant_is_a_choice_with_its_exact_counts(data, name):
    row, cost = row_named(data, name), complexity.count(surgery.student_config(SD1, name))
    assert row[:4] == [cost.parameters, *(cost.macs[c] for c in SHOWN)]
    assert row[4] == len(surgery.weight_map(SD1, name))
    assert row[6].count("1") == sum(surgery.layers_kept(SD1, name).values())


def test_a_choice_without_a_name_counts_exactly_too(data):
    odd = next(v for v in explorer.choices() if v.name == "0110k-")
    cost = complexity.count(surgery.student_config(SD1, odd))
    assert data["rows"][odd.name][:4] == [cost.parameters, *(cost.macs[c] for c in SHOWN)]


def test_the_page_carries_everything_and_fetches_nothing(data, page):
    assert "420,423,044" in page and "48.9 %" in page, "it can be read with scripts off"
    assert not re.search(r"https?://|<link|src=", page)
    soup = BeautifulSoup(page, "html.parser")
    assert json.loads(soup.select_one('script[type="application/json"]').string) == data
    for name, tag in (("explorer.css", "style"), ("explorer.js", "script:not([type])")):
        assert soup.select_one(tag).string.strip() == resources.files("kdcdiff.book").joinpath(name).read_text().strip()


def test_what_is_removed_has_its_dashed_red_outline(data, page):
    """By the rules that stand in the page, on the boxes that stand in it."""
    soup = BeautifulSoup(page, "html.parser")
    styles = rules(soup.style.string)
    dashed = next(selector for selector, style in styles.items() if "dashed #c1121f" in style.get("border", ""))
    gone = {int(box["data-i"]) for box in soup.select(dashed)}
    marks = row_named(data, "kdc-described")[6]
    assert gone == {place for place, mark in enumerate(marks) if mark == "0"} != set()
    assert len(soup.select(".kdcx-net span:not(.gone)")) > 0, "and the others have not"


def test_the_books_own_style_sheet_is_one():
    styles = rules((REPO / "book" / "_static" / "kdcdiff.css").read_text())
    assert styles[".bd-article .kdc-table .kdc-figure"]["text-align"] == "right"


def test_every_rule_of_the_style_sheet_meets_something(page):
    soup = BeautifulSoup(f'<html data-theme="dark">{page}</html>', "html.parser")
    idle = [selector for selector in rules(soup.style.string) if not soup.select(selector)]
    assert idle == []


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here to read JavaScript with")
def test_the_script_is_javascript_and_shows_what_is_chosen(data, page, tmp_path):
    """In node, on a stand-in for the page's elements: the first choice, and then another."""
    script = resources.files("kdcdiff.book").joinpath("explorer.js")
    subprocess.run(["node", "--check", str(script)], check=True)
    (tmp_path / "run.js").write_text(STAND_IN.replace("SCRIPT", script.read_text()).replace("DATA", json.dumps(data)))
    done = subprocess.run(["node", tmp_path / "run.js"], capture_output=True, text=True, check=True)
    first, second = json.loads(done.stdout)
    for shown, row in ((first, row_named(data, "original")), (second, data["rows"]["0110k-"])):
        assert shown["cells"][0] == f"{row[0]:,}" and shown["cells"][6] == f"{row[3] / 1e9:.3f}"
        assert shown["gone"] == [place for place, mark in enumerate(row[6]) if mark == "0"]
    assert first["name"] == "This is original." and second["name"] == "No paper has named this one."
    assert (first["address"], second["address"]) == ("", "#cut=0110k-"), "a choice can be linked to"
    key = next(key for key, row in data["rows"].items() if row is row_named(data, "kdc-described"))
    linked = ["node", tmp_path / "run.js", f"#cut={key}"]
    shown = json.loads(subprocess.run(linked, capture_output=True, text=True, check=True).stdout)[0]
    assert shown["cells"][0] == f"{row_named(data, 'kdc-described')[0]:,}" and "kdc-described" in shown["name"]


STAND_IN = """
const data = DATA;
const elements = Object.fromEntries(["p0", "p1", "p2", "p3", "mid"].map((name) => [name, { checked: false }]));
const radios = ["k", "d", "b"].map((value) => ({ value, checked: value === "k" }));
const form = {
  elements,
  querySelector: () => radios.find((one) => one.checked),
  querySelectorAll: () => radios,
  addEventListener: (event, heard) => (form.heard = heard),
};
const cells = Array.from({ length: 10 }, () => ({}));
const boxes = data.layers.map((_, i) => ({ dataset: { i: String(i) } }));
boxes.forEach((made) => (made.classList = { toggle: (name, on) => (made.on = on) }));
const name = {};
const one = { form, 'script[type="application/json"]': { textContent: JSON.stringify(data) }, ".kdcx-name": name };
const box = { querySelector: (s) => one[s], querySelectorAll: (s) => (s === "td" ? cells : boxes) };
globalThis.location = { hash: process.argv[2] || "" };
globalThis.history = { replaceState: (state, title, url) => (location.hash = url) };
globalThis.document = { currentScript: { closest: () => box } };
const shown = () => ({
  cells: cells.map((c) => c.textContent),
  name: name.textContent,
  address: location.hash,
  gone: boxes.flatMap((b, i) => (b.on ? [i] : [])),
});
SCRIPT
const first = shown();
elements.p1.checked = elements.p2.checked = elements.mid.checked = true;
form.heard();
console.log(JSON.stringify([first, shown()]));
"""


def test_what_is_drawn_as_removed_is_what_is_removed():
    figure = unet_diagram.unet("kdc-described")
    dashed = [p for p in figure.axes[0].patches if p.get_linestyle() not in ("-", "solid")]
    gone = [stays for stays in surgery.layers_kept(SD1, "kdc-described").values()].count(False)
    assert len(dashed) == gone > 0
    kept = surgery.layers_kept(SD1, "kdc-described")
    assert unet_diagram.stage_layers(kept, "down_blocks.2") == [
        ("R", True), ("T", True), ("R", False), ("T", False), ("↓", False)
    ]  # fmt: skip
    assert unet_diagram.stage_layers(kept, "mid_block") == [("R", True), ("T", True), ("R", True)]
