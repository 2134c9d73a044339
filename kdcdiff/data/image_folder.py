"""A folder of pictures: how a file is decoded, its table of captions, and `ImageFolder`, which streams it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcdiff.data.image_set import IMAGE_SUFFIXES
from kdcdiff.data.texts import checked_text, read_lines, read_table
from kdcdiff.errors import UserError, check

LINES = "metadata.jsonl"  # the same table, a JSON object a line
METADATA = "metadata.csv"  # the imagefolder convention of `datasets`: file_name, text (or caption), further columns
TEXT = ("text", "caption")  # what the column of captions may be called


MOST_PIXELS = 2**26  # of a picture, known before it is decoded: 200 MB as RGB
LEAST_SIDE = 8  # pixels: nothing is to be seen in a picture that is narrower


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Decode a picture to RGB, (H, W, 3) uint8; with `size` its centre square at that side, (size, size, 3).

    UserError names a file that cannot be read, is animated, is narrower than `LEAST_SIDE` or has more than
    `MOST_PIXELS`.
    """
    try:
        with Image.open(path) as file:
            image = _rgb(file)
    except Exception as error:  # decoders of files that were made to break them fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(f"image={str(path)!r}: cannot be read ({reason})") from error
    if size is None:
        return np.asarray(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def _rgb(file: Image.Image) -> Image.Image:
    """Decode an opened file once its header says that this is a picture of a sensible size. ValueError: it is none."""
    width, height = file.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels; at most {MOST_PIXELS:,} are decoded")
    if min(width, height) < LEAST_SIDE:
        raise ValueError(f"{width}x{height} pixels; at least {LEAST_SIDE} a side are needed")
    if getattr(file, "is_animated", False) and file.format != "MPO":  # some cameras add a preview to a JPEG
        raise ValueError("animated")
    if file.mode.startswith("I;16"):  # Pillow would cut what is brighter than 255 of 65,535
        return Image.fromarray((np.asarray(file) // 257).astype(np.uint8)).convert("RGB")
    if file.mode in ("I", "F"):
        raise ValueError("32-bit values, whose range nobody knows")
    return file.convert("RGB")


def image_files(folder: Path, pattern: str = "*", root: Path | None = None) -> list[Path]:
    """List the image files of a folder that match `pattern`, sorted by name; hidden ones are left out.

    UserError: a link that leaves `root` (the folder itself): somebody else's folder may not show files of this machine.
    """
    found = [f for f in folder.glob(pattern) if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    check_links([folder, *found] if root else found, root or folder)
    return sorted(found)


def check_links(paths: Sequence[Path], root: Path) -> None:
    """Raise UserError unless every link among `paths` leads to a file below `root`."""
    for path in paths:
        inside = not path.is_symlink() or path.resolve().is_relative_to(root.resolve())
        check(inside, "image", str(path), "a link that leaves the folder; copy what it leads to")


def read_metadata(folder: str | Path) -> list[dict[str, str]]:
    """Read the rows of a folder's ``metadata.csv``, or else ``metadata.jsonl``, whose images are there.

    There are none without a table, and a torn last line is none. UserError: a table that does not name its files, or a
    line that is no JSON.
    """
    path = Path(folder) / METADATA
    columns: Sequence[str] = ()
    rows: list[dict[str, str]] = []
    if path.is_file():
        check_links([path], Path(folder))
        columns, rows = read_table(path, METADATA)
    elif (path := Path(folder) / LINES).is_file():
        check_links([path], Path(folder))
        rows = [_json_row(path, line) for line in read_lines(path, LINES)]
        columns = sorted(set(rows[0]).intersection(*rows)) if rows else ()
    check(not rows or "file_name" in columns, METADATA, str(path), "needs the columns file_name and text")
    whole = [row for row in rows if None not in row and None not in row.values()]
    return [row for row in whole if len(row["file_name"]) < 1024 and (path.parent / row["file_name"]).is_file()]


def _json_row(path: Path, line: str) -> dict[str, str]:
    try:
        return {name: str(value) for name, value in json.loads(line).items() if value is not None}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{LINES}={str(path)!r}: must hold a JSON object a line, not {line[:60]!r}") from error


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
