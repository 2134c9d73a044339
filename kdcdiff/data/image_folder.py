"""A folder of pictures: how a file is decoded, its table of captions, and `ImageFolder`, which streams it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcdiff.data.image_set import IMAGE_SUFFIXES
from kdcdiff.data.texts import checked_text, csv_rows, json_rows, parquet_rows
from kdcdiff.errors import UserError, check

METADATA = "metadata.csv"  # the imagefolder convention of `datasets`: file_name, text (or caption), further columns
TABLES: dict[str, Callable[[Path, str], Iterator[dict[str, str]]]] = {  # what it may be called, and how it is read
    METADATA: csv_rows,
    "metadata.jsonl": json_rows,
    "metadata.parquet": parquet_rows,
}
TEXT = ("text", "caption")  # what the column of captions may be called
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whatever a file's name says; others may start programs

MOST_PIXELS = 2**26  # of a picture, known before it is decoded: 200 MB as RGB
LEAST_SIDE = 8  # pixels: nothing is to be seen in a picture that is narrower


class Unfit(ValueError):
    """A picture that is whole and cannot serve; `kind` says in a word or two why."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Decode a picture to RGB, (H, W, 3) uint8; with `size` its centre square at that side, (size, size, 3).

    UserError names a file that cannot be read, is animated, is narrower than `LEAST_SIDE` or has more than
    `MOST_PIXELS`.
    """
    try:
        return decode_image(path, size)
    except Exception as error:  # decoders of files that were made to break them fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(f"image={str(path)!r}: cannot be read ({reason})") from error


def decode_image(source: Path | BinaryIO, size: int | None = None, least: int = LEAST_SIDE) -> np.ndarray:
    """Decode as `read_image` does, from a file or a stream. Unfit: animated, too large, narrower than `least`.

    Any other exception: it cannot be read.
    """
    with Image.open(source, formats=FORMATS) as file:
        image = _rgb(file, least)
    if size is None:
        return np.asarray(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def _rgb(file: Image.Image, least: int) -> Image.Image:
    """Decode an opened file once its header says that this is a picture of a sensible size. Unfit: it is none."""
    width, height = file.size
    if width * height > MOST_PIXELS:
        raise Unfit("too large", f"{width}x{height} pixels; at most {MOST_PIXELS:,} are decoded")
    if min(width, height) < least:
        raise Unfit("too small", f"{width}x{height} pixels; at least {least} a side are needed")
    if getattr(file, "is_animated", False) and file.format != "MPO":  # some cameras add a preview to a JPEG
        raise Unfit("animated")
    if file.mode.startswith("I;16"):  # Pillow would cut what is brighter than 255 of 65,535
        return Image.fromarray((np.asarray(file) // 257).astype(np.uint8)).convert("RGB")
    if file.mode in ("I", "F"):
        raise Unfit("of 32-bit values", "32-bit values, whose range nobody knows")
    return file.convert("RGB")


def image_files(folder: Path, pattern: str = "*", root: Path | None = None) -> list[Path]:
    """List the image files of a folder that match `pattern`, sorted by name; hidden ones are left out.

    UserError: a link that leaves `root` (the folder itself): somebody else's folder may not show files of this machine.
    """
    found = [f for f in folder.glob(pattern) if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    check_links([folder, *found] if root else found, root or folder)
    return sorted(found)


def image_names(root: Path) -> list[str]:
    """List the image files in and below `root` as `image_files` does, as names relative to it in the order of paths.

    A name is a tenth of a path's memory, of which there may be a million. UserError: a link that leaves `root`.
    """
    names, folders = [], [""]
    while folders:
        inside = folders.pop()
        with os.scandir(root / inside) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{inside}{entry.name}/")
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
                    check_links([Path(entry.path)] if entry.is_symlink() else [], root)
                    names.append(inside + entry.name)
    return sorted(names, key=lambda name: name.split("/"))


def check_links(paths: Sequence[Path], root: Path) -> None:
    """Raise UserError unless every link among `paths` leads to a file below `root`."""
    for path in paths:
        inside = not path.is_symlink() or path.resolve().is_relative_to(root.resolve())
        check(inside, "image", str(path), "a link that leaves the folder; copy what it leads to")


def table_of(folder: Path) -> Path | None:
    """Find a folder's table: the first of `TABLES` that is there."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_metadata(folder: str | Path) -> list[dict[str, str]]:
    """Read the rows of a folder's table whose images are there.

    There are none without a table, and a torn last line is none. UserError: a table that does not name its files, or
    cannot be read.
    """
    return list(metadata_rows(Path(folder)))


