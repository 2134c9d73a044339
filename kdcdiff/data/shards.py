"""A latents cache in shards: as many pictures as a disk holds, encoded once, by any number of processes.

    encode_shards(pipeline, Path("pictures"), Path("cache"), size=512)      # goes on where it was killed
    latents = ShardedLatents(Path("cache"))                                 # rows are read from disk as they are drawn

A shard is one safetensors file with the latents' means and deviations and the embeddings of its own captions, all in
half precision, and a small JSON file beside it that says how many rows it has and its checksum: a shard without one is
unfinished. ``index.json`` is written last. Which shard a picture is in follows from its place in the sorted list of
files, so any process can take any shard, and the rows are the same however many there were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from kdcdiff.data.image_folder import image_files, read_image
from kdcdiff.data.image_set import caption_of
from kdcdiff.data.latents import at_once, embed, encode
from kdcdiff.data.origin import Origin, origin_of
from kdcdiff.data.sources import MOST_UNREADABLE, folder_captions, split_folder
from kdcdiff.errors import UserError, check
from kdcdiff.provenance import sha256_file
from kdcdiff.store import aside, write_atomically

ROWS = 1024  # pictures of a shard
READERS = 4  # threads that decode
INDEX = "index.json"


@dataclass(frozen=True)
class Listed:
    """A picture to be encoded: its file, its caption ("": nobody wrote one), and its class's number."""

    file: Path
    caption: str
    label: int


def list_pictures(root: Path) -> tuple[list[Listed], tuple[str, ...]]:
    """List the training pictures of a folder by name, and their classes: class folders, or one folder with a table.

    Captions are the table's (``metadata.csv`` or ``.jsonl``); without a row a picture is called by its class.
    UserError: no picture.
    """
    folder = split_folder(root, "train")
    texts, files = folder_captions(folder), image_files(folder, "**/*")
    check(bool(files), "data", str(root), "must hold images")
    classes = tuple(sorted({f.parent.name for f in files if f.parent != folder}))
    place = {name: number for number, name in enumerate(classes)}
    found = []
    for file in files:
        own = file.parent.name if file.parent != folder else ""
        caption = texts.get(file.relative_to(folder).as_posix()) or (caption_of(own) if own else "")
        found.append(Listed(file, caption, place.get(own, -1)))
    return found, classes


