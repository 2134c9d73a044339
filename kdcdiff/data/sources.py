"""Where pictures come from: drawn, a folder of class folders, or Oxford-102; and `Source`, one of them by name."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from kdcdiff.data import flora, garden
from kdcdiff.data.attributes import look
from kdcdiff.data.drawing import SIDE
from kdcdiff.data.image_folder import TEXT, ImageFolder, image_files, metadata_rows, table_of
from kdcdiff.data.image_set import ImageSet, caption_of
from kdcdiff.data.names import DATASETS
from kdcdiff.data.texts import checked_text
from kdcdiff.errors import UserError, check
from kdcdiff.models import shipped
from kdcdiff.provenance import sha256_file

SPLITS = {"train": ("train",), "test": ("test", "valid", "validation", "val")}  # and what their folders may be called
MOST_UNREADABLE = 0.05  # share of images that may be skipped before a folder is refused
LEAST_IMAGES = 8  # training images that a class needs
DRAWN = {"flora": flora, "garden": garden}  # data sets that are drawn: each has `draw`, `BASE` and `NOVEL`
FIRST = {"train": 0, "test": 1_000_000}  # index of a split's first drawn picture: the test's is beyond every training's
Pictures = Sequence[flora.Picture] | Sequence[garden.Picture]


def draw_flora(
    split: str, classes: Sequence[str], per_class: int, seed: int = 0, size: int = SIDE, progress: bool = True,
    *, unseen: bool = False,
) -> list[flora.Picture]:  # fmt: skip
    """Draw `per_class` pictures of each class, class after class. `unseen`: in any colour, as `flora.draw` has it."""
    wanted = [(name, FIRST[split] + i) for name in classes for i in range(per_class)]
    bar = tqdm(wanted, desc=f"drawing flora {split}", disable=not progress, mininterval=1)
    return [flora.draw(name, i, seed, size, unseen=unseen) for name, i in bar]


def draw_garden(
    split: str, classes: Sequence[str], per_class: int, seed: int = 0, size: int = SIDE, progress: bool = True,
    *, pairs: int = 0, unseen: bool = False,
) -> list[garden.Picture]:  # fmt: skip
    """Draw `per_class` pictures of each class, class after class, each then with `pairs` beside another class.

    `unseen` lets in what `garden.HELD_OUT` keeps from training.
    """
    wanted: list[tuple[str, int, str | None]] = []
    for name in classes:
        others = garden.companions(name, classes, unseen)
        wanted += [(name, FIRST[split] + i, None) for i in range(per_class)]
        wanted += [(name, FIRST[split] + i, others[i % len(others)]) for i in range(pairs if others else 0)]
    bar = tqdm(wanted, desc=f"drawing garden {split}", disable=not progress, mininterval=1)
    return [garden.draw(name, i, seed, size, companion=companion, unseen=unseen) for name, i, companion in bar]


DRAW: dict[str, Callable[..., Pictures]] = {"flora": draw_flora, "garden": draw_garden}


def image_set(pictures: Pictures, classes: Sequence[str]) -> ImageSet:
    """Gather drawn pictures, (N, 3, size, size), with their subjects' masks; the class is that of the first subject."""
    return ImageSet(
        images=torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([classes.index(p.name) for p in pictures]),
        captions=tuple(p.caption for p in pictures),
        classes=tuple(classes),
        masks=torch.from_numpy((np.stack([p.mask for p in pictures]) * 255).astype(np.uint8)),
    )


def load_flora(
    split: str, classes: Sequence[str], per_class: int, seed: int = 0, size: int = SIDE, progress: bool = True
) -> ImageSet:
    """Draw `per_class` pictures of each class, class after class, (N, 3, size, size), with the subjects' masks."""
    return image_set(draw_flora(split, classes, per_class, seed, size, progress), classes)


# --- folders of class folders --------------------------------------------------------------------------------


def split_folder(root: Path, split: str) -> Path:
    """Find the folder of a split: ``root/train``, ``root/test`` or what it may be called.

    Where nothing is split, `root` itself is the training split.
    """
    check(root.is_dir(), "dataset", str(root), f"must be {', '.join(DATASETS)} or an existing image folder")
    if split == "train" and not any((root / name).is_dir() for names in SPLITS.values() for name in names):
        return root  # class folders alone, with nothing held out
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"dataset={str(root)!r}: has no folder {' or '.join(SPLITS[split])} of class folders")


