"""WebDataset's tar shards, as img2dataset writes them: what is in them, found without unpacking anything.

A sample is what follows each other under one name: ``000017.jpg``, ``000017.txt`` (its caption) and ``000017.json``
(which may hold the caption instead); anything else in it is passed over, pickles above all. A member is a place in
the file and a number of bytes, which are read, bounded, when they are wanted. Python's own `tarfile` is given no more
than a header at a time, and `webdataset` says what belongs together.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdcdiff.data.image_set import IMAGE_SUFFIXES
from kdcdiff.data.texts import checked_text
from kdcdiff.errors import UserError, check

MOST_BYTES = 2**26  # of a picture as it lies in the tar
MOST_WORDS = 2**20  # bytes of a caption's file, or of a sample's JSON
MOST_HEADER = 2**20  # bytes of what a header may ask to be read at once
END = 10_240  # bytes: what a tar's end is filled up to
CAPTION = ("caption", "text")  # what it may be called in a sample's JSON


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a tar: its name, its caption ("": nobody wrote one) and where its picture lies (None: it has none).

    `place` is the offset of the picture's first byte and how many there are.
    """

    name: str
    caption: str
    place: tuple[int, int] | None


def samples(tar: Path) -> Iterator[Sample]:
    """Yield the samples of a tar in their order, one header in memory at a time.

    UserError: it is damaged, cut or compressed, has a member that would leave its folder, or `webdataset` is missing.
    """
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError:
        raise UserError(f"data={str(tar)!r}: tar shards need webdataset: pip install 'kdcdiff[shards]'") from None
    try:
        with tar.open("rb") as stream:
            for sample in group_by_keys(_members(tar, stream)):
                yield _sample(stream, sample)
    except UserError:
        raise
    except Exception as error:  # of tarfile, and of webdataset where a name comes twice
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"data={str(tar)!r}: cannot be read as a tar shard ({reason})") from error


def read_member(tar: Path, place: tuple[int, int]) -> bytes:
    """Read the bytes of a member by its place."""
    with tar.open("rb") as stream:
        return os.pread(stream.fileno(), place[1], place[0])


class _Bounded:
    """A tar's stream for `tarfile`, whose headers may ask for any number of bytes, and for less than none."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _members(tar: Path, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the files of a tar as `group_by_keys` wants them, with a place instead of their content."""
    archive = tarfile.open(fileobj=_Bounded(stream), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    while (member := archive.next()) is not None:
        archive.members = []  # of which it would keep every one
        path = PurePosixPath(member.name)
        outside = path.is_absolute() or ".." in path.parts
        check(not outside, "data", str(tar), f"its member {member.name[:80]!r} would leave its folder")
        check(member.isreg() or member.isdir(), "data", str(tar), f"its member {member.name[:80]!r} is no file")
        if member.size < 0 or member.sparse is not None:
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        if member.isreg() and not path.name.startswith("."):
            yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": tar.name}
    stream.seek(archive.offset)
    end = stream.read(END)  # tarfile takes any block that is no header for the end
    check(len(end) >= 512, "data", str(tar), "was cut: its end is missing")
    check(not any(end) and not stream.read(END), "data", str(tar), f"is damaged at byte {archive.offset:,}")


def _sample(stream: IO[bytes], members: dict[str, Any]) -> Sample:
    kinds = (suffix.removeprefix(".") for suffix in sorted(IMAGE_SUFFIXES))
    place = next((members[kind] for kind in kinds if kind in members), None)
    return Sample(members["__key__"], _caption(stream, members), place)


def _caption(stream: IO[bytes], members: dict[str, Any]) -> str:
    """Read a sample's caption; "" where there is none that can be read: who made the tar knew of no encoding."""
    for kind in ("txt", "json"):
        start, size = members.get(kind, (0, 0))
        if not 0 < size <= MOST_WORDS:
            continue
        try:
            text = os.pread(stream.fileno(), size, start).decode()
            if kind == "json":
                words = json.loads(text)
                text = next((words[name] for name in CAPTION if isinstance(words.get(name), str)), "")
            if text.strip():
                return checked_text(text.strip(), "caption")
        except (ValueError, AttributeError, RecursionError):
            continue
    return ""
