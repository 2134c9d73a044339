"""The latent replay buffer: a memory of latents, not pixels. Equations (4) and (5) of KDC-Diff.

The capacity is fixed and shared: every class that arrives shrinks the others' share, and shares never differ by more
than one. Which of a class's latents stay is the policy's choice. A row is a number into one block of memory, so a
sample costs the same whatever the buffer holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.errors import UserError, check

# A policy orders a class's rows by how long they are to be kept: (latents (n, ...), generator) -> (n,) row numbers.


def _reservoir(latents: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform random subset, whatever size is left of it: the paper's unnamed sampling."""
    return torch.randperm(len(latents), generator=generator)


def _ring(latents: Tensor, generator: torch.Generator) -> Tensor:
    """The newest first."""
    return torch.arange(len(latents) - 1, -1, -1)


def _herding(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Each next latent brings the mean of those taken closest to the class's mean (Rebuffi et al. 2017, iCaRL)."""
    flat = latents.flatten(1).double()
    mean, taken, order = flat.mean(0), torch.zeros(flat.shape[1], dtype=torch.float64), []
    free = torch.ones(len(flat), dtype=torch.bool)
    for k in range(1, len(flat) + 1):
        distance = ((taken + flat) / k - mean).square().sum(1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        order.append(best)
        taken, free[best] = taken + flat[best], False
    return torch.tensor(order)


POLICIES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "reservoir": _reservoir,
    "ring": _ring,
    "herding": _herding,
}


class Sample(NamedTuple):
    """`latents` (n, C, h, w) and what was said of each."""

    latents: Tensor
    captions: list[str]


class LatentReplayBuffer:
    """`capacity` latents in all, as many of each class as of any other, give or take one.

    Raises `UserError`: capacity below 1 or below the class count, an unknown policy, a class that comes twice or empty,
    latents of another shape, fewer or more captions than latents.
    """

    def __init__(self, capacity: int, policy: str = "reservoir", seed: int = 0) -> None:
        check(isinstance(capacity, int) and capacity >= 1, "capacity", capacity, "must be a whole number, at least 1")
        check(policy in POLICIES, "policy", policy, f"must be one of {', '.join(POLICIES)}")
        self.capacity, self.policy, self.seed = capacity, policy, seed
        self._latents: dict[str, Tensor] = {}  # class -> (kept, C, h, w) fp16, the longest to stay first
        self._captions: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._latents.values())

    @property
    def counts(self) -> dict[str, int]:
        """Latents kept of each class, in the order of arrival."""
        return {name: len(rows) for name, rows in self._latents.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the latents."""
        return sum(rows.nbytes for rows in self._latents.values())

    def _quotas(self, classes: int) -> list[int]:
        return [self.capacity // classes + (k < self.capacity % classes) for k in range(classes)]

    def add_class(self, name: str, latents: Tensor, captions: Sequence[str]) -> None:
        """Equation (4): take a sample of a finished class, and shrink the others to make room."""
        check(name not in self._latents, "class", name, "is in the buffer already")
        check(
            latents.ndim == 4 and len(latents) > 0,
            "latents",
            tuple(latents.shape),
            "must be (n, C, h, w) with at least one row",
        )
        check(
            len(captions) == len(latents), "captions", len(captions), f"must be as many as the latents, {len(latents)}"
        )
        check(
            len(self._latents) < self.capacity,
            "capacity",
            self.capacity,
            f"cannot hold {len(self._latents) + 1} classes",
        )
        check(bool(latents.isfinite().all()), "latents", name, "must be finite")
        for rows in list(self._latents.values())[:1]:
            check(
                rows.shape[1:] == latents.shape[1:],
                "latents",
                tuple(latents.shape[1:]),
                f"must be {tuple(rows.shape[1:])}, as those of the buffer",
            )
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + len(self._latents))
        *old, own = self._quotas(len(self._latents) + 1)
        order = POLICIES[self.policy](latents, generator)[:own]
        for other, quota in zip(list(self._latents), old, strict=True):
            self._latents[other] = self._latents[other][:quota].clone()
            self._captions[other] = self._captions[other][:quota]
        self._latents[name] = latents[order].to(torch.float16).clone()
        self._captions[name] = [captions[i] for i in order.tolist()]

    def sample(self, n: int, step: int = 0) -> Sample:
        """`n` rows drawn uniformly with replacement: a function of the buffer, its seed and `step` alone."""
        check(n >= 1, "n", n, "must be at least 1")
        check(len(self) > 0, "buffer", 0, "is empty; add a class first")
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + step + 1)
        names, counts = list(self._latents), torch.tensor(list(self.counts.values()))
        rows = torch.randint(int(counts.sum()), (n,), generator=generator)
        ends = counts.cumsum(0)
        owners = torch.searchsorted(ends, rows, right=True)
        places = (rows - (ends - counts)[owners]).tolist()
        picked = [(names[o], p) for o, p in zip(owners.tolist(), places, strict=True)]
        return Sample(
            torch.stack([self._latents[name][p] for name, p in picked]), [self._captions[name][p] for name, p in picked]
        )

    def save(self, folder: str | Path) -> None:
        """Write the buffer; each file appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{i:06d}": rows.contiguous() for i, rows in enumerate(self._latents.values())}, folder / "latents.partial"
        )
        digest = hashlib.sha256((folder / "latents.partial").read_bytes()).hexdigest()
        words = {
            "capacity": self.capacity,
            "policy": self.policy,
            "seed": self.seed,
            "classes": list(self._latents),
            "captions": list(self._captions.values()),
            "sha256": digest,
        }
        (folder / "buffer.partial").write_text(json.dumps(words))
        os.replace(folder / "latents.partial", folder / "latents.safetensors")
        os.replace(folder / "buffer.partial", folder / "buffer.json")

    @classmethod
    def load(cls, folder: str | Path) -> LatentReplayBuffer:
        """Read a saved buffer. Raises `UserError` where a file is missing, cut or altered."""
        folder = Path(folder)
        try:
            words = json.loads((folder / "buffer.json").read_text())
            digest = hashlib.sha256((folder / "latents.safetensors").read_bytes()).hexdigest()
        except (OSError, ValueError) as error:
            raise UserError(f"buffer={str(folder)!r}: cannot be read ({error})") from error
        check(
            digest == words["sha256"],
            "buffer",
            str(folder),
            "latents.safetensors does not match its checksum: cut short or altered",
        )
        buffer = cls(words["capacity"], words["policy"], words["seed"])
        tensors = load_file(folder / "latents.safetensors")
        buffer._latents = {name: tensors[f"{i:06d}"] for i, name in enumerate(words["classes"])}
        buffer._captions = dict(zip(words["classes"], words["captions"], strict=True))
        return buffer