def metadata_rows(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows that `read_metadata` returns, one by one."""
    if (path := table_of(folder)) is None:
        return
    check_links([path], folder)
    for row in TABLES[path.name](path, path.name):
        check("file_name" in row, path.name, str(path), "needs the columns file_name and text")
        torn = None in row or None in row.values()
        if not torn and len(row["file_name"]) < 1024 and (folder / row["file_name"]).is_file():
            yield row


def column_of(rows: Sequence[Mapping[str, str]], *names: str) -> dict[str, str] | None:
    """Return the first of these columns that a table has, by file name; None where it has none of them."""
    name = next((n for n in names if rows and all(n in row for row in rows)), None)
    return None if name is None else {row["file_name"]: checked_text(row[name], METADATA) for row in rows}


class ImageFolder:
    """Images in or below a folder, in the order of their names unless `files` says which, and in what order.

    Iterates as batches (n, 3, H, W) uint8, any number of times: at their own size, which must be one, or with `size`
    as centre squares. Files are read ahead in threads, a batch at most, so memory does not grow with the folder.
    UserError: no folder or no images in it; on iterating, an unreadable image or images of several sizes.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 256,
        *,
        files: Sequence[Path] | None = None,
        size: int | None = None,
        workers: int = 4,
    ) -> None:
        self.folder, self.batch_size, self.size, self.workers = Path(folder).expanduser(), batch_size, size, workers
        check(self.folder.is_dir(), "folder", str(folder), "must be a folder of images")
        self.files = list(image_files(self.folder, "**/*") if files is None else files)
        check(bool(self.files), "folder", str(folder), f"must hold images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.files)

    def decoded(self) -> Iterator[tuple[Path, Future[np.ndarray]]]:
        """Yield each file with its picture (H, W, 3) uint8, whose ``result()`` raises UserError if it is unreadable."""
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = deque(pool.submit(read_image, path, self.size) for path in self.files[: self.batch_size])
            for i, path in enumerate(self.files):
                if i + self.batch_size < len(self.files):
                    ahead.append(pool.submit(read_image, self.files[i + self.batch_size], self.size))
                yield path, ahead.popleft()

    def __iter__(self) -> Iterator[Tensor]:
        first: tuple[int, ...] | None = None
        batch: list[np.ndarray] = []
        for i, (path, picture) in enumerate(self.decoded(), 1):
            image = picture.result()
            height, width = image.shape[:2]
            first = first or (height, width)
            allowed = f"is {width}x{height}; the first one is {first[1]}x{first[0]}, and all must have one size"
            check((height, width) == first, "image", str(path), allowed)
            batch.append(image)
            if len(batch) == self.batch_size or i == len(self):
                yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()
                batch = []

    def _column(self, *names: str) -> list[str] | None:
        """Return one column of the table in the images' order. UserError: an image without a row."""
        values = column_of(read_metadata(self.folder), *names)
        if values is None:
            return None
        own = [f.relative_to(self.folder).as_posix() for f in self.files]
        missing = next((Path(name).name for name in own if name not in values), "")
        allowed = f"has {len(values)} rows for {len(self)} images; {missing} has no prompt"
        check(not missing, METADATA, str(self.folder), allowed)
        return [values[name] for name in own]

    def prompts(self) -> list[str] | None:
        """Return each image's prompt from ``metadata.csv``; None where the folder has none."""
        return self._column(*TEXT)

    def classes(self) -> list[str] | None:
        """Return each image's class, from ``metadata.csv`` or its folder's name; None where there is neither."""
        named = self._column("class")
        if named and all(named):
            return named
        return [f.parent.name for f in self.files] if all(f.parent != self.folder for f in self.files) else None
