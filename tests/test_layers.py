"""The plan of the house: imports run down one list of packages, and no room outgrows what is read in one sitting."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

from .imports import REPO, imports_of, python_files

LAYERS = ("cli", "book", "experiments", "claims", "metrics", "sampling", "training", "data", "models")  # downwards
# anyone may import these, and they import each other alone
BESIDE = ("errors", "manifest", "store", "upkeep", "provenance", "process")
LIBRARY = ("models", "data", "training", "sampling", "metrics")  # what a user's own script takes
NOTEBOOK = ("IPython", "papermill", "nbformat")
LONGEST = 400  # lines of a room

PACKAGE = REPO / "kdcdiff"
ROOMS = {path.relative_to(PACKAGE).as_posix(): path for path in python_files("kdcdiff")}


def neighbours(path: Path) -> set[str]:
    """The packages and rooms right below kdcdiff that a file imports."""
    found = set()
    for entry in imports_of(path):
        if entry.top == "kdcdiff":
            below = [*entry.module.split(".")[1:], *([entry.name] if entry.name else [])]
            found |= set(below[:1])
    return found - {"__version__"}


def allowed(room: str) -> set[str]:
    """What a room may import of kdcdiff: its own package and those below it."""
    own = room.removesuffix(".py").partition("/")[0]
    if own == "__init__":
        return set()
    if own == "__main__":
        return {"cli"}
    return set(BESIDE) | (set() if own in BESIDE else set(LAYERS[LAYERS.index(own) :]))


def test_imports_run_down_the_list_of_packages():
    up = {room: sorted(neighbours(path) - allowed(room)) for room, path in ROOMS.items()}
    assert {room: above for room, above in up.items() if above} == {}


def test_a_room_is_read_in_one_sitting():
    lines = {room: len(path.read_text().splitlines()) for room, path in ROOMS.items()}
    assert {room: count for room, count in lines.items() if count > LONGEST} == {}


def test_the_library_needs_no_notebook_and_knows_of_none():
    """In a fresh process, so that indirect imports are seen, too."""
    rooms = [room.removesuffix(".py").removesuffix("/__init__") for room in ROOMS if room.partition("/")[0] in LIBRARY]
    modules = ["kdcdiff." + room.replace("/", ".") for room in rooms]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    above = {f"kdcdiff.{layer}" for layer in LAYERS if layer not in LIBRARY}
    assert set(modules) <= loaded and not loaded & {*NOTEBOOK, *above}


def test_the_list_of_commands_imports_no_torch():
    code = "import sys\nfrom kdcdiff.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: kdcdiff") and done.stdout.endswith("False\n")


@cache
def names_in(path: Path) -> set[str]:
    """What can be imported from a module: the names that its top level binds, and, from a package, its rooms."""
    found = {child.stem for child in path.parent.iterdir()} if path.name == "__init__.py" else set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)  # and what is inside of it is its own
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        nodes.extend(ast.iter_child_nodes(node))
    return found


def test_what_is_imported_of_the_library_is_there():
    """In benchmarks, notebooks and functions, too, where a name that has moved would be missed late or never."""
    missing = []
    for path in python_files("kdcdiff", "tests", "benchmarks", "notebooks", "tools"):
        for entry in imports_of(path):
            stem = REPO / entry.module.replace(".", "/")
            module = stem.with_suffix(".py") if stem.with_suffix(".py").is_file() else stem / "__init__.py"
            there = module.is_file() and (entry.name is None or entry.name in names_in(module))
            if entry.top == "kdcdiff" and not there:
                missing.append(f"{path.relative_to(REPO)}: {entry.module} {entry.name or ''}")
    assert missing == []