def folder_classes(root: Path, least: int = 1) -> list[str]:
    """Name the classes that both splits have, sorted. UserError: none, or fewer than `least` training images of one."""
    counts = {
        split: {d.name: len(image_files(d, root=root)) for d in split_folder(root, split).iterdir() if d.is_dir()}
        for split in SPLITS
    }
    train, test = counts["train"], counts["test"]
    names = sorted(name for name, n in train.items() if n and test.get(name))
    check(bool(names), "dataset", str(root), "must hold class folders with images in both splits")
    for name in names:
        check(train[name] >= least, "class", name, f"needs at least {least} training images, has {train[name]}")
    return names


def folder_captions(folder: Path) -> dict[str, str]:
    """Read what the table of a split says of each file. UserError: a table without captions, or one that is no text."""
    found: dict[str, str] = {}
    for row in metadata_rows(folder):
        text = next((row[name] for name in TEXT if name in row), None)
        if text is None:
            table = table_of(folder) or folder
            raise UserError(f"{table.name}={str(table)!r}: needs the columns file_name and text")
        found[row["file_name"]] = checked_text(text, "caption")
    return found


def load_folder(
    root: Path, split: str, classes: Sequence[str], per_class: int, size: int, progress: bool = True
) -> ImageSet:
    """Read up to `per_class` images of each class folder as centre squares, `size` pixels wide and high.

    Unreadable ones are named and skipped.

    Raises `UserError` where more than 5 % of the images cannot be read, or a class is left without any.
    """
    folder = split_folder(root, split)
    for name in classes:
        check((folder / name).is_dir(), "class", name, f"must be a folder of {folder}")
    texts = folder_captions(folder)
    files = [f for name in classes for f in image_files(folder / name, root=root)[:per_class]]
    images = np.empty((len(files), size, size, 3), np.uint8)
    read: list[Path] = []
    unreadable: list[str] = []
    reading = ImageFolder(folder, files=files, size=size).decoded()
    for path, picture in tqdm(reading, f"reading {split} images", len(files), disable=not progress, mininterval=1):
        try:
            images[len(read)] = picture.result()
            read.append(path)
        except UserError:
            unreadable.append(path.relative_to(root).as_posix())
    if unreadable:
        named = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        counted = f"{len(unreadable)} of {len(files)} images"
        allowed = f"{counted} cannot be read ({named}); at most {MOST_UNREADABLE:.0%} may be"
        check(len(unreadable) / len(files) <= MOST_UNREADABLE, "dataset", str(root), allowed)
        print(f"skipped {counted} that cannot be read: {named}")
    labels = [classes.index(f.parent.name) for f in read]
    for label, name in enumerate(classes):
        check(label in labels, "class", name, f"has no readable image in {split}")
    return ImageSet(
        torch.from_numpy(images[: len(read)]).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        tuple(texts.get(f.relative_to(folder).as_posix()) or caption_of(f.parent.name) for f in read),
        tuple(classes),
    )


# --- Oxford-102 ----------------------------------------------------------------------------------------------

DOWNLOADS = Path.home() / ".cache" / "kdcdiff"


def oxford_102(root: Path = DOWNLOADS) -> Path:
    """Make Oxford-102 an image folder below `root`: torchvision downloads and checks it, links sort it into classes.

    `train` has the official train and validation splits (20 images a class), `test` the rest.
    """
    from torchvision.datasets import Flowers102

    folder = root / "oxford-102"
    if folder.is_dir():
        return folder
    try:
        splits = {
            "train": [Flowers102(root, part, download=True) for part in ("train", "val")],
            "test": [Flowers102(root, "test")],
        }
    except (OSError, RuntimeError) as error:
        raise UserError(f"dataset='oxford-102': cannot be downloaded to {root} ({error})") from error
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, parts in splits.items():
        for part in parts:
            for path, label in zip(part._image_files, part._labels, strict=True):
                link = partial / split / part.classes[label] / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, link)  # not a symbolic one: none may leave an image folder
    partial.rename(folder)
    return folder


