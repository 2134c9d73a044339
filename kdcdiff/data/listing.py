"""Which pictures there are, and what is said of them: those of a folder, or of tar shards, in parts of which any
process can take any.

    pictures = list_pictures(Path("photographs"), 1024)
    for part in range(len(pictures)):
        for one in pictures.part(part):
            read_picture(one, 512)

A folder has class folders, or a table of captions (`image_folder.TABLES`); a part is a run of its pictures in the order
of their names. Of a folder of tars each one is a part, and none is opened before its pictures are wanted.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kdcdiff.data.image_folder import LEAST_SIDE, Unfit, check_links, decode_image, image_names
from kdcdiff.data.image_set import caption_of
from kdcdiff.data.sources import folder_captions, split_folder
from kdcdiff.data.tar_shards import MOST_BYTES, read_member, samples
from kdcdiff.errors import check


@dataclass(frozen=True, slots=True)
class Listed:
    """A picture to be encoded: its file, its caption ("": nobody wrote one), and its class's number (-1: none).

    In a tar it has a `name` and a `place`, its offset and bytes; `fault` says in a word or two why there is none.
    """

    file: Path
    name: str
    caption: str
    label: int = -1
    place: tuple[int, int] | None = None
    fault: str = ""


class Pictures(Protocol):
    """Pictures in `len()` parts, each the same whoever asks; `digest` tells one set from another.

    `rows` is how many at most go together.
    """

    rows: int
    classes: tuple[str, ...]
    digest: str

    def __len__(self) -> int: ...
    def part(self, number: int) -> Iterator[Listed]: ...


def list_pictures(root: Path, rows: int) -> Pictures:
    """List the training pictures of a folder: of its tars where it has some, or else of its files, by `rows`.

    UserError: no picture, pictures beside tars, a link that leaves the folder, a table that cannot be read.
    """
    folder = split_folder(root, "train")
    tars, names = sorted(folder.glob("*.tar")), image_names(folder)
    check(bool(tars or names), "data", str(root), "must hold images, or tar shards of them")
    mixed = f"holds {len(tars)} tar shards and {len(names)} pictures beside them; give them a folder each"
    check(not (tars and names), "data", str(root), mixed)
    return TarPictures(folder, tars, rows) if tars else FolderPictures(folder, names, rows)


class FolderPictures:
    """The pictures of class folders, or of one folder with a table: about 300 bytes of memory for each."""

    def __init__(self, folder: Path, names: list[str], rows: int) -> None:
        self.folder, self.names, self.rows, self.texts = folder, names, rows, folder_captions(folder)
        self.classes = tuple(sorted({_class(name) for name in names} - {""}))
        self._labels = {name: number for number, name in enumerate(self.classes)}
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\t{self._caption(name)}\n".encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return -(-len(self.names) // self.rows)

    def part(self, number: int) -> Iterator[Listed]:
        """Yield the pictures of a part in the order of their names."""
        for name in self.names[number * self.rows : (number + 1) * self.rows]:
            yield Listed(self.folder / name, name, self._caption(name), self._labels.get(_class(name), -1))

    def _caption(self, name: str) -> str:
        """Say what the table does, or else the name of the picture's class."""
        own = _class(name)
        return self.texts.get(name, "").strip() or (caption_of(own) if own else "")


def _class(name: str) -> str:
    """Name the folder that a picture lies in; "" where that is the split's own."""
    return name.rpartition("/")[0].rpartition("/")[2]


class TarPictures:
    """The pictures of tar shards, in the order of the tars' names: nothing of them is in memory."""

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, tars: list[Path], rows: int) -> None:
        check_links(tars, folder)
        self.tars, self.rows = tars, rows
        listed = "".join(f"{tar.name}\t{tar.stat().st_size}\n" for tar in tars)
        self.digest = hashlib.sha256(listed.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.tars)

    def part(self, number: int) -> Iterator[Listed]:
        """Yield the samples of a tar in their order. UserError: it cannot be read."""
        tar = self.tars[number]
        for one in samples(tar):
            fault = "without a picture" if one.place is None else ""
            yield Listed(tar, f"{tar.name}/{one.name}", one.caption, place=one.place, fault=fault)


def read_picture(picture: Listed, size: int) -> np.ndarray | str:
    """Decode a picture's centre square, (size, size, 3) uint8; or say in a word or two why it cannot serve.

    It must be a still image with a caption, and at least half as wide and high as what it is brought to.
    """
    if picture.fault:
        return picture.fault
    if not picture.caption:
        return "without a caption"
    if picture.place and picture.place[1] > MOST_BYTES:
        return "too large"
    try:
        source = io.BytesIO(read_member(picture.file, picture.place)) if picture.place else picture.file
        return decode_image(source, size, max(LEAST_SIDE, -(-size // 2)))
    except Unfit as unfit:
        return unfit.kind
    except Exception:  # decoders of files that were made to break them fail in any way
        return "unreadable"
