"""What a chapter's Answer begins with, and how it is read in Jupyter."""

from __future__ import annotations

import math

import nbformat
import pytest

from kdcdiff.book import answer
from kdcdiff.metrics.estimate import Estimate


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
