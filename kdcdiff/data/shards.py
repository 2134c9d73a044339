"""A latents cache in shards: as many pictures as a disk holds, encoded once, by any number of processes.

    pictures = list_pictures(Path("pictures"), 1024)
    encode_shards(pipeline, pictures, Path("cache"), size=512)               # goes on where it was killed
    finish(Path("cache"))
    latents = ShardedLatents(Path("cache"))                                 # rows are read from disk as they are drawn

A shard is one safetensors file with the latents' means and deviations and the embeddings of its own captions, all in
half precision, and a small note beside it that says how many rows it has and its checksum: a shard without one is
unfinished. ``index.json`` is written last. Which shard a picture is in follows from its part (`listing`) and its place
there, so any process can take any part, and the rows are the same however many there were. Every row has a checksum of
its own, which starts from the encoding's: what was damaged, or is another's, is found when it is drawn.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from kdcdiff.data.latents import at_once, embed, encode
from kdcdiff.data.listing import Listed, Pictures, read_picture
from kdcdiff.data.origin import Origin, origin_of
from kdcdiff.data.sources import MOST_UNREADABLE
from kdcdiff.errors import UserError, check
from kdcdiff.manifest import sealed
from kdcdiff.provenance import sha256_file
from kdcdiff.store import aside, claim, write_atomically

READERS = 4  # threads that decode
INDEX, SETTINGS = "index.json", "settings.json"
OPEN = 256  # shards that a reader has mapped at a time: its memory does not grow with the cache
NAMED = 3  # pictures that a message names


LATENT = ("mean", "std", "labels")  # what the first checksum of a row is of; the second is of its caption


class Encoded(NamedTuple):
    """What a shard is made of: `tensors` of its rows, and the pictures left out, each with the reason.

    ``mean`` and ``std`` (n, C, h, w), ``labels`` (n,), ``captions`` (n,) into ``prompts`` (p, tokens, width), and
    ``empty`` (tokens, width); the first two are missing where no row is left.
    """

    tensors: dict[str, Tensor]
    left_out: list[tuple[str, str]]


# --- writing -------------------------------------------------------------------------------------------------


def encode_shards(
    pipeline: StableDiffusionPipeline,
    pictures: Pictures,
    out: Path,
    *,
    size: int,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> int:
    """Encode every `world`-th part of `pictures`, from `rank` on, into `out`; return the shards made now.

    A shard that is whole stays. UserError: `out` has another encoding, or a part cannot be read.
    """
    settings = {"origin": origin_of(pipeline.vae), "size": size}
    with ThreadPoolExecutor(READERS) as pool:
        encoder = partial(encode_pictures, pipeline, size=size, pool=pool)
        return write_shards(pictures, encoder, out, settings, rank, world, progress)


def write_shards(
    pictures: Pictures,
    encoder: Callable[[Sequence[Listed]], Encoded],
    out: Path,
    settings: dict[str, Any],
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> int:
    """Write what `encoder` makes of every `world`-th part's pictures, a shard at a time; return the shards made now.

    `settings` are the origin and the size of the encoding. UserError: `out` has another one.
    """
    about = {"rows": pictures.rows, "pictures": pictures.digest, "parts": len(pictures), "classes": pictures.classes}
    own = sealed(settings | about)
    claim(out / SETTINGS, own, "another encoding")
    made = 0
    for part in tqdm(range(rank, len(pictures), world), "encoding", disable=not progress, mininterval=1, unit="part"):
        chunks = enumerate(_chunks(pictures.part(part), pictures.rows))  # nothing is read before one is asked for
        for number in itertools.count():
            note = _note_of(out, own["sha256"], part, number, whole=True)
            if note is None:
                chunk, last = next(chunk for at, chunk in chunks if at == number)
                note = _save(encoder(chunk), out, own["sha256"], part, number, last)
                made += 1
            if note["last"]:
                break
    return made


def _chunks(pictures: Iterator[Listed], rows: int) -> Iterator[tuple[list[Listed], bool]]:
    """Yield the pictures of a part, `rows` together, each time with whether they are the last; at least once."""
    ahead = list(itertools.islice(pictures, rows))
    last = False
    while not last:
        chunk, ahead = ahead, list(itertools.islice(pictures, rows))
        last = not ahead
        yield chunk, last


def _file(out: Path, part: int, number: int) -> Path:
    return out / f"shard-{part:06d}-{number:04d}.safetensors"


def _note_of(out: Path, encoding: str, part: int, number: int, whole: bool = False) -> dict[str, Any] | None:
    """Read the note beside a shard; None: there is none of this encoding, or, if asked, the shard is not `whole`."""
    file = _file(out, part, number)
    try:
        note = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        good = sealed(note)["sha256"] == note["sha256"] and (note["encoding"], note["shard"]) == (encoding, file.stem)
        return note if good and (not whole or sha256_file(file) == note["file"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _save(encoded: Encoded, out: Path, encoding: str, part: int, number: int, last: bool) -> dict[str, Any]:
    """Write a shard, and then the note beside it, which is returned."""
    file = _file(out, part, number)
    tensors = {name: value.contiguous() for name, value in encoded.tensors.items()}
    tensors["sums"] = _sums(tensors, _start(encoding, file))
    note = {"encoding": encoding, "shard": file.stem, "rows": len(tensors["labels"]), "last": last}
    with aside(file) as partial_file:
        save_file(tensors, partial_file)
        with partial_file.open("rb") as stream:
            os.fsync(stream.fileno())
        note = sealed(note | {"left_out": encoded.left_out, "file": sha256_file(partial_file)})
    write_atomically(file.with_suffix(".json"), json.dumps(note))
    return note


def _start(encoding: str, file: Path) -> int:
    """Say where a shard's checksums start: that of another shard, or of another encoding, is wrong in all of them."""
    return zlib.crc32(f"{encoding} {file.stem}".encode())


