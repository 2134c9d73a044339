"""Every command that makes something, at its smallest, so that it can be killed and given again: words and outcome."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kdcdiff.book import notebook as notebooks
from kdcdiff.book import runner
from kdcdiff.book.staging import is_current
from kdcdiff.book.toc import Book

from ..pipelines import make

COLOURS = {"rose": "red", "iris": "blue"}
TINY = {
    "images_per_class": 2, "extractor_images_per_class": 2, "clip_steps": 2, "clip_batch": 4, "perceptual_net_steps": 2,
    "autoencoder_steps": 2, "autoencoder_batch": 4, "unet_steps": 2, "unet_batch": 4, "classifier_steps": 2,
    "classifier_batch": 8,
}  # fmt: skip
OWN_WORDS = ("provenance.json", "checksums.json", "costs.json")  # hold seconds, or the checksum of what holds them


@dataclass(frozen=True)
class Given:
    """What commands are given: a pipeline, pictures in class folders, and a book (None: nobody needs one)."""

    pipeline: Path
    pictures: Path
    book: Path | None = None


def given(root: Path, book: Path | None = None) -> Given:
    """Make it below `root`."""
    make("sd-1", [f"a photo of a {name}" for name in COLOURS]).save_pretrained(root / "pipeline")
    for part in ("train", "test"):
        for name, colour in COLOURS.items():
            folder = root / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (40 + i, 33), colour).save(folder / f"{i}.png")
    (root / "subject").mkdir()
    for i in range(4):
        shutil.copy(root / "pictures" / "train" / "rose" / f"{i}.png", root / "subject")
    return Given(root / "pipeline", root / "pictures", book)


# --- words: (what is given, the folder to work below) -> the command -------------------------------------------------


def encode(given: Given, root: Path) -> list[str]:
    return ["--teacher", str(given.pipeline), "--data", str(given.pictures), "--out", str(root / "out"), "--shard", "2"]


def distill(given: Given, root: Path) -> list[str]:
    training = ["--variant", "original", "--steps", "6", "--batch", "2", "--per-class", "2"]
    data = ["--teacher", str(given.pipeline), "--data", str(given.pictures)]
    return [*data, "--out", str(root / "out"), *training]


def continual(given: Given, root: Path) -> list[str]:
    training = ["--steps", "2", "--batch", "4", "--capacity", "4", "--judge-steps", "2"]
    data = ["--student", str(given.pipeline), "--data", str(given.pictures), "--classes", *COLOURS]
    return [*data, "--out", str(root / "out"), *training, "--images", "2", "--sampler-steps", "1"]


def personalize(given: Given, root: Path) -> list[str]:
    subject = ["--subject", str(given.pipeline.with_name("subject")), "--noun", "rose", "--prior-images", "2"]
    training = ["--steps", "4", "--images", "2", "--sampler-steps", "1"]
    return ["--pipeline", str(given.pipeline), *subject, *training, "--out", str(root / "out")]


def generate(given: Given, root: Path) -> list[str]:
    drawn = ["--prompts", "a rose", "--per-prompt", "6", "--steps", "2", "--batch-size", "1"]
    return [str(given.pipeline), *drawn, "--out", str(root / "out")]


def shrink(given: Given, root: Path) -> list[str]:
    return [str(given.pipeline), "--variant", "original", "--out", str(root / "out")]


def pretrain(given: Given, root: Path) -> list[str]:
    sizes = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["--work", str(root / "work"), "--out", str(root / "out"), *sizes]


def run(given: Given, root: Path) -> list[str]:
    assert given.book is not None
    if not root.exists():
        shutil.copytree(given.book, root)
    return ["--root", str(root), "--profile", "smoke"]


def build(given: Given, root: Path) -> list[str]:
    assert given.book is not None
    executed = given.book.with_name("executed")
    if not executed.exists():  # once: what a page says of its costs is a matter of the run
        runner.run(run(given, executed)[1], profile="smoke")
    if not root.exists():
        shutil.copytree(executed, root)
    return ["--root", str(root)]


# --- outcomes: the folder -> what is to be the same -----------------------------------------------------------------


def files_of(root: Path) -> dict[str, str]:
    """The sha256 of every file but those with words of their own."""
    kept = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in OWN_WORDS)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def model_of(root: Path) -> dict[str, str]:
    """The files of the pipeline or cache that a command leaves; beside it its work lies, with checkpoints."""
    return files_of(root / "out")


def weights_of(root: Path) -> dict[str, str]:
    """The same without the model card, which says how long it took."""
    return {name: digest for name, digest in model_of(root).items() if name != "README.md"}


def chapters_of(root: Path) -> dict[str, str]:
    """What the executed chapters show."""
    book = Book(root)
    assert all(is_current(book, chapter) for chapter in book.chapters())
    read = {chapter.name: notebooks.read(book.staged / chapter.path) for chapter in book.chapters()}
    return {name: json.dumps([cell.get("outputs") for cell in each.cells]) for name, each in read.items()}


def pages_of(root: Path) -> dict[str, str]:
    """The rendered pages, and all that they load."""
    return files_of(root / "_build" / "html")


@dataclass(frozen=True)
class Command:
    """A command's words and outcome, and how many files that has at least."""

    words: Callable[[Given, Path], Sequence[str]]
    outcome: Callable[[Path], dict[str, str]]
    least: int


COMMANDS = {
    "encode": Command(encode, model_of, 18),
    "distill": Command(distill, model_of, 8),
    "continual": Command(continual, model_of, 8),
    "personalize": Command(personalize, weights_of, 8),
    "generate": Command(generate, model_of, 8),
    "shrink": Command(shrink, model_of, 8),
}
LONG = {  # half a minute and more each: `make test-faults`
    "pretrain": Command(pretrain, model_of, 12),
    "run": Command(run, chapters_of, 2),
    "build": Command(build, pages_of, 40),
}
HIDDEN = (".kdcdiff-digest", ".buildinfo", ".nojekyll")  # a rendered book's own


def left_behind(root: Path) -> list[str]:
    """What a finished command may not leave: partial and temporary files."""
    found = (path for path in root.rglob("*") if path.name.startswith(".") or path.suffix in (".partial", ".old"))
    return sorted(path.name for path in found if path.name not in HIDDEN and ".doctrees" not in path.parts)
