"""The latent replay buffer: a memory of latents, not pixels. Equations (4) and (5) of KDC-Diff.

The capacity is fixed and shared: every class that arrives shrinks the others' share, and shares never differ by more
than one. Which of a class's latents stay is the policy's choice. A row is a string of bytes at a fixed place, in memory
or in a file, so that a sample costs the same whatever the buffer holds, and a million latents on disk cost no memory.
`codecs` says how a row is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.data.origin import Origin
from kdcdiff.errors import UserError, check
from kdcdiff.manifest import sealed
from kdcdiff.provenance import sha256_file
from kdcdiff.training.codecs import CODECS

# --- what stays ----------------------------------------------------------------------------------------------
# A policy gives each row of an arriving class a key, and the lowest keys stay longest: (latents, generator) -> (n,).


def _uniform(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Keep a uniform subset."""
    return torch.rand(len(latents), generator=generator, dtype=torch.float64)


def _ring(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Keep the newest."""
    return torch.arange(len(latents), 0, -1, dtype=torch.float64)


def _herding(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Take next the latent that brings the mean of those taken closest to the class's (Rebuffi et al. 2017, iCaRL)."""
    flat = latents.flatten(1).double()
    mean, taken = flat.mean(0), torch.zeros(flat.shape[1], dtype=torch.float64)
    keys = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    for k in range(len(flat)):
        distance = ((taken + flat) / (k + 1) - mean).square().sum(1).masked_fill(keys.isfinite(), torch.inf)
        best = int(distance.argmin())
        taken, keys[best] = taken + flat[best], k
    return keys


class Policy(NamedTuple):
    """Balanced policies give every class the same share; otherwise keys compete across classes."""

    keys: Callable[[Tensor, torch.Generator], Tensor]
    balanced: bool = True


POLICIES = {
    "reservoir": Policy(_uniform),  # a uniform subset of each class
    "ring": Policy(_ring),
    "herding": Policy(_herding),
    "uniform": Policy(_uniform, balanced=False),  # of everything seen, whatever its class: the paper's unnamed sampling
}

# --- where it lies -------------------------------------------------------------------------------------------


class _Memory:
    """Rows in one tensor."""

    def __init__(self, capacity: int, size: int) -> None:
        self.rows = torch.zeros(capacity, size, dtype=torch.uint8)

    def read(self, places: Tensor) -> Tensor:
        return self.rows[places]

    def write(self, places: Tensor, data: Tensor) -> None:
        self.rows[places] = data

    def save(self, path: Path) -> None:
        save_file({"rows": self.rows}, path)

    def load(self, path: Path) -> None:
        self.rows = load_file(path)["rows"]


class _Disk:
    """Rows in a file, a safetensors one whose header says where they begin; read and written in place."""

    def __init__(self, capacity: int, size: int, path: Path) -> None:
        words = {"rows": {"dtype": "U8", "shape": [capacity, size], "data_offsets": [0, capacity * size]}}
        header = json.dumps(words).encode()
        header += b" " * (-len(header) % 8)
        self.size, self.start, self.path = size, 8 + len(header), path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.pwrite(self.file, len(header).to_bytes(8, "little") + header, 0)
        os.truncate(self.file, self.start + capacity * size)  # sparse until rows arrive

    def read(self, places: Tensor) -> Tensor:
        data = bytearray().join(os.pread(self.file, self.size, self.start + p * self.size) for p in places.tolist())
        return torch.frombuffer(data, dtype=torch.uint8).reshape(len(places), self.size)

    def write(self, places: Tensor, data: Tensor) -> None:
        for place, row in zip(places.tolist(), data.contiguous().numpy(), strict=True):
            os.pwrite(self.file, row.data, self.start + place * self.size)

    def save(self, path: Path) -> None:
        os.fsync(self.file)
        shutil.copyfile(self.path, path)

    def load(self, path: Path) -> None:
        shutil.copyfile(path, self.path)

    def __del__(self) -> None:
        os.close(self.file)


class Sample(NamedTuple):
    """`latents` (n, C, h, w) float32, what was said of each, and the embeddings (n, tokens, width) where kept."""

    latents: Tensor
    captions: list[str]
    prompts: Tensor | None


_SETTINGS = ("policy", "seed", "codec", "per_class")  # beside the capacity


class LatentReplayBuffer:
    """`capacity` latents in all, as many of each class as of any other, give or take one.

    `per_class` caps a class's share; `codec` is how a latent is written; `disk` is a scratch file to hold the rows
    instead of memory. Raises `UserError`: a capacity below 1 or below the class count, an unknown policy or codec, a
    class that comes twice or empty, latents of another shape, dtype, scaling factor or autoencoder than the first's.
    """

    def __init__(
        self, capacity: int, policy: str = "reservoir", seed: int = 0, *, codec: str = "fp16",
        per_class: int | None = None, disk: str | Path | None = None,
    ) -> None:  # fmt: skip
        for name, number in (("capacity", capacity), ("per_class", capacity if per_class is None else per_class)):
            check(isinstance(number, int) and number >= 1, name, number, "must be a whole number, at least 1")
        for name, choice, choices in (("policy", policy, POLICIES), ("codec", codec, CODECS)):
            check(choice in choices, name, choice, f"must be one of {', '.join(choices)}")
        self.capacity, self.policy, self.seed, self.codec, self.per_class = capacity, policy, seed, codec, per_class
        self.disk = Path(disk) if disk else None
        self.shape: tuple[int, ...] | None = None  # of a latent
        self.dtype = ""
        self.origin: Origin | None = None
        self._rows: _Memory | _Disk | None = None
        self._places: dict[str, Tensor] = {}  # class -> places of its rows, the longest to stay first
        self._keys: dict[str, Tensor] = {}  # and their keys
        self._captions = torch.zeros(capacity, dtype=torch.int64)  # place -> number in `_texts`
        self._texts: list[str] = []
        self._prompts: dict[str, Tensor] = {}  # one embedding for each caption, shared
        self._filled = torch.zeros(0, dtype=torch.int64)  # all places in use

    def __len__(self) -> int:
        return len(self._filled)

    @property
    def counts(self) -> dict[str, int]:
        """Count the latents kept of each class, in the order of arrival."""
        return {name: len(places) for name, places in self._places.items()}

    @property
    def nbytes(self) -> int:
        """Count the bytes of the latents that are kept."""
        return len(self) * (CODECS[self.codec].size(self.shape) if self.shape else 0)

    def add_class(
        self, name: str, latents: Tensor, captions: Sequence[str], prompts: Mapping[str, Tensor] | None = None,
        origin: Origin | None = None,
    ) -> None:  # fmt: skip
        """Take a sample of a finished class, equation (4), and shrink the others to make room.

        `latents` (n, C, h, w), `captions` (n,); `prompts` maps each caption to its embedding (tokens, width).
        """
        self._admit(name, latents, captions, origin)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + len(self._places))
        keys, order = POLICIES[self.policy].keys(latents, generator).sort(stable=True)
        quotas = self._quotas({**self._keys, name: keys})
        for other in self._places:
            for kept in (self._places, self._keys):
                kept[other] = kept[other][: quotas[other]].clone()  # a view would hold on to all that it was cut from
        order = order[: quotas[name]]
        free = torch.ones(self.capacity, dtype=torch.bool)
        free[torch.cat([*self._places.values(), torch.zeros(0, dtype=torch.int64)])] = False
        places = free.nonzero()[: len(order), 0].clone()
        if self._rows is None:
            self.shape, self.dtype, self.origin = tuple(latents.shape[1:]), str(latents.dtype), origin
            self._rows = self._new_rows()
        for part in torch.arange(len(order)).split(256):
            self._rows.write(places[part], CODECS[self.codec].encode(latents[order[part]]))
        self._places[name], self._keys[name] = places, keys[: len(order)].clone()
        self._caption([captions[i] for i in order.tolist()], places, prompts or {})
        self._filled = torch.cat(list(self._places.values()))

    def _admit(self, name: str, latents: Tensor, captions: Sequence[str], origin: Origin | None) -> None:
        """Refuse whatever does not fit, before anything changes."""
        check(name not in self._places, "class", name, "is in the buffer already")
        whole = latents.ndim == 4 and len(latents) > 0
        check(whole, "latents", tuple(latents.shape), "must be (n, C, h, w) with at least one row")
        n = len(latents)
        check(len(captions) == n, "captions", len(captions), f"must be as many as the latents, {n}")
        classes = len(self._places) + 1
        check(classes <= self.capacity, "capacity", self.capacity, f"cannot hold {classes} classes")
        finite = all(bool(part.isfinite().all()) for part in latents.split(256))  # in parts: a class may be large
        check(finite, "latents", name, "must be finite")
        if self.shape is None:
            return
        same: list[tuple[str, object, object]] = [("latents", self.shape, tuple(latents.shape[1:]))]
        same += [("latents", self.dtype, str(latents.dtype))]
        for field in Origin._fields:
            same += [(field.replace("_", " "), getattr(self.origin, field, None), getattr(origin, field, None))]
        for what, wanted, found in same:
            check(found == wanted, what, found, f"must be {wanted}, as that of the buffer's latents")

    def _quotas(self, keys: Mapping[str, Tensor]) -> dict[str, int]:
        """Say how many rows of each class stay, given the keys of all candidates, sorted within their class."""
        names, limit = list(keys), self.per_class or self.capacity
        if POLICIES[self.policy].balanced:
            shares = [self.capacity // len(names) + (k < self.capacity % len(names)) for k in range(len(names))]
        else:
            every = torch.cat(list(keys.values()))
            last = every.sort().values[min(self.capacity, len(every)) - 1]
            shares = [int((keys[name] <= last).sum()) for name in names]
        return {name: min(share, limit, len(keys[name])) for name, share in zip(names, shares, strict=True)}

    def _new_rows(self) -> _Memory | _Disk:
        assert self.shape is not None
        size = CODECS[self.codec].size(self.shape)
        return _Disk(self.capacity, size, self.disk) if self.disk else _Memory(self.capacity, size)

    def _caption(self, captions: list[str], places: Tensor, prompts: Mapping[str, Tensor]) -> None:
        """Note what is said of the rows at `places`; texts that no row uses any more are dropped."""
        texts = {text: i for i, text in enumerate(self._texts)}
        for text in captions:
            texts.setdefault(text, len(texts))
        self._captions[places] = torch.tensor([texts[text] for text in captions], dtype=torch.int64)
        words = list(texts)
        used = torch.unique(self._captions[torch.cat(list(self._places.values()))])
        renumber = torch.zeros(len(words), dtype=torch.int64)
        renumber[used] = torch.arange(len(used))
        self._captions = renumber[self._captions]
        self._texts = [words[i] for i in used.tolist()]
        known = self._prompts | dict(prompts)
        self._prompts = {text: known[text].clone() for text in self._texts if text in known}

    def sample(self, n: int, step: int = 0) -> Sample:
        """Draw `n` rows uniformly with replacement: a function of the buffer, its seed and `step` alone."""
        check(n >= 1, "n", n, "must be at least 1")
        check(len(self) > 0, "buffer", 0, "is empty; add a class first")
        assert self._rows is not None and self.shape is not None
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + step + 1)
        places = self._filled[torch.randint(len(self), (n,), generator=generator)]
        captions = [self._texts[i] for i in self._captions[places].tolist()]
        prompts = torch.stack([self._prompts[text] for text in captions]) if self._prompts else None
        return Sample(CODECS[self.codec].decode(self._rows.read(places), self.shape), captions, prompts)

    def save(self, folder: str | Path) -> None:
        """Write the buffer; the folder holds the old one or the new one, whole, at any moment."""
        check(self._rows is not None, "buffer", 0, "is empty; add a class first")
        assert self._rows is not None
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._rows.save(folder / "rows.partial")
        index = {"places": self._filled, "keys": torch.cat(list(self._keys.values())), "captions": self._captions}
        index |= {f"prompt.{self._texts.index(text)}": value for text, value in self._prompts.items()}
        save_file({k: v.contiguous() for k, v in index.items()}, folder / "index.partial")
        digests = {name: sha256_file(folder / f"{name}.partial") for name in ("rows", "index")}
        words = {name: getattr(self, name) for name in ("capacity", *_SETTINGS, "shape", "dtype", "origin", "counts")}
        words = sealed(words | {"texts": self._texts, "files": digests})
        files = {name: folder / f"{name}-{digest[:16]}.safetensors" for name, digest in digests.items()}
        for name, file in files.items():
            os.replace(folder / f"{name}.partial", file)
        (folder / "buffer.partial").write_text(json.dumps(words))
        os.replace(folder / "buffer.partial", folder / "buffer.json")
        for old in folder.glob("*-*.safetensors"):
            if old not in files.values():
                old.unlink()

    @classmethod
    def load(cls, folder: str | Path, disk: str | Path | None = None) -> LatentReplayBuffer:
        """Read a saved buffer. Raises `UserError` where a file is missing, cut or altered."""
        folder = Path(folder)
        try:
            words: dict[str, Any] = json.loads((folder / "buffer.json").read_text())
            whole = sealed(words)["sha256"] == words["sha256"]
            check(whole, "buffer", str(folder), "buffer.json does not match its checksum: cut short or altered")
            files = {name: folder / f"{name}-{digest[:16]}.safetensors" for name, digest in words["files"].items()}
            found = {name: sha256_file(path) for name, path in files.items()}
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"buffer={str(folder)!r}: cannot be read ({error})") from error
        for name, digest in words["files"].items():
            problem = f"{files[name].name} does not match its checksum: cut short or altered"
            check(found[name] == digest, "buffer", str(folder), problem)
        buffer = cls(words["capacity"], disk=disk, **{name: words[name] for name in _SETTINGS})
        buffer.shape, buffer.dtype, buffer._texts = tuple(words["shape"]), words["dtype"], words["texts"]
        buffer.origin = Origin(*words["origin"]) if words["origin"] else None
        buffer._rows = buffer._new_rows()
        buffer._rows.load(files["rows"])
        index, counts = load_file(files["index"]), list(words["counts"].values())
        buffer._filled, buffer._captions = index["places"], index["captions"]
        buffer._places = dict(zip(words["counts"], index["places"].split(counts), strict=True))
        buffer._keys = dict(zip(words["counts"], index["keys"].split(counts), strict=True))
        buffer._prompts = {text: index[f"prompt.{i}"] for i, text in enumerate(buffer._texts) if f"prompt.{i}" in index}
        return buffer
