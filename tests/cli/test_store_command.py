"""`kdcdiff store`: what lies there, whether it is whole, what may go, and what another store has."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from kdcdiff import cli
from kdcdiff.book.results import Results
from kdcdiff.errors import UserError
from kdcdiff.manifest import sealed
from kdcdiff.store import Store


def write(folder: Path, **settings: object) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "out.txt").write_text(repr(settings))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of a store of a data set, a student made from it, which a chapter has read, and one more."""
    monkeypatch.chdir(tmp_path)
    opened = Store("artifacts", say=lambda line: None)
    data = opened.get("data", write)
    student = opened.get("student", write, settings={"steps": 1}, inputs={"data": data})
    opened.get("student", write, settings={"steps": 2}, inputs={"data": data})
    Results("_build/results.json").use(student, "distillation")
    return opened.root  # and nobody has it open


def names(root: Path) -> list[str]:
    return sorted(path.parent.name.rpartition("-")[0] for path in root.glob("*/manifest.json"))


def kdcdiff(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["store", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_ls_says_what_lies_there_and_who_reads_it(store, capsys):
    (store / "work" / "student-0" / "checkpoint").mkdir(parents=True)
    (store / "damaged" / "old").mkdir(parents=True)
    next(store.glob("data-*/deep/out.txt")).write_text("cut")
    code, out, _ = kdcdiff(capsys, "ls")
    lines = [line for line in out.splitlines() if "-" in line or "old" in line]
    assert code == 0 and [sum(word in line for line in lines) for word in ("data-", "student-", "old")] == [1, 3, 1]
    assert sum("distillation" in line for line in lines) == 1
    assert "out.txt has 3 bytes, not 2" in out and "unfinished: a killed training's checkpoint" in out


def test_verify_reads_every_byte_and_changes_nothing(store, capsys):
    code, out, _ = kdcdiff(capsys, "verify")
    assert code == 0 and "3 artifacts, 0 of them damaged" in out
    next(store.glob("data-*/deep/out.txt")).write_text("{]")
    code, out, _ = kdcdiff(capsys, "verify")
    assert code == 1 and "damaged: data-" in out and "deep/out.txt has a wrong checksum" in out
    assert names(store) == ["data", "student", "student"]


def test_gc_lists_then_removes_what_no_chapter_leads_to(store, capsys):
    (store / "work" / "student-0" / "checkpoint").mkdir(parents=True)
    (store / "work" / "student-1").mkdir()
    (store / "damaged" / "old").mkdir(parents=True)
    code, out, _ = kdcdiff(capsys, "gc")
    assert code == 0 and out.count("may go") == 3 and names(store) == ["data", "student", "student"]
    code, out, _ = kdcdiff(capsys, "gc", "--delete")
    assert code == 0 and out.count("removed ") == 3, "the data stay, which the student was made from"
    assert names(store) == ["data", "student"] and not list((store / "damaged").iterdir())
    assert [path.name for path in (store / "work").iterdir()] == ["student-0"], "a checkpoint is somebody's work"
    assert kdcdiff(capsys, "gc", "--delete", "--unfinished")[0] == 0
    assert not list((store / "work").iterdir())
    assert "0.0 MiB to be had" in kdcdiff(capsys, "gc")[1]


IN_USE = """
import sys
from kdcdiff.store import Store
store = Store("artifacts", say=lambda line: None)
store.get("new", lambda folder: (folder / "out.txt").write_text("on no record yet") and None)
print("made", flush=True)
sys.stdin.read()
"""


def test_gc_removes_nothing_while_a_process_has_the_store_open(store, capsys):
    """What a chapter has just made is on no record yet: no lock of its own could tell."""
    command = [sys.executable, "-c", IN_USE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None and user.stdout.readline() == "made\n"
        code, _, err = kdcdiff(capsys, "gc", "--delete")
        assert code == 2 and err.count("\n") == 1 and "is in use (a run, or an open notebook)" in err
        assert kdcdiff(capsys, "gc")[0] == 0, "a list harms nobody"
        assert names(store) == ["data", "new", "student", "student"]
        user.kill()
    assert kdcdiff(capsys, "gc", "--delete")[0] == 0, "a killed process holds nothing"
    assert names(store) == ["data", "student"]


def test_a_store_that_is_being_tidied_opens_when_that_has_ended(store):
    """The other way round: a run that begins meanwhile finds no artifact that goes while it is read."""
    said: list[str] = []
    tidier = Store(store, say=said.append)
    with ThreadPoolExecutor(1) as pool:
        with tidier.alone():
            waiting = pool.submit(Store, store, say=said.append)
            while not said:
                time.sleep(0.01)
            assert not waiting.done() and said == ["wait   artifacts  is being tidied by another process"]
        second = waiting.result(60)
    with pytest.raises(UserError, match="is in use"), tidier.alone():
        pass
    del second, waiting
    with tidier.alone():
        pass


def test_gc_without_a_record_keeps_everything(store, capsys):
    code, _, err = kdcdiff(capsys, "gc", "--delete", "--results", "nowhere.json")
    assert code == 2 and "nothing would be kept" in err and len(names(store)) == 3


@pytest.mark.parametrize("as_url", [False, True])
def test_pull_takes_what_is_missing(store, capsys, tmp_path, as_url):
    source = str(store)
    if as_url:
        source = "memory://published/artifacts"
        fsspec.filesystem("memory").put(str(store), "/published/artifacts", recursive=True)
    code, out, _ = kdcdiff(capsys, "pull", source, "--artifacts", "mine", "--stage", "data")
    assert code == 0 and "1 artifacts pulled, 0 were here" in out and names(tmp_path / "mine") == ["data"]
    code, out, _ = kdcdiff(capsys, "pull", source, "--artifacts", "mine")
    assert code == 0 and "2 artifacts pulled, 1 were here" in out
    assert not list((tmp_path / "mine" / "work").iterdir())
    Store("mine", say=lambda line: None).get("data", lambda folder: pytest.fail("it is there, and is not made again"))


def altered(artifact: Path, how: str) -> None:
    """Damage the published artifact in the folder `artifact`, and seal its manifest again, as an attacker would."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    if how == "flipped":
        (artifact / "deep" / "out.txt").write_text("{]")
    elif how == "longer":
        (artifact / "deep" / "out.txt").write_text("{}" + "x" * 3_000_000)
    elif how == "gone":
        (artifact / "deep" / "out.txt").unlink()
    elif how == "other settings":
        manifest["settings"] = {"steps": 7}
    elif how == "traversal":
        manifest["files"]["../../escaped.txt"] = manifest["files"]["deep/out.txt"]
    elif how == "absolute":
        manifest["files"]["/tmp/escaped.txt"] = manifest["files"]["deep/out.txt"]
    elif how == "stage":
        manifest["stage"] = "../data"
    elif how == "no JSON":
        (artifact / "manifest.json").write_text("[" * 100_000)
        return
    (artifact / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("flipped", "deep/out.txt': has a wrong checksum there"),
        ("longer", "deep/out.txt': has a wrong checksum there"),
        ("gone", "cannot be read as a store"),
        ("other settings", "its manifest is not of its key"),
        ("traversal", "names a file outside of it"),
        ("absolute", "names a file outside of it"),
        ("stage", "its manifest is not of its key"),
        ("no JSON", "its manifest cannot be read"),
    ],
)
def test_what_is_not_what_it_says_is_refused(store, capsys, tmp_path, how, line):
    artifact = next(store.glob("data-*"))
    altered(artifact, how)
    code, _, err = kdcdiff(capsys, "pull", str(store), "--artifacts", "mine", "--stage", "data")
    assert code == 2 and line in err and err.count("\n") == 1
    assert names(tmp_path / "mine") == [] and not list(tmp_path.glob("mine/work/*"))
    assert not list(tmp_path.glob("**/escaped.txt"))


def test_an_artifact_under_anothers_name_is_refused(store, capsys):
    data, student = next(store.glob("data-*")), next(store.glob("student-*"))
    shutil.rmtree(data)
    shutil.copytree(student, data)
    assert "its manifest is another's" in kdcdiff(capsys, "verify")[1]
    code, _, err = kdcdiff(capsys, "pull", str(store), "--artifacts", "mine")
    assert code == 2 and "its manifest is another's" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ls", "--artifacts", "nowhere"], "artifacts='nowhere': must be the folder of a store"),
        (["verify", "--artifacts", "_build"], "artifacts='_build': must be the folder of a store"),
        (["gc", "--artifacts", "nowhere"], "artifacts='nowhere': must be the folder of a store"),
        (["pull", "nowhere"], "source='nowhere': cannot be read as a store"),
        (["pull", "unheard-of://x"], "source='unheard-of://x': cannot be read as a store"),
        (["pull", "_build"], "source='_build': holds no artifact"),
        (["pull", "artifacts", "--stage", "teacher"], "stage='teacher': must be one of data, student"),
        (["pull"], "the following arguments are required: source"),
        (["tidy"], "ACTION: invalid choice: 'tidy'"),
    ],
)
def test_wrong_words_are_one_line(store, capsys, words, line):
    code, _, err = kdcdiff(capsys, *words)
    assert code == 2 and err.startswith(f"error: {line}") and err.count("\n") == 1
    assert not Path("nowhere").exists()
