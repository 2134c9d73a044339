"""`kdcdiff store`: what lies there, whether it is whole, what may go, and what another store has."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest

from kdcdiff import cli
from kdcdiff.book.results import Results
from kdcdiff.manifest import sealed
from kdcdiff.store import Store


def write(folder: Path, **settings: object) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "out.txt").write_text(repr(settings))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of a data set, a student made from it, which a chapter has read, and one that nobody has."""
    monkeypatch.chdir(tmp_path)
    store = Store("artifacts", say=lambda line: None)
    data = store.get("data", write)
    student = store.get("student", write, settings={"steps": 1}, inputs={"data": data})
    store.get("student", write, settings={"steps": 2}, inputs={"data": data})
    Results("_build/results.json").use(student, "distillation")
    return store


def names(root: Path) -> list[str]:
    return sorted(path.parent.name.rpartition("-")[0] for path in root.glob("*/manifest.json"))


def kdcdiff(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["store", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_ls_says_what_lies_there_and_who_reads_it(store, capsys):
    (store.root / "work" / "student-0" / "checkpoint").mkdir(parents=True)
    (store.root / "damaged" / "old").mkdir(parents=True)
    next(store.root.glob("data-*/deep/out.txt")).write_text("cut")
    code, out, _ = kdcdiff(capsys, "ls")
    lines = [line for line in out.splitlines() if "-" in line or "old" in line]
    assert code == 0 and [sum(word in line for line in lines) for word in ("data-", "student-", "old")] == [1, 3, 1]
    assert sum("distillation" in line for line in lines) == 1
    assert "out.txt has 3 bytes, not 2" in out and "unfinished: a killed training's checkpoint" in out


def test_verify_reads_every_byte_and_changes_nothing(store, capsys):
    code, out, _ = kdcdiff(capsys, "verify")
    assert code == 0 and "3 artifacts, 0 of them damaged" in out
    next(store.root.glob("data-*/deep/out.txt")).write_text("{]")
    code, out, _ = kdcdiff(capsys, "verify")
    assert code == 1 and "damaged: data-" in out and "deep/out.txt has a wrong checksum" in out
    assert names(store.root) == ["data", "student", "student"]


def test_gc_lists_then_removes_what_no_chapter_leads_to(store, capsys):
    (store.root / "work" / "student-0" / "checkpoint").mkdir(parents=True)
    (store.root / "work" / "student-1").mkdir()
    (store.root / "damaged" / "old").mkdir(parents=True)
    code, out, _ = kdcdiff(capsys, "gc")
    assert code == 0 and out.count("may go") == 3 and names(store.root) == ["data", "student", "student"]
    code, out, _ = kdcdiff(capsys, "gc", "--delete")
    assert code == 0 and out.count("removed ") == 3, "the data stay, which the student was made from"
    assert names(store.root) == ["data", "student"] and not list((store.root / "damaged").iterdir())
    assert [path.name for path in (store.root / "work").iterdir()] == ["student-0"], "a checkpoint is somebody's work"
    assert kdcdiff(capsys, "gc", "--delete", "--unfinished")[0] == 0
    assert not list((store.root / "work").iterdir())
    assert "0.0 MiB to be had" in kdcdiff(capsys, "gc")[1]


def test_gc_leaves_what_a_process_is_at_work_on(store, capsys):
    (store.root / "work" / "student-1").mkdir()
    with store.held("student-1") as free:
        assert free and "kept    student-1" in kdcdiff(capsys, "gc", "--delete")[1]
    assert (store.root / "work" / "student-1").exists()


def test_gc_without_a_record_keeps_everything(store, capsys):
    code, _, err = kdcdiff(capsys, "gc", "--delete", "--results", "nowhere.json")
    assert code == 2 and "nothing would be kept" in err and len(names(store.root)) == 3


@pytest.mark.parametrize("as_url", [False, True])
def test_pull_takes_what_is_missing(store, capsys, tmp_path, as_url):
    source = str(store.root)
    if as_url:
        source = "memory://published/artifacts"
        fsspec.filesystem("memory").put(str(store.root), "/published/artifacts", recursive=True)
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
    artifact = next(store.root.glob("data-*"))
    altered(artifact, how)
    code, _, err = kdcdiff(capsys, "pull", str(store.root), "--artifacts", "mine", "--stage", "data")
    assert code == 2 and line in err and err.count("\n") == 1
    assert names(tmp_path / "mine") == [] and not list(tmp_path.glob("mine/work/*"))
    assert not list(tmp_path.glob("**/escaped.txt"))


def test_an_artifact_under_anothers_name_is_refused(store, capsys):
    data, student = next(store.root.glob("data-*")), next(store.root.glob("student-*"))
    shutil.rmtree(data)
    shutil.copytree(student, data)
    assert "its manifest is another's" in kdcdiff(capsys, "verify")[1]
    code, _, err = kdcdiff(capsys, "pull", str(store.root), "--artifacts", "mine")
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
