"""What is declared is what is imported, what is installed is what is pinned, and the wheel holds the library alone."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .imports import REPO, imports_of, python_files

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = {"kdcdiff", "tests", "tools"}
STARTED = {  # declared, and imported by no file: what it is for
    "ipykernel": "the kernel of every notebook",
    "jupyter-book": "`kdcdiff build` runs it",
}
STARTED_BY_TESTS = {"mypy", "pytest-xdist", "ruff", "types-pyyaml", "hatchling"}  # make lint, make test, this file


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by the name that all spellings share; comments and empty lines are left out."""
    found = [Requirement(line.partition(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in found}


def imported(*folders: str) -> set[str]:
    """The distributions that the files below `folders` import."""
    modules = {entry.top for path in python_files(*folders) for entry in imports_of(path)}
    local = {path.stem for path in python_files(*folders)}  # a benchmark imports its neighbour
    installed = importlib.metadata.packages_distributions()
    outside = modules - OURS - local - set(sys.stdlib_module_names)
    return {canonicalize_name(installed.get(module, [module])[0]) for module in outside}


DECLARED = set(requirements(PROJECT["project"]["dependencies"]))
OPTIONAL = {extra: set(requirements(own)) for extra, own in EXTRAS.items()}
TEST = OPTIONAL.pop("test")
ASKED = set().union(*OPTIONAL.values())  # where it is installed: an extra of the library's own
BY_HAND = requirements((REPO / "requirements.in").read_text().splitlines())
LOCK = requirements((REPO / "requirements.lock").read_text().splitlines())


def test_what_the_library_and_the_notebooks_import_is_declared_and_nothing_else():
    assert imported("kdcdiff") - ASKED <= DECLARED
    assert imported("kdcdiff", "notebooks") - ASKED == DECLARED - STARTED.keys()


def test_what_only_the_tests_import_is_in_their_extra_and_nothing_else():
    alone = imported("tests", "benchmarks", "tools") - DECLARED - ASKED
    assert alone == TEST - STARTED_BY_TESTS
    assert not TEST & DECLARED


def test_what_is_declared_by_hand_is_the_same_in_both_files():
    assert set(BY_HAND) == DECLARED | ASKED | TEST


def test_the_lock_pins_a_version_of_everything_that_is_declared():
    project = [*PROJECT["project"]["dependencies"], *(line for own in EXTRAS.values() for line in own)]
    declared = (requirements(project), BY_HAND, requirements(PROJECT["build-system"]["requires"]))
    for name, wanted in (item for each in declared for item in each.items()):
        pinned = str(LOCK[name].specifier).removeprefix("==")
        assert wanted.specifier.contains(pinned), f"{wanted}, and {pinned} is pinned"


def test_the_installed_versions_are_the_pinned_ones():
    other = {}
    for name, pinned in LOCK.items():
        found = importlib.metadata.version(name)
        if not pinned.specifier.contains(found):
            other[name] = found
    assert other == {}, "make setup"


# the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names of the files in the wheel that hatchling builds."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_holds_every_file_of_the_library(wheel):
    """Networks, the claims' data, style sheets and scripts among them."""
    listed = subprocess.run(["git", "ls-files", "kdcdiff"], cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so that nothing says which files belong to it")
    there = {name for name in listed.stdout.split() if (REPO / name).is_file()}
    assert there <= wheel
    assert {".safetensors", ".csv", ".yaml", ".typed"} <= {Path(name).suffix for name in wheel}


def test_the_wheel_holds_nothing_else(wheel):
    """No repair of torchvision above all: a `.pth` runs in every interpreter, which a library may not ask for."""
    own = {name for name in wheel if not name.startswith(f"kdcdiff-{importlib.metadata.version('kdcdiff')}.dist-info/")}
    assert {name.partition("/")[0] for name in own} == {"kdcdiff"}
    assert not [name for name in wheel if name.endswith(".pth") or "torchvision" in name]