def read_picture(picture: Listed, size: int) -> np.ndarray | str:
    """Decode a picture's centre square, (size, size, 3) uint8; or say in a word why it cannot serve.

    It must be a still image with a caption, and at least half as wide and high as what it is brought to.
    """
    if not picture.caption:
        return "without a caption"
    try:
        with Image.open(picture.file) as header:
            if getattr(header, "n_frames", 1) > 1:
                return "animated"
            if 2 * min(header.size) < size:
                return "too small"
        return read_image(picture.file, size)
    except (UserError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "unreadable"


# --- writing -------------------------------------------------------------------------------------------------


def encode_shards(
    pipeline: StableDiffusionPipeline,
    root: Path,
    out: Path,
    *,
    size: int,
    rows: int = ROWS,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> int:
    """Encode every `world`-th shard of a folder's pictures, from `rank` on, into `out`; return how many were made now.

    A shard that is whole stays. UserError: `out` has another encoding, or no picture is in `root`.
    """
    pictures, classes = list_pictures(root)
    names = hashlib.sha256()
    for picture in pictures:
        names.update(f"{picture.file.relative_to(root)}\t{picture.caption}\n".encode())
    count = -(-len(pictures) // rows)
    settings = {"origin": origin_of(pipeline.vae), "size": size, "rows": rows, "pictures": names.hexdigest()}
    _claim(out, json.loads(json.dumps(settings | {"shards": count, "classes": classes})))
    shards = range(rank, count, world)
    made = 0
    with ThreadPoolExecutor(READERS) as pool:
        for number in tqdm(shards, "encoding shards", disable=not progress, mininterval=1):
            if not _is_whole(out, number):
                _encode_one(pipeline, pictures[number * rows : (number + 1) * rows], out, number, size, pool)
                made += 1
    return made


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note in a new folder what is encoded into it. UserError: something else is."""
    path = out / "settings.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differ = ", ".join(name for name, value in settings.items() if there.get(name) != value)
        check(not differ, "out", str(out), f"holds another encoding (of other {differ}); choose another folder")
        return
    write_atomically(path, json.dumps(settings))


def _file(out: Path, number: int) -> Path:
    return out / f"shard-{number:06d}.safetensors"


def _is_whole(out: Path, number: int) -> bool:
    """Say whether a shard is there and has its checksum."""
    file = _file(out, number)
    beside = file.with_suffix(".json")
    return beside.is_file() and file.is_file() and sha256_file(file) == json.loads(beside.read_text())["sha256"]


def _encode_one(
    pipeline: StableDiffusionPipeline, pictures: Sequence[Listed], out: Path, number: int, size: int,
    pool: ThreadPoolExecutor,
) -> None:  # fmt: skip
    """Encode one shard: a batch of pictures is in memory at a time."""
    batch = at_once(size**2, pipeline.vae.device)
    kept: list[Listed] = []
    left: list[tuple[str, str]] = []
    means, stds = [], []
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        read = list(pool.map(partial(read_picture, size=size), part))
        good = [(one, image) for one, image in zip(part, read, strict=True) if not isinstance(image, str)]
        left += [(one.file.name, why) for one, why in zip(part, read, strict=True) if isinstance(why, str)]
        if good:
            kept += [one for one, _ in good]
            images = torch.from_numpy(np.stack([image for _, image in good])).permute(0, 3, 1, 2).contiguous()
            mean, std = encode(pipeline.vae, images)
            means.append(mean.half())
            stds.append(std.half())
    words: dict[str, Any] = {"rows": len(kept), "left_out": left, "sha256": ""}
    file = _file(out, number)
    texts = sorted({one.caption for one in kept}) or [""]
    place = {text: i for i, text in enumerate(texts)}
    tensors = {
        "labels": torch.tensor([one.label for one in kept], dtype=torch.int64),
        "captions": torch.tensor([place[one.caption] for one in kept], dtype=torch.int64),
        "prompts": embed(pipeline.text_encoder, pipeline.tokenizer, texts).half(),
        "empty": embed(pipeline.text_encoder, pipeline.tokenizer, [""]).half()[0],
    }
    if kept:
        tensors |= {"mean": torch.cat(means), "std": torch.cat(stds)}
    with aside(file) as partial_file:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial_file)
        with partial_file.open("rb") as stream:
            os.fsync(stream.fileno())
        words["sha256"] = sha256_file(partial_file)
    write_atomically(file.with_suffix(".json"), json.dumps(words))


def finish(out: Path) -> dict[str, Any]:
    """Write the index once every shard is there, and return it.

    UserError: a shard is missing, more than 5 % of the pictures cannot serve, or none can.
    """
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    beside = [_file(out, number).with_suffix(".json") for number in range(settings["shards"])]
    missing = next((number for number, path in enumerate(beside) if not path.is_file()), None)
    check(missing is None, "out", str(out), f"shard {missing} is missing; give the command again")
    told = [json.loads(path.read_text(encoding="utf-8")) for path in beside]
    left = [(name, why) for words in told for name, why in words["left_out"]]
    rows = [words["rows"] for words in told]
    counts = ", ".join(f"{n} {why}" for why, n in Counter(why for _, why in left).most_common())
    named = ", ".join(name for name, _ in left[:3]) + (", ..." if len(left) > 3 else "")
    share = len(left) / max(1, sum(rows) + len(left))
    allowed = f"{counts} of {sum(rows) + len(left)} pictures ({named}); at most {MOST_UNREADABLE:.0%} may be left out"
    check(share <= MOST_UNREADABLE and sum(rows) > 0, "data", str(out), allowed)
    index = {name: settings[name] for name in ("origin", "size", "classes")}
    index |= {"rows": rows, "left_out": counts, "first_left_out": named}
    write_atomically(out / INDEX, json.dumps(index))
    return index


# --- reading -------------------------------------------------------------------------------------------------


class ShardedLatents:
    """A cache that `encode_shards` and `finish` wrote, as training reads it: rows of all shards, by one number each.

    Shards are memory-mapped when a row of them is first drawn. UserError: no index, or a shard that is missing or cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / INDEX
        check(index.is_file(), "latents", str(folder), "has no index.json; `kdcdiff encode` writes it when it is done")
        words = json.loads(index.read_text(encoding="utf-8"))
        self.size, self.classes, self.origin = int(words["size"]), tuple(words["classes"]), Origin(*words["origin"])
        self.ends = torch.tensor(words["rows"]).cumsum(0)  # the number after each shard's last row
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a latent, (C, h, w)."""
        return tuple(self._shard(int(self.ends.nonzero()[0]))["mean"].shape[1:])

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            try:
                self._open[number] = load_file(_file(self.folder, number))
            except Exception as error:  # safetensors' own, and the system's
                file = _file(self.folder, number).name
                raise UserError(f"latents={str(self.folder)!r}: {file} cannot be read ({error})") from error
        return self._open[number]

    def _rows(self, rows: Tensor, *names: str) -> list[Tensor]:
        """Read tensors of these rows, each (n, ...) in their order."""
        shards = torch.bucketize(rows, self.ends, right=True)
        found: list[list[Tensor]] = [[] for _ in names]
        for row, number in zip(rows.tolist(), shards.tolist(), strict=True):
            own, start = self._shard(number), int(self.ends[number - 1]) if number else 0
            for name, parts in zip(names, found, strict=True):
                part = own["prompts"][own["captions"][row - start]] if name == "prompts" else own[name][row - start]
                parts.append(part.float())
        return [torch.stack(parts) for parts in found]

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the latents of `rows` once, (len(rows), C, h, w) float32."""
        mean, std = self._rows(rows, "mean", "std")
        return mean + std * torch.randn(mean.shape, generator=generator)

    def prompts_of(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Read the embeddings of the captions of `rows`, (n, tokens, width); the empty one's where `keep` is False."""
        (prompts,) = self._rows(rows, "prompts")
        return torch.where(keep[:, None, None], prompts, self._shard(0)["empty"].float())
