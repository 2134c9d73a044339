"""The page on re-executing: every command in a box that is said to run is run as it is printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdcdiff import cli
from kdcdiff.book import notebook as notebooks
from kdcdiff.book import runner
from kdcdiff.book.toc import Book

from ..conftest import REPO

PAGE = (REPO / "book" / "reproducing.md").read_text()
BOXES = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
UNRUN = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
HEREDOC = re.compile(r"<<'END'\n.*?^END$", flags=re.MULTILINE | re.DOTALL)
OURS = ("kdcdiff", "papermill")


def commands(box: str) -> list[list[str]]:
    """The words of each of our commands in a box, its loops' variables as they stand."""
    lines = HEREDOC.sub("", box).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines]
    return [each for each in words if each and each[0] in OURS]


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """A copy of the book without its store, and `bin/` with the programs that the page names, of this interpreter."""
    root = tmp_path_factory.mktemp("reader") / "book-of-a-reader"
    for folder in ("notebooks", "book"):
        shutil.copytree(REPO / folder, root / folder)
    for name in ("_config.yml", "_toc.yml", "requirements.lock"):
        shutil.copy(REPO / name, root)
    programs = {"kdcdiff": "-m kdcdiff", "papermill": "-m papermill", "python": ""}
    for name, module in programs.items():
        path = root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        path.chmod(0o755)
    kernel = root / "jupyter" / "kernels" / "kdcdiff" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    kernel.write_text(json.dumps({"argv": argv, "language": "python", "display_name": "kdcdiff"}))
    return root


def run(root: Path, box: str) -> str:
    settings = {
        "PATH": os.pathsep.join([str(root / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(REPO),
        "JUPYTER_PATH": str(root / "jupyter"),
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", box], cwd=root, env=os.environ | settings, capture_output=True, text=True,
        timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def box_with(words: str) -> str:
    (found,) = [box for box in BOXES if words in box]
    return found


@pytest.mark.parametrize("words", [words for box in BOXES + UNRUN for words in commands(box)], ids=" ".join)
def test_every_command_on_the_page_is_understood(words, monkeypatch, tmp_path):
    """Whether it is long or short: its options exist, and the chapters have the parameters that it names."""
    monkeypatch.chdir(tmp_path)
    for folder in ("my-images/train", "my-images/test", "pictures"):
        (tmp_path / folder).mkdir(parents=True)
    if words[:2] == ["kdcdiff", "generate"]:
        (tmp_path / "student").symlink_to(REPO / "kdcdiff" / "assets" / "flora" / "pipeline")
    if words[0] == "kdcdiff":
        args = cli.parser_for(words[1]).parse_args(words[1:])
        if words[1] == "run":
            given = {"profile": args.profile, "dataset": args.dataset, "seed": 0, "artifacts": "artifacts"}
            runner._plan(Book(REPO), Book(REPO).chosen(args.only), given, dict(args.own))
        return
    notebook = notebooks.read(REPO / next(word for word in words if word.endswith(".ipynb")))
    known = notebooks.parameters(notebook, words[-1])
    given = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "-p"}
    assert given.keys() <= known.keys()
    for name, value in given.items():
        if "$" not in value:
            known[name].parse(value, "the chapter")


def test_what_is_not_run_is_said_to_be_so():
    for box in UNRUN:
        before, _, after = PAGE.partition(box)
        assert re.search(r"[Nn]ot run", before[-600:] + after[:200]), box


def test_papermills_help_is_printed(book):
    said = run(book, box_with("--help-notebook"))
    assert "temperature" in said and "Unknown type" not in said


@pytest.mark.slow
def test_the_boxes_run_as_they_are_printed(book):
    """In the page's order, in one folder, as a reader would."""
    assert len(BOXES) >= 7
    said = {}
    for box in BOXES:
        if "doctor" not in box:  # what it says of this machine is no fault of the page
            said[box] = run(book, box)
    assert "1 chapters executed" in said[box_with("--only distillation")]
    assert said[box_with("for temperature")].count("temperature-") == 2
    for made in ("runs/softer.ipynb", "my-images/train", "cut/model_index.json", "student/model_index.json"):
        assert (book / made).exists(), made
    assert re.search(r"^clip_score +0\.\d+ cosine .*n=2", said[box_with("kdcdiff evaluate")], flags=re.MULTILINE)
    assert (book / "artifacts").is_dir() and not (book / "notebooks" / "artifacts").exists()
