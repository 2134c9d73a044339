"""Pictures with captions and classes, and their latents: what every later stage reads.

One in-memory type, `ImageSet`, whatever the source: `flora`, a folder of class folders, or Oxford-102.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from kdcdiff.data import flora
from kdcdiff.data.image_set import IMAGE_SUFFIXES, ImageSet, caption_of
from kdcdiff.errors import UserError, check

SPLITS = {
    "train": ("train",),
    "test": ("test", "valid", "validation", "val"),
}  # a split and the folders it may be called
MOST_UNREADABLE = 0.05  # share of images that may be skipped before a folder is refused


TEST_OFFSET = 1_000_000  # flora's test pictures start at this index: disjoint from every training picture


def load_flora(split: str, classes: Sequence[str], per_class: int, seed: int = 0, progress: bool = True) -> ImageSet:
    """`per_class` pictures of each class, class after class."""
    offset = {"train": 0, "test": TEST_OFFSET}[split]
    pairs = [(name, offset + i) for name in classes for i in range(per_class)]
    drawn = [
        flora.draw(name, i, seed)
        for name, i in tqdm(pairs, desc=f"drawing flora {split}", disable=not progress, mininterval=1)
    ]
    return ImageSet(
        images=torch.from_numpy(np.stack([p.image for p in drawn])).permute(0, 3, 1, 2).contiguous(),
        labels=torch.arange(len(classes)).repeat_interleave(per_class),
        captions=tuple(p.caption for p in drawn),
        classes=tuple(classes),
        masks=torch.from_numpy((np.stack([p.mask for p in drawn]) * 255).astype(np.uint8)),
    )


def _square(path: Path, size: int) -> np.ndarray:
    """An RGB centre crop of `size` pixels, (size, size, 3) uint8."""
    with Image.open(path) as file:
        image = file.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return np.asarray(
            image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        )


def _captions_file(folder: Path) -> dict[str, str]:
    """`metadata.csv` of the imagefolder convention: columns file_name and text (or caption)."""
    path = folder / "metadata.csv"
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    column = next((c for c in ("text", "caption") if rows and c in rows[0]), None)
    check(
        bool(rows) and "file_name" in rows[0] and column is not None,
        "metadata.csv",
        str(path),
        "needs the columns file_name and text",
    )
    return {row["file_name"]: row[str(column)] for row in rows}


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split: ``root/train``, ``root/test`` or what it may be called."""
    check(root.is_dir(), "dataset", str(root), "must be flora, oxford-102 or an existing image folder")
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"dataset={str(root)!r}: has no folder {' or '.join(SPLITS[split])} of class folders")


def folder_classes(root: Path, least: int = 1) -> list[str]:
    """Class names that both splits have, sorted; a class with fewer than `least` training images is refused."""
    counts = {
        split: {
            d.name: sum(f.suffix.lower() in IMAGE_SUFFIXES for f in d.iterdir())
            for d in sorted(split_folder(root, split).iterdir())
            if d.is_dir()
        }
        for split in SPLITS
    }
    names = [name for name, n in counts["train"].items() if n and counts["test"].get(name, 0)]
    check(bool(names), "dataset", str(root), "must hold class folders with images in both splits")
    for name in names:
        check(
            counts["train"][name] >= least,
            "class",
            name,
            f"needs at least {least} training images, has {counts['train'][name]}",
        )
    return names