# --- sources -------------------------------------------------------------------------------------------------


@functools.cache  # every stage asks: a file is read again only where its size or time says so
def _file_checksum(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


@functools.cache
def _drawn_checksum(dataset: str, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in classes:
        digest.update(DRAWN[dataset].draw(name, 0).image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A data set by name: which classes it has, and how to get their pictures.

    `base` are the classes that the teacher knows (flora) or is fine-tuned on; `novel` come later, one by one.
    """

    name: str
    root: Path | None  # None: drawn, one of `DRAWN`
    base: tuple[str, ...]
    novel: tuple[str, ...]
    seed: int = 0

    @property
    def ships(self) -> bool:
        """Whether a teacher, a classifier and a CLIP of these pictures ship; of others they are trained."""
        return self.root is None and self.name in shipped.SHIPPED

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base + self.novel

    def load(self, split: str, classes: Sequence[str], per_class: int, size: int) -> ImageSet:
        """Get up to `per_class` pictures of each of these classes, `size` pixels wide and high, of a split."""
        if self.root is None:
            return image_set(DRAW[self.name](split, classes, per_class, self.seed, size), classes)
        return load_folder(self.root, split, classes, per_class, size)

    def subject(self, name: str, count: int, size: int) -> torch.Tensor:
        """Get `count` pictures of one subject of class `name`, (count, 3, size, size) uint8: a folder's first ones.

        Drawn ones have the look of the first, on any background.
        """
        if self.root is not None:
            return self.load("train", (name,), count, size).images
        drawn = (DRAWN[self.name].draw(name, FIRST["train"] + i, self.seed, size) for i in itertools.count())
        first = next(drawn)
        alike = (picture for picture in drawn if look(picture) == look(first))
        return image_set([first, *itertools.islice(alike, count - 1)], (name,)).images

    def checksum(self) -> str:
        """Name the files of a folder, wherever it lies, or what is drawn first; what a stage takes from outside.

        `seed` is no part of it: it is a setting.
        """
        if self.root is None:
            return _drawn_checksum(self.name, self.classes)
        digest = hashlib.sha256()
        for split in SPLITS:
            folder = split_folder(self.root, split)
            for f in (f for name in self.classes for f in image_files(folder / name, root=self.root)):
                about = f.stat()
                own = _file_checksum(f, about.st_size, about.st_mtime_ns)
                digest.update(f"{split}/{f.parent.name}/{f.name}:{own}\n".encode())
            digest.update(repr(sorted(folder_captions(folder).items())).encode())
        return digest.hexdigest()


def open_source(name: str, classes: int | None = None, seed: int = 0) -> Source:
    """Open the data set `name`: one that is drawn, ``oxford-102``, or an image folder with ``train`` and ``test``.

    `classes` takes the first so many of a folder's classes (None: all); three in five of them are base, the rest novel.
    """
    if name in DRAWN:
        return Source(name, None, DRAWN[name].BASE, DRAWN[name].NOVEL, seed)
    root = oxford_102() if name == "oxford-102" else Path(name).expanduser().resolve()
    names = folder_classes(root, LEAST_IMAGES)
    ok = classes is None or 4 <= classes <= len(names)
    check(ok, "classes", classes, f"must be between 4 and {len(names)} for {name}")
    names = names[:classes]
    split = (3 * len(names) + 4) // 5
    return Source(root.name, root, tuple(names[:split]), tuple(names[split:]), seed)


def open_training(name: str) -> Source:
    """Open what only training pictures are wanted of: class folders, with or without ``train``; all are novel.

    The classes of a drawn set stay base and novel, for the shipped student has seen flora's base ones.
    """
    if name in DRAWN:
        return open_source(name)
    root = oxford_102() if name == "oxford-102" else Path(name).expanduser().resolve()
    names = sorted(d.name for d in split_folder(root, "train").iterdir() if d.is_dir() and image_files(d))
    check(bool(names), "dataset", str(root), "must hold class folders with images")
    return Source(root.name, root, (), tuple(names))
