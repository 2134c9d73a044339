"""Damage to every kind of file that is read back: found and named, and then rebuilt or refused, never used silently."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nbformat
import pytest
import torch

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.results import Results
from kdcdiff.book.staging import is_current, publish
from kdcdiff.book.toc import Book
from kdcdiff.data.latents import LatentSet
from kdcdiff.data.listing import Listed
from kdcdiff.data.shards import Encoded, ShardedLatents, finish, write_shards
from kdcdiff.errors import UserError
from kdcdiff.manifest import inspect
from kdcdiff.models.shipped import checked_assets
from kdcdiff.store import Store
from kdcdiff.training.checkpoint import CheckpointFolder
from kdcdiff.training.replay import LatentReplayBuffer

Kind = tuple[
    Callable[[Path], None], Callable[[Path], bool]
]  # makes one in a folder; True: it is read as if it were whole


def silent(root: Path) -> Store:
    return Store(root, say=lambda line: None)


# --- the kinds -------------------------------------------------------------------------------------------------


def make_artifact(folder: Path) -> None:
    def make(work: Path, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        mean = torch.randn(2, 2, 2, 2, generator=generator)
        rows = torch.tensor([0, 0])
        LatentSet(mean, mean.abs(), rows, rows.clone(), torch.randn(1, 2, 2, generator=generator), ("",), ("a",)).save(
            work
        )

    seed = int(hashlib.sha256(folder.name.encode()).hexdigest()[:4], 16)
    artifact = silent(folder / "store").get("latents", make, settings={"seed": seed})
    artifact.path.rename(folder / artifact.path.name)
    shutil.rmtree(folder / "store")


def read_artifact(folder: Path) -> bool:
    (artifact,) = folder.iterdir()
    return inspect(artifact)[0] is None


def make_buffer(folder: Path) -> None:
    buffer = LatentReplayBuffer(3, seed=len(folder.name))
    latents = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(len(folder.name)))
    buffer.add_class("rose", latents, ["a rose"] * 4, {"a rose": torch.ones(2, 2)})
    buffer.save(folder)


def read_buffer(folder: Path) -> bool:
    try:
        LatentReplayBuffer.load(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return False
    return True


def make_buffer_of_bytes(folder: Path) -> None:
    """As class-by-class training keeps one where memory is short: quantised, its rows in a file."""
    buffer = LatentReplayBuffer(3, seed=len(folder.name), codec="uint8", disk=folder.with_name(f"{folder.name}.rows"))
    latents = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(len(folder.name)))
    buffer.add_class("rose", latents, ["a rose"] * 4)
    buffer.save(folder)


class Two:
    """Two parts of two pictures and of one, of which nothing is read."""

    rows, classes = 2, ("rose",)

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def __len__(self) -> int:
        return 2

    def part(self, number: int) -> Iterator[Listed]:
        return (Listed(Path(), f"{i}.png", f"number {i}", 0) for i in range(2 - number))


def make_shards(folder: Path) -> None:
    def encode(chunk: Sequence[Listed]) -> Encoded:
        rows, generator = len(chunk), torch.Generator().manual_seed(len(chunk) + len(folder.name))
        half = {name: torch.randn(rows, 2, 2, 2, generator=generator).half() for name in ("mean", "std")}
        half |= {"prompts": torch.randn(rows, 2, 2, generator=generator).half(), "empty": torch.ones(2, 2).half()}
        numbers = {"labels": torch.zeros(rows, dtype=torch.int64), "captions": torch.arange(rows)}
        return Encoded(half | numbers, [])

    write_shards(Two(folder.name), encode, folder, {"origin": ("x", 1.0), "size": 16})
    finish(folder)


def read_shards(folder: Path) -> bool:
    """Draw every row, and read the notes as the command does that goes on."""
    try:
        cache = ShardedLatents(folder)
        rows = torch.arange(len(cache))
        cache.sample(rows, torch.Generator())
        for keep in (True, False):
            cache.prompts_of(rows, torch.full((len(rows),), keep))
        finish(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return False
    return True


def make_checkpoint(folder: Path) -> None:
    weights = {"model.w": torch.randn(3, 3), "optimizer.0.step": torch.tensor(7.0)}
    CheckpointFolder(folder).save(7, weights, 20)


def read_checkpoint(folder: Path) -> bool:
    return CheckpointFolder(folder).load() is not None


def make_assets(folder: Path) -> None:
    (folder / "clip").mkdir()
    (folder / "clip" / "model.safetensors").write_bytes(folder.name.encode() * 9)
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "checksums.json").write_text(json.dumps(sums))


def read_assets(folder: Path) -> bool:
    try:
        checked_assets.__wrapped__(folder)
    except UserError as error:
        assert str(error).startswith("assets=")
        return False
    return True


KINDS: dict[str, Kind] = {
    "artifact": (make_artifact, read_artifact),
    "replay buffer": (make_buffer, read_buffer),
    "replay buffer of bytes, on disk": (make_buffer_of_bytes, read_buffer),
    "latents shards": (make_shards, read_shards),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "shipped assets": (make_assets, read_assets),
}

# --- the damage ------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """A kind's reader, a whole one, another of the same kind, and a way to make a fresh copy of the whole one."""
    make, read = KINDS[request.param]
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        assert read(tmp_path / name)

    def copy() -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(tmp_path / "one", tmp_path / "copy"))

    return read, tmp_path / "one", tmp_path / "another", copy