def load_folder(
    root: Path, split: str, classes: Sequence[str], per_class: int, size: int = 64, progress: bool = True
) -> ImageSet:
    """Up to `per_class` images of each class folder, centre-cropped; unreadable ones are named, counted and skipped.

    Raises `UserError` where more than 5 % of the images cannot be read, or a class is left without any.
    """
    folder, images, labels, captions, unreadable = split_folder(root, split), [], [], [], []
    texts = _captions_file(folder)
    files = []
    for label, name in enumerate(classes):
        check((folder / name).is_dir(), "class", name, f"must be a folder of {folder}")
        found = sorted(f for f in (folder / name).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        files += [(label, f) for f in found[:per_class]]
    for label, path in tqdm(files, desc=f"reading {split} images", disable=not progress, mininterval=1):
        try:
            images.append(_square(path, size))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            unreadable.append(path.relative_to(root).as_posix())
            continue
        labels.append(label)
        captions.append(texts.get(path.relative_to(folder).as_posix()) or caption_of(classes[label]))
    if unreadable:
        share = len(unreadable) / len(files)
        named = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        check(
            share <= MOST_UNREADABLE,
            "dataset",
            str(root),
            f"{len(unreadable)} of {len(files)} images cannot be read ({named}); at most {MOST_UNREADABLE:.0%} may be",
        )
        print(f"skipped {len(unreadable)} of {len(files)} images that cannot be read: {named}")
    counts = Counter(labels)
    for label, name in enumerate(classes):
        check(counts[label] > 0, "class", name, f"has no readable image in {split}")
    return ImageSet(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        tuple(captions),
        tuple(classes),
    )


# --- Oxford-102 ----------------------------------------------------------------------------------------------

DOWNLOADS = Path.home() / ".cache" / "kdcdiff"


def oxford_102(root: Path = DOWNLOADS) -> Path:
    """Oxford-102 as an image folder below `root`: torchvision downloads and checks it, links sort it into classes.

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
                link.symlink_to(path.resolve())
    partial.rename(folder)
    return folder


# --- sources: where a book's pictures come from ----------------------------------------------------------------


@functools.cache  # every stage asks: a file is read again only where its size or time says so
def _file_checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _flora_checksum(classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in classes:
        digest.update(flora.draw(name, 0).image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A data set by name: which classes it has, and how to get their pictures.

    `base` are the classes that the teacher knows (flora) or is fine-tuned on (a folder); `novel` come
    later, one by one.
    """

    name: str
    root: Path | None  # None: flora
    base: tuple[str, ...]
    novel: tuple[str, ...]
    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base + self.novel

    @property
    def size(self) -> int:
        """Side of its square pictures, in pixels."""
        return 64

    def load(self, split: str, classes: Sequence[str], per_class: int) -> ImageSet:
        if self.root is None:
            return load_flora(split, classes, per_class, self.seed)
        return load_folder(self.root, split, classes, per_class, self.size)

    def checksum(self) -> str:
        """What a stage names as its outside input: a folder's files, wherever it lies; flora's first pictures."""
        if self.root is None:
            return _flora_checksum(self.classes)
        digest = hashlib.sha256()
        for split in SPLITS:
            for name in self.classes:
                for f in sorted((split_folder(self.root, split) / name).iterdir()):
                    about = f.stat()
                    own = _file_checksum(f, about.st_size, about.st_mtime_ns)
                    digest.update(f"{split}/{name}/{f.name}:{own}\n".encode())
            digest.update(repr(sorted(_captions_file(split_folder(self.root, split)).items())).encode())
        return digest.hexdigest()


LEAST_IMAGES = 8  # training images that a class needs


def open_source(name: str, classes: int | None = None, seed: int = 0) -> Source:
    """The data set `name`: ``flora``, ``oxford-102``, or an image folder with ``train`` and ``test``.

    `classes` takes the first so many of a folder's classes (None: all); three in five of them are base, the rest novel.
    """
    if name == "flora":
        return Source("flora", None, flora.BASE, flora.NOVEL, seed)
    root = oxford_102() if name == "oxford-102" else Path(name).expanduser().resolve()
    names = folder_classes(root, LEAST_IMAGES)
    check(
        classes is None or 4 <= classes <= len(names),
        "classes",
        classes,
        f"must be between 4 and {len(names)} for {name}",
    )
    names = names[:classes]
    split = (3 * len(names) + 4) // 5
    return Source(root.name, root, tuple(names[:split]), tuple(names[split:]), seed)