def _sum(start: int, *values: np.ndarray) -> int:
    for value in values:
        start = zlib.crc32(value.data, start)
    return start


def _sums(tensors: dict[str, Tensor], start: int) -> Tensor:
    """Checksums, (n + 1, 2) int64, of each row's latent and of its caption's embedding; the last: of the empty one."""
    arrays = {name: value.numpy() for name, value in tensors.items()}
    columns = zip(*(arrays.get(name, ()) for name in LATENT), strict=True)
    latents = [_sum(start, *parts) for parts in columns]
    prompts = [_sum(start, prompt) for prompt in arrays["prompts"]]
    captions = [prompts[i] for i in arrays["captions"]]
    return torch.tensor([[*latents, start], [*captions, _sum(start, arrays["empty"])]]).T.contiguous()


def encode_pictures(
    pipeline: StableDiffusionPipeline, pictures: Sequence[Listed], *, size: int, pool: ThreadPoolExecutor
) -> Encoded:
    """Encode a shard's pictures: a batch of them is in memory at a time."""
    batch = at_once(size**2, pipeline.vae.device)
    kept: list[Listed] = []
    left: list[tuple[str, str]] = []
    means, stds = [], []
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        read = list(pool.map(partial(read_picture, size=size), part))
        good = [(one, image) for one, image in zip(part, read, strict=True) if not isinstance(image, str)]
        left += [(one.name, why) for one, why in zip(part, read, strict=True) if isinstance(why, str)]
        if good:
            kept += [one for one, _ in good]
            images = torch.from_numpy(np.stack([image for _, image in good])).permute(0, 3, 1, 2).contiguous()
            mean, std = encode(pipeline.vae, images)
            means.append(mean.half())
            stds.append(std.half())
    texts = sorted({one.caption for one in kept}) or [""]
    place = {text: i for i, text in enumerate(texts)}
    tensors = {
        "labels": torch.tensor([one.label for one in kept], dtype=torch.int64),
        "captions": torch.tensor([place[one.caption] for one in kept], dtype=torch.int64),
        "prompts": embed(pipeline.text_encoder, pipeline.tokenizer, texts).half(),
        "empty": embed(pipeline.text_encoder, pipeline.tokenizer, [""]).half()[0],
    }
    return Encoded(tensors | ({"mean": torch.cat(means), "std": torch.cat(stds)} if kept else {}), left)


