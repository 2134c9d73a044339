"""Tables for readers: aligned, accessible, and the same to the letter every time."""

import nbformat
import numpy as np
import pandas
import pytest
from bs4 import BeautifulSoup

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.tables import table
from kdcdiff.metrics.estimate import Estimate, as_estimate

from ..conftest import write_notebook
from .test_notebooks import run_nbval

ROWS = [
    {"model": "teacher", "parameters": 859_520_964, "accuracy": Estimate(0.87, 0.81, 0.92), "cut": False},
    {
        "model": "a < b",
        "parameters": np.int64(420_423_044),
        "accuracy": as_estimate(0.5),
        "cut": True,
        "seconds": 1234.5,
    },
]
TEXT = """\
Two models
model     parameters           accuracy  cut   seconds
teacher  859,520,964  0.87 [0.81, 0.92]  no
a < b    420,423,044               0.50  yes  1,234.50 *"""


@pytest.fixture
def shown():
    return table(ROWS, caption="Two models", highlight=lambda row: row["cut"])


def test_the_text_is_aligned(shown):
    assert repr(shown) == TEXT


def test_the_page_says_what_heads_what(shown):
    soup = BeautifulSoup(shown._repr_html_(), "html.parser")
    assert soup.caption.text == "Two models"
    assert [(th["scope"], th.text) for th in soup.select("thead th")][:2] == [("col", "model"), ("col", "parameters")]
    assert [(th["scope"], th.text) for th in soup.select("tbody th")] == [("row", "teacher"), ("row", "a < b")]
    assert [td.text for td in soup.select("tbody tr:last-child td")] == ["420,423,044", "0.50", "yes", "1,234.50"]
    figures = [td.text for td in soup.select("tbody tr:first-child .kdc-figure")]
    assert figures == ["859,520,964", "0.87 [0.81, 0.92]", ""], "to the right"
    assert [span.text for span in soup.select(".kdc-interval")] == ["[0.81, 0.92]"], "it may stand below its value"
    assert [tr.th.text for tr in soup.select("tr.kdc-marked")] == ["a < b"]


def test_nothing_in_it_is_random(shown):
    again = table(ROWS, caption="Two models", highlight=lambda row: row["cut"])
    assert again == shown and again._repr_html_() == shown._repr_html_() and "id=" not in shown._repr_html_()


def test_formats_are_a_columns_or_all_columns():
    rows = [{"a": 0.12345, "b": Estimate(2.0, 1.0, 3.0)}]
    assert repr(table(rows, formats={"a": ".1%"})).splitlines()[1].split("  ") == ["12.3%", "2.00 [1.00, 3.00]"]
    assert repr(table(rows, formats=".3f")).splitlines()[1].split("  ") == ["0.123", "2.000 [1.000, 3.000]"]
    with pytest.raises(KeyError, match="formats for c: there is no such column in a, b"):
        table(rows, formats={"c": ".1f"})


def test_a_frames_index_comes_first_unless_it_only_counts():
    frame = pandas.DataFrame({"share": [0.5, None], "n": [3, 4]}, index=["one", "two"])
    assert repr(table(frame)).splitlines() == ["     share  n", "one   0.50  3", "two         4"]
    assert repr(table(frame.rename_axis("who"))).splitlines()[0] == "who  share  n"
    assert repr(table(frame.reset_index(drop=True))).splitlines() == ["share  n", " 0.50  3", "       4"]
    assert repr(table(frame.groupby("n").size().to_frame("rows"))).splitlines()[0] == "n  rows"


def test_a_marked_cell_that_ends_with_a_table_is_compared(tmp_path):
    source = f"# {notebooks.MARK}\ntable([{{'model': 'a', 'share': 0.5}}])"
    path = write_notebook(tmp_path / "01-a.ipynb", ["from kdcdiff.book.tables import table", source], light=True)
    notebook = notebooks.read(path)
    made = table([{"model": "a", "share": 0.5}])
    for right, html in ((True, made._repr_html_()), (False, made._repr_html_().replace("0.50", "0.51"))):
        data = {"text/plain": repr(made), "text/html": html}
        for count, cell in enumerate(notebooks.code_cells(notebook), 1):
            cell.execution_count = count
        notebook.cells[-1].outputs = [nbformat.v4.new_output("execute_result", data, execution_count=count)]
        nbformat.write(notebook, path)
        done, compared = run_nbval([path], tmp_path)
        assert (done.returncode == 0) == right and compared == {("01-a", 3)}, done.stdout
