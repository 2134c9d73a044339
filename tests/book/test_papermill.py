"""Plain papermill as a way in: the store is the book's, a wrong name or value ends in one line, the Answer is read."""

from __future__ import annotations

import os

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.exceptions import PapermillExecutionError

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.toc import Book, here
from kdcdiff.errors import UserError

from ..conftest import PARAMETERS, REPO

CELLS = [
    'chapter.record("share", 0.25)\nchapter.glue("word", "Yes")',
    "md:## Answer\n\n**{glue:text}`word`**: {glue:text}`share:.3f` of it.",
    "chapter.show_answer()",
]


def execute(root, monkeypatch, **parameters):
    """Execute the one chapter by papermill itself, from a folder that is not the notebook's."""
    elsewhere = root / "my" / "runs"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    papermill.execute_notebook(
        root / "notebooks" / "01-a.ipynb", "out.ipynb", parameters, kernel_name="python3", progress_bar=False
    )
    return notebooks.read(elsewhere / "out.ipynb")


def test_the_store_and_the_figures_are_the_books_and_the_answer_is_filled_in(small_book, monkeypatch):
    root = small_book({"01-a": CELLS})
    made = execute(root, monkeypatch, profile="smoke", artifacts="kept")
    assert (root / "kept" / "locks").is_dir() and (root / "_build" / "results.json").is_file()
    assert sorted(os.listdir(root / "my" / "runs")) == ["out.ipynb"]
    text = made.cells[-1].outputs[0].data["text/markdown"]
    assert text.endswith("**Yes**: 0.250 of it.")


def test_a_name_that_no_chapter_has_stops_in_the_first_cell_with_one_line(small_book, monkeypatch):
    root = small_book({"01-a": CELLS})
    line = "UserError: alhpa=1: no such parameter; a has profile, dataset, seed, artifacts"
    with pytest.raises(PapermillExecutionError, match=line):
        execute(root, monkeypatch, profile="smoke", alhpa=1)
    made = notebooks.read(root / "my" / "runs" / "out.ipynb")
    errors = [output for cell in notebooks.code_cells(made) for output in cell.outputs if output.output_type == "error"]
    assert [error.traceback for error in errors] == [[line]]
    assert [cell.execution_count for cell in notebooks.code_cells(made)[-2:]] == [None, None]
    assert not (root / "artifacts").exists()


def test_strays_are_what_only_papermills_cell_assigns():
    injected = notebooks.INJECTED + "seed = 3\nalhpa = 1\n"
    assert notebooks.strays([PARAMETERS, injected, "beta = 2"])[0] == ["alhpa"]
    assert notebooks.strays(["%matplotlib inline", PARAMETERS, "beta = 2"])[0] == []
    text = papermill.translators.translate_parameters("python3", "python", {"seed": 1}, "Parameters")
    assert text.startswith(notebooks.INJECTED)


def test_wrong_input_is_shown_in_one_line_and_other_errors_with_their_place(capsys):
    shell = InteractiveShell()
    shell.run_cell("from kdcdiff.errors import UserError\nraise UserError('seed=-1: must be a whole number')")
    assert capsys.readouterr().out.strip() == "UserError: seed=-1: must be a whole number"
    shell.run_cell("def f(): raise ValueError('seed')\nf()")
    assert capsys.readouterr().out.count("\n") > 3
    assert UserError("a")._render_traceback_() == ["UserError: a"]


def test_the_book_is_around_the_working_folder_or_around_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO / "notebooks")
    assert here() == Book(REPO)
    monkeypatch.chdir(tmp_path)
    assert here() == Book(REPO)
    (tmp_path / "_toc.yml").touch()
    assert here() == Book(tmp_path)


@pytest.mark.parametrize("path", sorted((REPO / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_chapters_store_is_the_books(path):
    known = notebooks.parameters(nbformat.read(path, as_version=4), path.stem)
    assert known["artifacts"].default == "artifacts"
