"""The verdict table as a page: each claim once, links that lead somewhere, names that meet none of the theme's."""

import json
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from kdcdiff import claims
from kdcdiff.claims import page, record
from kdcdiff.claims.model import NOT_TESTED, PAPERS, VERDICTS, Claim


@pytest.fixture(scope="module")
def verdicts():
    return claims.judge_all(record.evidence())


@pytest.fixture(scope="module")
def soup(verdicts):
    chapters = {"architecture": ("03-architecture.html", "The architecture detective")}
    return BeautifulSoup(page.as_html(verdicts, record.evidence(), chapters), "html.parser")


def test_the_page_holds_every_claim_once_and_links_to_what_decides_it(verdicts, soup):
    assert [row["id"] for row in soup.select("tbody tr")] == [c.id for c in claims.load()]
    assert [row["data-verdict"] for row in soup.select("tbody tr")] == [v.outcome for v in verdicts]
    places = {v.claim.id: page.decided_in(v, record.evidence()) for v in verdicts}
    assert places["kdc.fig5.attention"] == "attention"
    assert places["kdc.t2.one-network"] == "architecture#readings"
    assert places["kdc.fig4.fidelity"] == ""
    assert all(places[v.claim.id] for v in verdicts if v.claim.offline)


def test_chapters_are_named_and_a_row_has_a_link_of_its_own(soup):
    row = soup.find(id="kdc.t2.one-network")
    named = row.find("a", href="03-architecture.html#readings")  # the page and the title that were given
    assert named.text == "The architecture detective"
    assert soup.find(id="kdc.fig5.attention").find("a", href="attention.html")  # what a slug has by itself
    assert row.find("a", href="#kdc.t2.one-network")
    assert "http" not in str(soup)  # nothing is fetched


def test_the_page_holds_its_style_and_script_and_no_class_of_the_theme(soup):
    assert ".claims-verdict {" in soup.style.text and "addEventListener" in soup.script.text
    classes = {name for tag in soup.select("[class]") for name in tag["class"]}
    assert classes and all(name.startswith("claims-") for name in classes)  # the theme paints its own `mark` yellow


def test_every_choice_is_labelled_and_the_count_is_announced(soup):
    choices = soup.select("form select, form input")
    assert {tag["name"] for tag in choices} == {"verdict", "severity", "paper", "kind", "words", "sort"}
    assert all(tag.parent.name == "label" for tag in choices)
    assert soup.output["aria-live"] == "polite"
    assert {button["name"] for button in soup.select("form button")} == {"csv", "json"}


def test_counts_are_of_what_the_authors_wrote(verdicts, soup):
    authored = [v for v in verdicts if v.claim.paper in PAPERS]
    apart = len(verdicts) - len(authored)
    assert apart and soup.output.text == f"{len(authored)} claims, and {apart} of a summary"
    chosen = [option.text for option in soup.select("select[name=verdict] option[value]") if option["value"]]
    assert sum(int(re.search(r"\((\d+)\)", text)[1]) for text in chosen) == len(authored)
    assert {row["data-paper"] in PAPERS for row in soup.select("tbody tr[data-apart]")} == {False}
    assert len(soup.select("tbody tr[data-apart]")) == apart


def test_every_verdict_has_a_colour_of_its_own():
    assert set(page.COLOURS) | {NOT_TESTED} == set(VERDICTS)
    assert len({*page.COLOURS.values(), page.GREY}) == len(VERDICTS)


def test_the_page_escapes_what_the_papers_wrote():
    claim = Claim("x", "kdc-diff", '<b>5 & "6"</b>', "here", "arithmetic", "1 < 2")
    html = page.as_html([claims.judge(claim)], {})
    assert "<b>5" not in html
    assert "&lt;b&gt;5 &amp; &quot;6&quot;&lt;/b&gt;" in html
    assert BeautifulSoup(html, "html.parser").find(id="x")["data-check"] == "1 < 2"


def test_links_lead_to_labels_that_the_chapters_have(verdicts):
    folder = Path(__file__).parents[2] / "notebooks"
    for place in {page.decided_in(v, {}) for v in verdicts if v.claim.offline}:
        slug, _, label = place.partition("#")
        (file,) = folder.glob(f"*-{slug}.ipynb")
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert any(re.search(rf"\({label}\)=", "".join(c["source"])) for c in cells), place
