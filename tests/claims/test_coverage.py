"""Every sentence of the papers is accounted for: the file by itself, and against the texts where they lie beside."""

from pathlib import Path

import pytest

from kdcdiff import claims
from kdcdiff.claims import coverage, tables
from kdcdiff.claims.model import SOURCES
from kdcdiff.errors import UserError

TEXTS = {"kdc-diff": "kdc-diff.txt", "bk-sdm": "bk-sdm.txt", "kdc-diff-page": "kdc-diff-summary-page.txt"}
HERE = Path(__file__).resolve()
BESIDE = [folder / "shared" / "papers" for folder in HERE.parents if (folder / "shared" / "papers").is_dir()]


@pytest.mark.parametrize("paper", SOURCES)
def test_no_sentence_of_the_text_was_skipped(paper):
    if not BESIDE:
        pytest.skip("the papers' texts are not part of the project, and do not lie beside it")
    text = (BESIDE[0] / TEXTS[paper]).read_text(encoding="utf-8")
    found = [(coverage.first_words(s), coverage.digest(s)) for s in coverage.sentences(text)]
    assert [(s.words, s.digest) for s in coverage.load(paper)] == found


def test_every_claim_is_made_of_a_sentence_of_its_own_source():
    by_id = {c.id: c.paper for c in claims.load()}
    for paper in SOURCES:
        assert {by_id[id] for id in coverage.named([paper])} == {paper}
    assert coverage.named() == set(by_id)


def test_the_papers_are_there_from_end_to_end():
    assert {paper: len(coverage.load(paper)) for paper in SOURCES} == {
        "kdc-diff": 313, "bk-sdm": 260, "kdc-diff-page": 40}  # fmt: skip
    assert {s.kind for paper in SOURCES for s in coverage.load(paper)} == set(coverage.KINDS)


def test_sentences_end_where_a_reader_would_end_them():
    text = """1 Introduction

We draw images, as in Fig. 2 of Kim et al. [3]. Two of

Figure 1: A caption. It has two sentences.

them are good, e.g. Nos. one and two. “Really?” The

$$ a = b \\tag{1} $$

rest is not.As one may think, it holds.

References

• Nobody reads this.
"""
    assert coverage.sentences(text) == [
        "1 Introduction",
        "Figure 1: A caption.",  # what a page break put into a sentence comes before it
        "It has two sentences.",
        "$$ a = b \\tag{1} $$",
        "We draw images, as in Fig. 2 of Kim et al. [3].",
        "Two of them are good, e.g. Nos. one and two.",
        "“Really?”",
        "The rest is not.",
        "As one may think, it holds.",
    ]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("\n2,", "\n3,", "must be number 2"),
    (",opinion,", ",guess,", "one of claim, definition"),
    (",definition,", ",claim,", "a claim must name its claims"),
])  # fmt: skip
def test_a_line_that_does_not_fit_is_refused(monkeypatch, old, new, message):
    text = tables.data_text("coverage-bk-sdm.csv").replace(old, new, 1)
    monkeypatch.setattr(tables, "data_text", lambda name: text)
    coverage.load.cache_clear()
    with pytest.raises(UserError, match=message):
        coverage.load("bk-sdm")
    coverage.load.cache_clear()
