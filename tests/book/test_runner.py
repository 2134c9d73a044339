"""`kdcdiff run`: what is refused before a cell runs, what is skipped, and how failures are told."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from kdcdiff import __version__, cli
from kdcdiff.book import notebook as notebooks
from kdcdiff.book import runner, staging
from kdcdiff.book.results import Results
from kdcdiff.book.toc import Book, Page, slug
from kdcdiff.errors import UserError
from kdcdiff.experiments.profiles import Profile

from ..conftest import REPO, write_notebook

TWO = {
    "01-a": [
        'made = chapter.store.get("numbers", lambda folder: (folder / "n.txt").write_text("7"))',
        'chapter.record("a.count", int((made / "n.txt").read_text()), unit="things");',
    ],
    "02-b": ['print(chapter.figures["a.count"].value * factor)'],
}
OWN = {"parameters": "factor: int = 2", "own": ""}


def read(root: Path, name: str) -> nbformat.NotebookNode:
    return notebooks.read(root / "_build" / "staged" / "notebooks" / f"{name}.ipynb")


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebooks.code_cells(notebook) for output in cell.outputs)


def test_a_run_executes_skips_and_runs_again_what_changed(small_book, capsys):
    root = small_book({"01-a": TWO["01-a"]})
    write_notebook(root / "notebooks" / "02-b.ipynb", TWO["02-b"], "factor: int = 2")
    toc = (root / "_toc.yml").read_text()
    (root / "_toc.yml").write_text(
        toc.replace("      - file: book/status", "      - file: notebooks/02-b\n      - file: book/status")
    )

    assert cli.main(["run", "--root", str(root), "--profile", "smoke"]) == 0
    said = capsys.readouterr().out
    assert "numbers" in said and "all stages" in said and str(root / "_build" / "staged") in said
    assert "14" in printed(read(root, "02-b"))
    made = read(root, "02-b").metadata["kdcdiff"]
    assert (made["status"], made["profile"], made["parameters"]["seed"]) == ("completed", "smoke", 0)
    assert made["seconds"] > 0 and made["peak_bytes"] > 1e7 and made["executor"].startswith("papermill")
    costs = json.loads((root / "_build" / "costs.json").read_text())
    assert [row["chapter"] for row in costs["chapters"]] == ["a", "b"]
    assert [row["stage"] for row in costs["stages"]] == ["numbers"] and costs["stages"][0]["seconds"] > 0
    assert "stage.numbers.seconds" in Results.load(root / "_build" / "results.json")
    key = json.loads(next((root / "artifacts").glob("numbers-*/manifest.json")).read_text())["key"]
    ends = {name: read(root, name).cells[-1].source for name in ("01-a", "02-b")}
    assert f"| numbers | `{key[:16]}` |" in ends["01-a"] and "No stage of the store" in ends["02-b"]
    assert f"kdcdiff {__version__}" in ends["02-b"] and "Run on " in ends["02-b"]
    injected = [cell for cell in read(root, "01-a").cells if "injected-parameters" in notebooks.tags(cell)]
    assert "remove-cell" in notebooks.tags(injected[0])
    source = (root / "notebooks" / "01-a.ipynb").read_text()
    assert 'outputs": []' in source, "the source is never executed in place"

    assert runner.run(root, profile="smoke") == [], "nothing changed"
    assert runner.run(root, profile="smoke", own={"factor": "3"}) == ["b"], "only it has the parameter"
    assert "21" in printed(read(root, "02-b"))
    (root / "requirements.lock").write_text("torch==1\n")
    assert runner.run(root, profile="smoke", only=["a"]) == ["a"], "another lock file"
    results = json.loads((root / "_build" / "results.json").read_text())
    results["results"]["a.count"]["value"] = 8
    (root / "_build" / "results.json").write_text(json.dumps(results))
    assert runner.run(root, profile="smoke", own={"factor": "3"}) == ["a", "b"], "a figure was replaced"
    (root / "_build" / "results.json").unlink()
    assert "a" in runner.run(root, profile="smoke", own={"factor": "3"}), "its figures are gone"


def test_a_size_set_for_one_run_holds_in_every_chapter(small_book):
    """Two chapters that read one stage must ask for the same one, whichever of them declares the parameter."""
    show = "print(chapter.profile.distill_steps, chapter.profile.alphas)"
    root = small_book({"01-a": [show], "02-b": [show]})
    declared = "from typing import Optional\ndistill_steps: Optional[int] = None\nalphas: Optional[list[float]] = None"
    own = ", distill_steps=distill_steps, alphas=alphas"
    write_notebook(root / "notebooks" / "02-b.ipynb", [show], declared, own)
    runner.run(root, profile="smoke", own={"distill_steps": "7", "alphas": "[0.25, 1]"})
    assert [printed(read(root, name)).split("\n")[-2] for name in ("01-a", "02-b")] == ["7 (0.25, 1.0)"] * 2
    assert runner.run(root, profile="smoke", own={"distill_steps": "7", "alphas": "[0.25, 1]"}) == []
    assert runner.run(root, profile="smoke", own={"distill_steps": "8"}) == ["a", "b"]
    assert " -p distill_steps 8" in read(root, "01-a").cells[-1].source, "though another chapter declares it"
    plan, sizes = runner._plan(Book(root), Book(root).chosen(["a"]), {}, {"distill_steps": "8"})
    assert plan == [(Page(Path("notebooks/01-a.ipynb")), {})] and sizes == {"distill_steps": 8}, (
        "and so it is run again"
    )
    assert runner.run(root, profile="smoke") == ["a", "b"], "and no longer than that run"
    assert "4 (" in printed(read(root, "01-a"))
    with pytest.raises(UserError, match="distill_steps=0: must be a whole number, at least 1"):
        runner.run(root, profile="smoke", own={"distill_steps": "0"})


def test_the_cost_box_can_be_pasted_into_a_shell(tmp_path):
    values = {"profile": "mini", "dataset": str(tmp_path), "seed": 3, "alphas": (0.25, 1.0), "word": "two words"}
    box = staging._cost_box(Page(Path("notebooks/05-surgery.ipynb")), values, 61.0, 2**30)
    command = next(line for line in box.splitlines() if line.startswith("    "))
    assert shlex.split(command)[:5] == ["kdcdiff", "run", "--force", "--only", "surgery"]
    assert shlex.split(command)[-6:] == ["-p", "alphas", "[0.25, 1.0]", "-p", "word", "two words"]
    assert f"path/to/{tmp_path.name}" in command and str(tmp_path) not in box


def test_values_keep_their_types(small_book):
    parameters = """\
