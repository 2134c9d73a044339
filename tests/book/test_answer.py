"""What a chapter's Answer begins with, and how it is read in Jupyter."""

from __future__ import annotations

import math

import nbformat
import pytest

from kdcdiff.book import answer
from kdcdiff.book.chapter import open_chapter
from kdcdiff.metrics.estimate import Estimate

from ..conftest import write_notebook


@pytest.mark.parametrize(
    "low, high, word",
    [(0.1, 0.3, "Yes"), (-0.3, -0.1, "No"), (-0.1, 0.3, "Undecided"), (0.0, 0.3, "Undecided")],
)
def test_the_interval_decides_and_not_the_value(low, high, word):
    own = {"Yes": "more", "No": "less", "Undecided": "as much"}
    assert answer.decide(Estimate(0.2, low, high)) == word
    assert answer.decide(Estimate(5.2, 5 + low, 5 + high), 5.0, words=tuple(own.values())) == own[word]


def test_an_unknown_uncertainty_decides_nothing():
    assert answer.decide(Estimate(0.2, -math.inf, math.inf)) == "Undecided"


def test_the_answer_ends_at_the_next_heading_or_box():
    cells = [
        nbformat.v4.new_markdown_cell("# A\n\nProse."),
        nbformat.v4.new_markdown_cell("Before.\n\n## Answer\n\nYes: # is no heading here.\n\n```{note}\nNo.\n```"),
    ]
    assert answer.answer_of(nbformat.v4.new_notebook(cells=cells)) == "Yes: # is no heading here."
    assert answer.answer_of(nbformat.v4.new_notebook(cells=cells[:1])) == ""


def test_glue_and_links_become_words():
    text = "**{glue:text}`a.word`.** {glue:text}`a.share:.2f` of it ({ref}`there <a>`) {cite}`kdc`, {glue:text}`b`."
    assert answer.filled(text, {"a.word": "Yes", "a.share": 0.126}) == ("**Yes.** 0.13 of it (there), {glue:text}`b`.")


def test_bounds_that_nobody_knows_are_no_interval():
    bounds = "[{glue:text}`gain.low:.2f`, {glue:text}`gain.high:.2f`]"
    text = f"By {{glue:text}}`gain:.2f` {bounds}."
    known = {"gain": -0.001, "gain.low": -0.2, "gain.high": 0.2}
    assert answer.filled(text, known) == "By 0.00 [-0.20, 0.20]."
    assert answer.filled(text, known | {"gain.high": math.inf}) == "By 0.00 (no interval)."
    assert answer.without_unknown(text, known) == text and answer.without_unknown(text, {}) == text


def test_an_estimate_is_glued_with_its_bounds(tmp_path, monkeypatch, capsys):
    """And shown with the Answer of the chapter's file; without that file, as a list."""
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    chapter = open_chapter("a", profile="smoke", dataset="flora", seed=0, artifacts="store")
    chapter.glue("gain", Estimate(0.2, -math.inf, 0.5))
    assert chapter.said == {"gain.low": -math.inf, "gain.high": 0.5, "gain": 0.2}
    chapter.record("same", Estimate(1.0, 1.0, 1.0))
    assert (chapter.said["same.low"], chapter.said["same"]) == (1.0, 1.0)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle["text/markdown"]))
    chapter.show_answer()
    assert "- gain.low: -inf\n- gain.high: 0.5\n- gain: 0.2\n- same.low: 1.0" in shown[0]
    write_notebook(tmp_path / "notebooks" / "01-a.ipynb", ["md:## Answer\n\nBy {glue:text}`gain:.1f`."])
    chapter.show_answer()
    assert shown[1].endswith("By 0.2.")


def test_changes_agree_or_are_undecided():
    up, down = Estimate(1, 0.5, 1.5), Estimate(-1, -1.5, -0.5)
    words = ("more", "less", "undecided")
    assert [answer.agreed(own, words=words) for own in ([up, up], [down], [up, down])] == ["more", "less", "undecided"]