def test_a_flipped_bit_is_found_wherever_it_is(kind, capsys):
    read, whole, _, copy = kind
    for number, file in enumerate(files_of(whole)):
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 60)):
            damaged = files_of(copy())[number]
            damaged.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 7)]) + content[place + 1 :])
            assert not read(damaged.parents[len(file.relative_to(whole).parts) - 1]), (file.name, place)


@pytest.mark.parametrize("how", ["cut", "emptied", "grown", "gone"])
def test_a_cut_grown_or_missing_file_is_found(kind, how):
    read, whole, _, copy = kind
    for number in range(len(files_of(whole))):
        folder = copy()
        damaged = files_of(folder)[number]
        content = damaged.read_bytes()
        if how == "gone":
            damaged.unlink()
        else:
            damaged.write_bytes({"cut": content[:-1], "emptied": b"", "grown": content + b"x"}[how])
        assert not read(folder), damaged.name


def test_anothers_file_in_its_place_is_found(kind):
    read, whole, another, copy = kind
    for number, other in enumerate(files_of(another)):
        folder = copy()
        damaged = files_of(folder)[number]
        if damaged.read_bytes() != other.read_bytes():
            shutil.copy(other, damaged)
            told = read(folder)
            assert not told or damaged.suffix == ".safetensors" and damaged.name.startswith("step-"), damaged.name


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capsys):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save(3, {"w": torch.ones(2)}, 10)
    checkpoints.save(6, {"w": torch.zeros(2)}, 20)
    assert checkpoints.newest is not None
    checkpoints.newest.write_bytes(checkpoints.newest.read_bytes()[:-1])
    found = checkpoints.load()
    assert found is not None and found[:2] == (3, 10) and bool((found[2]["w"] == 1).all())
    assert "step-0000006.safetensors is damaged" in capsys.readouterr().err
    assert (tmp_path / "step-0000006.damaged").exists()


def test_an_artifact_damaged_between_two_reads_of_one_process_is_made_again(tmp_path):
    lines: list[str] = []
    store = Store(tmp_path, say=lines.append)
    made = store.get("a", lambda folder: (folder / "x.txt").write_text("good") and None)
    (made / "x.txt").write_text("evil")
    assert (
        store.get("a", lambda folder: (folder / "x.txt").write_text("good") and None) / "x.txt"
    ).read_text() == "good"
    assert any("x.txt has a wrong checksum" in line for line in lines)


# --- the book's own files --------------------------------------------------------------------------------------


@pytest.fixture
def staged(small_book) -> tuple[Book, Path]:
    """A book of one chapter whose executed copy is published, and that copy."""
    book = Book(small_book({"01-a": ["print('shown')"]}, light=True))
    (chapter,) = book.chapters()
    notebook = notebooks.read(book.root / chapter.path)
    for count, cell in enumerate(notebooks.code_cells(notebook), 1):
        cell.execution_count = count
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="shown 7.25\n")]
    notebook.metadata["papermill"] = {}
    values = {"profile": "smoke", "dataset": "flora", "seed": 0, "artifacts": "artifacts"}
    publish(book, chapter, notebook, values, {}, "stamp", 1.0, 2**20)
    assert is_current(book, chapter, "stamp")
    return book, book.staged / chapter.path


def test_a_flipped_bit_in_an_executed_chapter_is_found(staged):
    book, copy = staged
    content = copy.read_bytes()
    for place in range(0, len(content), len(content) // 80):
        copy.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 5)]) + content[place + 1 :])
        assert not is_current(book, book.chapters()[0], "stamp"), content[place - 20 : place + 20]
    for damaged in (content[:-30], b"", content.replace(b"7.25", b"9.99")):
        copy.write_bytes(damaged)
        assert not is_current(book, book.chapters()[0], "stamp")


def test_a_clock_that_is_set_back_changes_nothing_of_an_executed_chapter(staged):
    book, copy = staged
    later = time.time() + 10 * 365 * 86400
    for path in (copy, book.results, book.root / book.chapters()[0].path):
        if path.exists():
            os.utime(path, (later, later))
    assert is_current(book, book.chapters()[0], "stamp")


def test_results_that_were_cut_are_refused_and_lost_ones_are_none(tmp_path):
    path = tmp_path / "results.json"
    Results(path).record("a.b", 1.5, chapter="a")
    content = path.read_bytes()
    for size in range(1, len(content) - 2, 9):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="is not a results file"):
            Results.load(path)
    path.unlink()
    assert Results.load(path) == {}