from typing import Optional
rate: float = 0.5
word: str = "x"
steps: Optional[int] = None
sizes: list[int] = [1]
on: bool = False"""
    root = small_book({"01-a": ["print([rate, word, steps, sizes, on])"]}, parameters=parameters, light=True)
    own = {"rate": "1", "word": "007", "steps": "5", "sizes": "[2, 3]", "on": "true"}
    runner.run(root, own=own)
    assert "[1.0, '007', 5, [2, 3], True]" in printed(read(root, "01-a"))
    runner.run(root, own=own | {"steps": "None", "rate": "1e-3"})
    assert "[0.001, '007', None, [2, 3], True]" in printed(read(root, "01-a"))


@pytest.mark.parametrize(
    "cells, words",
    [
        (
            ["x = 1", "md:Prose.", 'raise ValueError("first\\nthe last line")'],
            r"cell 6: ValueError: the last line",
        ),
        (["import os", "md:Prose.", "os._exit(1)", "x = 1"], r"cell 6: the kernel died"),
        (["import time", "time.sleep(100)"], r"cell 5: ran longer than 4 s"),
    ],
)
def test_a_failure_names_notebook_cell_and_cause_and_leaves_its_copy(small_book, capsys, cells, words):
    root = small_book({"01-a": cells, "02-b": ["x = 1"]}, light=True)
    with pytest.raises(runner.ChapterFailed, match=r"^notebooks/01-a\.ipynb, " + words):
        runner.run(root, timeout=4)
    assert (root / "_build/staged/notebooks/01-a.ipynb").exists()
    assert not (root / "_build/staged/notebooks/02-b.ipynb").exists(), "what depends on it is not run"
    assert not staging.is_current(Book(root), Book(root).chapters()[0])
    if "raise" in cells[-1]:
        assert cli.main(["run", "--root", str(root)]) == 1
        said = capsys.readouterr().err
        assert "failed: notebooks/01-a.ipynb, cell 6: ValueError" in said and str(root / "_build/staged") in said


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--profile", "big"], "profile='big': must be one of smoke, mini, full, paper"),
        (
            ["--dataset", "nowhere"],
            "dataset=.*must be flora, garden, oxford-102, or the path of an existing image folder",
        ),
        (["-p", "alhpa", "1"], "alhpa='1': no chapter to be run has this parameter; they have .*steps"),
        (["-p", "steps", "many"], "steps='many': a takes int here"),
        (["-p", "steps", "1.5"], "steps=1.5: a takes int here"),
        (["-p", "temperature", "0"], "temperature=0.0: must be a number, at least 0.01"),
        (["-p", "seed", "1"], "-p='seed': use --seed"),
        (["--only", "09-z"], "only='09-z': must be a chapter of _toc.yml: a"),
        (["--timeout", "0"], "timeout: must be a number above 0, not '0'"),
        (["--root", "/nowhere"], "root=.*must be a book's folder"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(small_book, capsys, arguments, words):
    parameters = "steps: int = 3\ntemperature: float = 2.0"
    root = small_book({"01-a": ["(steps, temperature)"]}, parameters=parameters, light=True)
    assert cli.main(["run", "--root", str(root), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(words, said), said
    assert not (root / "_build" / "staged").exists()


@pytest.mark.parametrize(
    "parameters, words",
    [
        ("unused: int = 3", "a: nothing reads the parameter unused"),
        ("steps: int | None = None", "must read 'name: type = literal'"),
        ("steps = 3", "must read 'name: type = literal'"),
        ("steps: int = 2 * 3 + len('x')", "must read 'name: type = literal'"),
    ],
)
def test_a_parameters_cell_that_papermill_would_misread_is_refused(small_book, parameters, words):
    root = small_book({"01-a": ["steps = 1"]}, parameters=parameters, light=True)
    with pytest.raises(UserError, match=words):
        runner.run(root)
    assert not (root / "_build" / "staged").exists()


@pytest.mark.parametrize(
    "name, cells, idle",
    [
        ("shoes", ["x = 1"], True),  # a size that neither a cell nor the library reads
        ("shoes", ["print(chapter.profile.shoes)"], False),
        ("shoes", ["p, x = chapter.profile, 1", "print(p.shoes)"], False),
        ("shoes", ["print(chapter.shoes)"], True),
        ("shoes", ["print(shoes)"], False),
        ("distill_steps", ["x = 1"], False),  # the library reads it
    ],
)
def test_a_parameter_that_is_only_handed_on_must_be_read_there(tmp_path, name, cells, idle):
    declared, own = f"{name}: int = 3", f", {name}=int({name})"
    notebook = notebooks.read(write_notebook(tmp_path / "01-a.ipynb", cells, declared, own))
    assert notebooks.unread(notebook, notebooks.parameters(notebook, "a")) == ([name] if idle else [])


def test_a_knob_that_nothing_reads_is_refused(small_book):
    root = small_book({"01-a": ["x = 1"]}, parameters="shoes: int = 3", own=", shoes=shoes")
    with pytest.raises(UserError, match="a: nothing reads the parameter shoes"):
        runner.run(root)
    assert not (root / "_build" / "staged").exists()


def test_every_size_of_a_profile_is_read_somewhere():
    found = set(notebooks.sizes_of_library())
    for chapter in Book(REPO).chapters():
        found |= notebooks.sizes_read(notebooks.code_after_parameters(notebooks.read(REPO / chapter.path)))
    assert {field.name for field in dataclasses.fields(Profile)} - found == set()


def test_a_chapter_is_called_by_its_slug(small_book):
    assert slug(Path("notebooks/05-surgery.ipynb")) == "surgery"
    assert slug(Path("notebooks/06-loss-soft.ipynb")) == "loss-soft"
    root = small_book({"01-a": ["x = 1"], "02-a": ["x = 1"]}, light=True)
    with pytest.raises(UserError, match="_toc.yml='notebooks/02-a': another page is called a, too"):
        runner.run(root)


def test_a_seed_that_a_chapter_would_refuse_is_refused(small_book):
    root = small_book({"01-a": ["x = 1"]}, light=True)
    with pytest.raises(UserError, match="seed=-1"):
        runner.run(root, seed=-1)


def test_a_chapter_needs_one_parameters_cell_with_the_standard_names(tmp_path):
    notebook = notebooks.read(write_notebook(tmp_path / "01-a.ipynb", [], light=True))
    assert set(notebooks.parameters(notebook, "01-a")) == set(notebooks.STANDARD)
    notebook.cells[1].source = 'profile: str = "mini"'
    with pytest.raises(UserError, match="lacks dataset, seed, artifacts"):
        notebooks.parameters(notebook, "01-a")
    notebook.cells[1].metadata["tags"] = []
    with pytest.raises(UserError, match="0 cells are tagged 'parameters'"):
        notebooks.parameters(notebook, "01-a")


def test_outputs_go_back_into_the_notebooks(small_book):
    root = small_book({"01-a": ["md:Prose.", "6 * 7", "import sys; print('noise', file=sys.stderr)"]}, light=True)
    with pytest.raises(UserError, match="a: its executed copy is not up to date"):
        staging.save_outputs(Book(root))
    runner.run(root)
    staging.save_outputs(Book(root))
    notebook = notebooks.read(root / "notebooks" / "01-a.ipynb")
    assert len(notebook.cells) == 6, "neither the injected cell nor the cost box"
    assert notebook.cells[4].outputs[0]["data"]["text/plain"] == "42" and notebook.cells[4].execution_count
    assert notebook.cells[5].outputs == []
    assert runner.run(root) == [], "outputs are no reason to run again"


def test_outputs_of_one_chapter_go_back_without_the_others(small_book):
    root = small_book({"01-a": ["6 * 7"], "02-b": ["6 * 9"]}, light=True)
    runner.run(root, only=["b"])
    staging.save_outputs(Book(root), ["b"])
    a, b = (notebooks.read(root / "notebooks" / f"{name}.ipynb").cells[-1] for name in ("01-a", "02-b"))
    assert a.outputs == [] and b.outputs[0]["data"]["text/plain"] == "54"
    with pytest.raises(UserError, match="a: its executed copy is not up to date"):
        staging.save_outputs(Book(root))


def test_pictures_go_back_as_jpeg_and_charts_as_they_are(small_book):
    photo = "plt.imshow(np.random.default_rng(0).random((24, 24, 3)), interpolation='bicubic');"
    root = small_book({"01-a": ["import numpy as np\nimport matplotlib.pyplot as plt", photo, "plt.plot([1, 2]);"]})
    runner.run(root)
    staging.save_outputs(Book(root))
    cells = notebooks.read(root / "notebooks" / "01-a.ipynb").cells
    picture, chart = (cell.outputs[0]["data"] for cell in cells[-2:])
    assert "image/png" not in picture and base64.b64decode(picture["image/jpeg"])[:3] == b"\xff\xd8\xff"
    assert "image/png" in chart and "image/jpeg" not in chart


def test_a_page_that_does_not_exist_is_named(small_book):
    root = small_book({"01-a": ["x = 1"]}, light=True)
    (root / "notebooks" / "01-a.ipynb").unlink()
    with pytest.raises(UserError, match="_toc.yml='notebooks/01-a': no such notebook or page"):
        runner.run(root)


# the command line


def test_help_lists_every_command_and_imports_no_room():
    code = "import atexit, sys; from kdcdiff import cli\n"
    code += "atexit.register(lambda: print('torch' in sys.modules)); cli.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
    assert all(command in done.stdout for command in cli.COMMANDS)


def test_every_command_is_registered_by_its_room(capsys):
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "--help"])
        assert caught.value.code == 0
        assert f"kdcdiff {command}" in capsys.readouterr().out


def test_an_interruption_exits_with_130(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    assert cli.main(["run"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "kdcdiff", "build", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: root=")


def test_the_environment_of_a_run_is_taken_back(small_book, monkeypatch):
    monkeypatch.setenv("KDCDIFF_PROFILE", "paper")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    show = "print(os.environ.get('KDCDIFF_PROFILE'), profile, os.getcwd(), os.environ['OMP_WAIT_POLICY'])"
    root = small_book({"01-a": ["import os", show]}, light=True)
    runner.run(root, profile="smoke")
    said = printed(read(root, "01-a"))
    assert f"None smoke {root / 'notebooks'}" in said, "the parameter is what counts"
    assert said.endswith(" PASSIVE\n"), "threads that wait leave the cores to others"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    before = dict(os.environ)
    runner.run(root, profile="smoke", force=True)
    assert printed(read(root, "01-a")).endswith(" ACTIVE\n"), "unless the user says otherwise"
    assert dict(os.environ) == before
    shutil.rmtree(root)