def unfinished(out: Path) -> int | None:
    """Say which part of the pictures is the first that has a shard missing; None: none has.

    UserError: `out` holds no encoding.
    """
    settings = _read(out / SETTINGS)
    parts = range(settings["parts"])
    return next((part for part in parts if _notes(out, settings["sha256"], part) is None), None)


def _notes(out: Path, encoding: str, part: int) -> list[dict[str, Any]] | None:
    """Read the notes of a part's shards; None: one is missing."""
    notes: list[dict[str, Any]] = []
    while not notes or not notes[-1]["last"]:
        if (note := _note_of(out, encoding, part, len(notes))) is None:
            return None
        notes.append(note)
    return notes


def finish(out: Path) -> dict[str, Any]:
    """Write the index once every shard is there, and return it.

    UserError: a shard is missing, more than 5 % of the pictures cannot serve, or none can.
    """
    settings = _read(out / SETTINGS)
    rows: list[list[int]] = []
    reasons: Counter[str] = Counter()
    named: list[str] = []
    for part in range(settings["parts"]):
        notes = _notes(out, settings["sha256"], part)
        check(notes is not None, "out", str(out), f"a shard of part {part} is missing; give the command again")
        rows.append([note["rows"] for note in notes or ()])
        left = [(name, why) for note in notes or () for name, why in note["left_out"]]
        reasons.update(why for _, why in left)
        named += [name for name, _ in left[: NAMED - len(named)]]
    kept, lost = sum(map(sum, rows)), reasons.total()
    counts = ", ".join(f"{n} {why}" for why, n in reasons.most_common())
    names = ", ".join(named) + (", ..." if lost > NAMED else "")
    allowed = f"{counts} of {kept + lost} pictures ({names}); at most {MOST_UNREADABLE:.0%} may be left out"
    check(lost <= MOST_UNREADABLE * (kept + lost) and kept > 0, "data", str(out), allowed)
    index = {name: settings[name] for name in ("origin", "size", "classes")} | {"encoding": settings["sha256"]}
    index = sealed(index | {"rows": rows, "left_out": counts, "first_left_out": names})
    write_atomically(out / INDEX, json.dumps(index))
    return index


