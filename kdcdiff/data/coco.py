"""MS-COCO's public caption files, and the 30K protocol of zero-shot text-to-image. Does not import torch.

    kdcdiff generate <pipeline> --prompts captions_val2014.json --resolution 512 --out drawn
    kdcdiff evaluate drawn val2014 --resolution 256 --extractor inception --weights ...

BK-SDM, section 5.1.1: 30K prompts of the validation split, drawn at 512x512, brought down to 256x256, and compared with
the whole split. Which prompts, neither paper says: here one caption each of as many images, by a seeded order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdcdiff.data.texts import checked_text, read_json
from kdcdiff.errors import UserError, check

PROMPTS = 30_000


class Caption(NamedTuple):
    """One row of a file's ``annotations``."""

    number: int  # its id, unique in the file
    image: int  # that of the image that it is of
    text: str


def read_captions(path: Path) -> list[Caption]:
    """Read a ``captions_*.json`` as published: ``annotations`` with id, image_id and caption, ``images`` with id.

    UserError: a file of another format, a caption of no image or without a word, none at all.
    """
    words = read_json(path, "captions")
    try:
        images = {int(image["id"]) for image in words["images"]}
        rows = [Caption(int(r["id"]), int(r["image_id"]), str(r["caption"]).strip()) for r in words["annotations"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        told = f"must be a captions file of MS-COCO, with images and annotations ({type(error).__name__}: {error})"
        raise UserError(f"captions={str(path)!r}: {told}") from None
    check(bool(rows), "captions", str(path), "must hold at least one caption")
    check(len({row.number for row in rows}) == len(rows), "captions", str(path), "must have an id of its own for each")
    for row in rows:
        check(row.image in images, "captions", row.number, f"is of the image {row.image}, which the file has not")
        check(bool(checked_text(row.text, "captions")), "captions", row.number, "must hold at least one word")
    return rows


def sample(captions: Sequence[Caption], count: int = PROMPTS, seed: int = 0) -> list[Caption]:
    """Draw one caption each of `count` images, or of all where there are fewer: the same whatever the file's order.

    Captions are ordered by a hash of seed and id, which no version of any library changes.
    """

    def rank(caption: Caption) -> bytes:
        return hashlib.sha256(f"{seed} {caption.number}".encode()).digest()

    first: dict[int, Caption] = {}
    for caption in sorted(captions, key=rank):
        first.setdefault(caption.image, caption)
    return list(first.values())[:count]
