"""The committed notebooks: sound as files, and executed by nbval at `smoke`.

They are committed with the outputs of `full`. Cells whose output is exact on any machine and at any profile
(counts, verdicts, closed forms) carry `# NBVAL_CHECK_OUTPUT`; KDCDIFF_PROFILE=smoke makes `open_chapter` use
the smaller sizes, and nbval compares the marked cells. A guard makes sure that each of them was executed and compared.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from kdcdiff.book import answer
from kdcdiff.book import notebook as notebooks
from kdcdiff.book.toc import Book, slug

from ..conftest import REPO, write_notebook

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 300  # seconds; a dead kernel waits this long, too
FOLDERS = re.compile(r"(?<![\w/.])/(?:home|root|work|tmp|Users)/[\w.-]+")


def marked(paths: list[Path]) -> set[tuple[str, int]]:
    """(notebook, number of its code cell) of every cell that is marked as exact."""
    found = set()
    for path in paths:
        cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
        found |= {(path.stem, number) for number, cell in enumerate(cells) if notebooks.MARK in cell.source}
    return found


def run_nbval(paths: list[Path], scratch: Path) -> tuple[subprocess.CompletedProcess[str], set[tuple[str, int]]]:
    """Run nbval over `paths`, in order, at smoke, with a store and results of its own; say which cells it compared."""
    guard = scratch / "compared.json"
    settings = {
        "KDCDIFF_PROFILE": "smoke",
        "KDCDIFF_ARTIFACTS": str(scratch / "artifacts"),
        "KDCDIFF_RESULTS": str(scratch / "results.json"),
        "NBVAL_GUARD": str(guard),
        "PYTHONPATH": os.pathsep.join([str(REPO / "tests"), str(REPO)]),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "nbval_guard",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-q",
        "--color=no",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-sanitize-with",
        str(REPO / "tests" / "sanitize.cfg"),
        f"--nbval-cell-timeout={CELL_TIMEOUT}",
        "--nbval-kernel-startup-timeout=120",
        *map(str, paths),
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=REPO, env=inherited | settings, capture_output=True, text=True, timeout=2400, check=False
    )
    compared = {(stem, number) for stem, number in json.loads(guard.read_text())} if guard.exists() else set()
    return done, compared


def test_the_notebooks_run_at_smoke_and_every_marked_cell_is_compared(tmp_path):
    book = Book(REPO)
    paths = [REPO / chapter.path for chapter in book.chapters()]
    done, compared = run_nbval(paths, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert compared == marked(paths)
    assert compared, "at least one cell of the book is exact"


def test_the_table_of_contents_names_every_notebook():
    assert {REPO / chapter.path for chapter in Book(REPO).chapters()} == set(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_sound(path):
    notebook = notebooks.read(path)
    nbformat.validate(notebook)
    known = notebooks.parameters(notebook, path.stem)
    assert notebooks.unread(notebook, known) == []
    assert notebooks.flaws(notebook) == []
    assert notebooks.stripped(notebook) == []
    assert notebook.metadata["kernelspec"]["name"] == "kdcdiff"
    opened = [cell.source for cell in notebooks.code_cells(notebook) if "open_chapter(" in cell.source]
    assert len(opened) == 1 and f'"{slug(path)}"' in opened[0], "it opens its chapter once, by its own name"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_that_reads_stages_takes_the_number_of_classes(path):
    """Run alone by papermill, it must be able to ask for the very stages that the others made."""
    notebook = notebooks.read(path)
    reads = any("stages." in cell.source for cell in notebooks.code_cells(notebook))
    assert not reads or "classes" in notebooks.parameters(notebook, path.stem)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermills_help_reads_well(path):
    """`papermill --help-notebook` infers every parameter, with its type and its comment."""
    seen = papermill.inspect_notebook(path)
    known = notebooks.parameters(notebooks.read(path), path.stem)
    assert set(seen) == set(known)
    for name, entry in seen.items():
        assert entry["inferred_type_name"] not in ("None", ""), name
        assert ast.literal_eval(entry["default"]) == known[name].default, f"{name} is misread: {entry}"
        assert len(entry["help"]) > 3, f"{name} has no comment that says what it is"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_names_a_folder_of_the_machine_it_was_made_on(path):
    for number, cell in enumerate(notebooks.read(path).cells, 1):
        if cell.cell_type == "code":
            text = json.dumps([{k: v for k, v in output.items() if k != "metadata"} for output in cell.outputs])
            text = re.sub(r'"image/(?:png|jpeg|svg\+xml)": (?:"[^"]*"|\[[^\]]*\])', "", text)
            assert not FOLDERS.search(text), f"cell {number}: {FOLDERS.search(text)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_function_in_a_notebook_is_longer_than_a_screen(path):
    for cell in notebooks.code_cells(notebooks.read(path)):
        assert len(cell.source.splitlines()) <= 45, cell.source.splitlines()[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_answer_begins_in_words_and_is_shown_in_jupyter_too(path):
    notebook = notebooks.read(path)
    assert answer.answer_of(notebook).startswith("**")
    last = notebooks.code_cells(notebook)[-1]
    assert last.source == "chapter.show_answer()" and notebooks.tags(last) == ["remove-cell"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_the_code_that_it_is_about_and_folds_the_rest(path):
    folded = {"hide-input", "hide-cell", "remove-cell"}
    cells = notebooks.code_cells(notebooks.read(path))
    assert 1 <= sum(not folded & set(notebooks.tags(cell)) for cell in cells) <= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_referred_to_and_every_table_has_a_caption(path):
    notebook = notebooks.read(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    figures = [cell.metadata["mystnb"]["figure"] for cell in notebook.cells if "mystnb" in cell.metadata]
    assert [figure["name"] for figure in figures if f"{{numref}}`{figure['name']}`" not in prose] == []
    tree = notebooks.code_after_parameters(notebook)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "table"]
    bare = [ast.unparse(call)[:80] for call in calls if "caption" not in {word.arg for word in call.keywords}]
    assert bare == []


# the guard itself


def made(tmp_path: Path, output: str | None) -> Path:
    path = write_notebook(
        tmp_path / "01-a.ipynb", [f"# {notebooks.MARK}\nprint(chapter.profile.name == 'smoke', 6 * 7)"]
    )
    notebook = notebooks.read(path)
    for count, cell in enumerate(notebooks.code_cells(notebook), 1):
        cell.execution_count = None if output is None else count
    if output is not None:
        notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    nbformat.write(notebook, path)
    return path


def test_a_marked_cell_is_compared_at_smoke(tmp_path):
    path = made(tmp_path, "True 42\n")
    done, compared = run_nbval([path], tmp_path)
    assert done.returncode == 0, done.stdout
    assert compared == marked([path]) == {("01-a", 2)}
    assert (tmp_path / "artifacts").is_dir(), "the store of the test, not the book's"


def test_a_wrong_output_fails(tmp_path):
    done, compared = run_nbval([made(tmp_path, "True 41\n")], tmp_path)
    assert done.returncode == 1 and compared == {("01-a", 2)}


def test_a_stripped_notebook_does_not_pass_the_guard(tmp_path):
    path = made(tmp_path, None)
    done, compared = run_nbval([path], tmp_path)
    assert done.returncode == 0, "nbval itself has no objection"
    assert compared != marked([path]) and notebooks.stripped(notebooks.read(path)) == [4]


def test_a_mark_that_nbval_would_not_see_is_a_flaw(tmp_path):
    path = write_notebook(tmp_path / "01-a.ipynb", [f"print(6 * 7)  # {notebooks.MARK}"])
    notebook = notebooks.read(path)
    for count, cell in enumerate(notebooks.code_cells(notebook), 1):
        cell.execution_count = count
    assert notebooks.flaws(notebook) == ["cell 4: nbval reads NBVAL_CHECK_OUTPUT on a line of its own only"]