def _read(path: Path) -> dict[str, Any]:
    """Read a cache's settings or index. UserError: it is not there, or not as it was written."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        check(sealed(words)["sha256"] == words["sha256"], "latents", str(path), "does not match its checksum")
        return words
    except UserError:
        raise
    except FileNotFoundError as error:
        line = f"latents={str(path.parent)!r}: has no {path.name}; `kdcdiff encode` writes it"
        raise UserError(line) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"latents={str(path)!r}: cannot be read ({error}); give `kdcdiff encode` again") from error


# --- reading -------------------------------------------------------------------------------------------------

KINDS = {
    "mean": "F16",
    "std": "F16",
    "prompts": "F16",
    "empty": "F16",
    "captions": "I64",
    "labels": "I64",
    "sums": "I64",
}
DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8")}


class _Shard:
    """A shard's arrays, mapped. UserError: it cannot be read, or is not what the index says; of a row: altered.

    `safetensors` makes tensors of all that a file holds, which takes 20 times as long: of a large cache most rows of
    a batch are in shards of their own.
    """

    def __init__(self, file: Path, encoding: str, rows: int) -> None:
        self.file, self._from = file, _start(encoding, file)
        try:
            with file.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            start = 8 + int.from_bytes(mapped[:8], "little")
            header = json.loads(mapped[8:start])
            if {name: own["dtype"] for name, own in header.items()} != KINDS:
                raise ValueError("it holds other tensors")
            if max(own["data_offsets"][1] for own in header.values()) != len(mapped) - start:
                raise ValueError("it was cut, or has grown")
            self.arrays = {name: self._array(mapped, start, **own) for name, own in header.items()}
        except Exception as error:  # a header that was altered fails in any way
            raise self.damaged(str(error)) from error
        long = [len(self.arrays[name]) for name in (*LATENT, "captions", "sums")]
        if long != [rows] * 4 + [rows + 1] or self.arrays["sums"][-1, 0] != self._from:
            raise self.damaged("it is not what the index tells of")

    @staticmethod
    def _array(mapped: mmap.mmap, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        (begin, end), kind = data_offsets, DTYPES[dtype]
        return np.frombuffer(mapped, kind, (end - begin) // kind.itemsize, start + begin).reshape(shape)

    def damaged(self, how: str) -> UserError:
        line = f"{self.file.name} cannot be read ({how}); `kdcdiff encode`, given again, makes it anew"
        return UserError(f"latents={str(self.file.parent)!r}: {line}")

    def latent(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a row's mean and deviation, (C, h, w) float16 each."""
        mean, std, _ = self._checked(row, 0, *(self.arrays[name][row : row + 1] for name in LATENT))
        return mean[0], std[0]

    def prompt(self, row: int) -> np.ndarray:
        """Return the embedding of a row's caption, (tokens, width) float16; of the empty one for row -1."""
        own, caption = self.arrays, int(self.arrays["captions"][row])
        if row >= 0 and not 0 <= caption < len(own["prompts"]):
            raise self.damaged(f"row {row} was altered")
        return self._checked(row, 1, own["prompts"][caption] if row >= 0 else own["empty"])[0]

    def _checked(self, row: int, column: int, *values: np.ndarray) -> Any:
        if _sum(self._from, *values) != self.arrays["sums"][row, column]:
            raise self.damaged(f"row {row} was altered")
        return values


class ShardedLatents:
    """A cache that `encode_shards` and `finish` wrote, as training reads it: rows of all shards, by one number each.

    A shard is memory-mapped when a row of it is drawn, `OPEN` of them at a time. UserError: no index; or, when it is
    drawn from, a shard that is missing, damaged or another's.
    """

    def __init__(self, folder: Path) -> None:
        words = _read(folder / INDEX)
        self.size, self.classes, self.origin = int(words["size"]), tuple(words["classes"]), Origin(*words["origin"])
        self.encoding = words["encoding"]
        rows = [(part, number, n) for part, own in enumerate(words["rows"]) for number, n in enumerate(own) if n]
        self.files = [_file(folder, part, number) for part, number, _ in rows]
        self.ends = torch.tensor([n for _, _, n in rows]).cumsum(0)  # the number after each shard's last row
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a latent, (C, h, w)."""
        return self._shard(0).arrays["mean"].shape[1:]

    def _start(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def _shard(self, number: int) -> _Shard:
        if number not in self._open:
            rows = int(self.ends[number]) - self._start(number)
            self._open[number] = _Shard(self.files[number], self.encoding, rows)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _places(self, rows: Tensor) -> Iterator[tuple[int, _Shard, int]]:
        """Yield, shard by shard, where in a batch each of `rows` goes, its shard, and its place there."""
        order = rows.argsort()
        shards = torch.bucketize(rows[order], self.ends, right=True)
        for at, number in zip(order.tolist(), shards.tolist(), strict=True):
            yield at, self._shard(number), int(rows[at]) - self._start(number)

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the latents of `rows` once, (len(rows), C, h, w) float32."""
        mean, std = (np.empty((len(rows), *self.shape), np.float32) for _ in range(2))
        for at, shard, place in self._places(rows):
            mean[at], std[at] = shard.latent(place)
        return torch.from_numpy(mean) + torch.from_numpy(std) * torch.randn(mean.shape, generator=generator)

    def prompts_of(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Read the embeddings of the captions of `rows`, (n, tokens, width); the empty one's where `keep` is False."""
        prompts = np.empty((len(rows), *self._shard(0).prompt(-1).shape), np.float32)
        for at, shard, place in self._places(rows):
            prompts[at] = shard.prompt(place if keep[at] else -1)
        return torch.from_numpy(prompts)
