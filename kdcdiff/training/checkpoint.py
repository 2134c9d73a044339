"""Checkpoints of unfinished training, so that a killed run goes on: weights, optimizer moments, averages, scaler.

A checkpoint is one safetensors file and holds no RNG state: all randomness of a step follows from the seed and the
step's number. It appears by a rename, so there is never half of one; the newest few are kept. It holds its own
checksum: one that was damaged since is named and set aside, and the run goes on from the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a module's parameters, with the usual ramp: min(decay, (1 + t) / (10 + t))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step` (from 0)."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.live.values()), weight)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Put the averages in the parameters' place."""
        for name, parameter in self.live.items():
            parameter.copy_(self.shadow[name])


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None, scaler: Any = None
) -> dict[str, Tensor]:
    """Gather all that a run must remember, as flat tensors: what `restore` reads. `scaler` is that of fp16."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
    if ema is not None:
        state |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    if scaler is not None:
        state |= {f"scaler.{k}": torch.tensor(v, dtype=torch.float64) for k, v in scaler.state_dict().items()}
    return {k: v.detach().contiguous() for k, v in state.items()}


def restore(
    state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None, scaler: Any = None
) -> None:
    """Put a run back where `training_state` found it."""
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            like = parameters[int(index)]
            # fused AdamW walks raw memory: a moment must lie in its parameter's layout, channels-last or not
            laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            slots.setdefault(int(index), {})[name] = laid_out
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if ema is not None:
        for name, shadow in ema.shadow.items():
            shadow.copy_(state[f"ema.{name}"])
    if scaler is not None:
        numbers = {k[7:]: v.item() for k, v in state.items() if k.startswith("scaler.")}
        scaler.load_state_dict(numbers | {"growth_interval": int(numbers["growth_interval"])})


def save_whole(tensors: Mapping[str, Tensor], path: Path, words: Mapping[str, str]) -> None:
    """Write `tensors` and `words` to a safetensors file that holds their checksum; it appears by a rename."""
    held = {name: value.detach().contiguous() for name, value in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(held, partial, metadata=dict(words) | {"sha256": _digest(held, words)})
    with open(partial, "rb") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)


def load_whole(path: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Read what `save_whole` wrote; None, and the file set aside and named, where it is not what was written."""
    try:
        with safe_open(path, "pt") as f:
            words = dict(f.metadata() or {})
        tensors = load_file(path)
        if words.pop("sha256", "") == _digest(tensors, words):
            return words, tensors
    except (OSError, SafetensorError, ValueError):
        pass
    os.replace(path, path.with_suffix(".damaged"))
    print(f"warning: {path.name} is damaged: set aside, and not used", file=sys.stderr, flush=True)
    return None


def _digest(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(words), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


class CheckpointFolder:
    """A folder of the newest `keep` checkpoints; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    @property
    def newest(self) -> Path | None:
        """Find the checkpoint of the latest step, if there is one."""
        return max(self.folder.glob("step-*.safetensors"), default=None) if self.folder else None

    def save(self, step: int, state: dict[str, Tensor], log_bytes: int) -> None:
        """Write `step`'s checkpoint beside the others, make it the newest by a rename, then drop the oldest."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        words = {"step": str(step), "log_bytes": str(log_bytes)}
        save_whole(state, self.folder / f"step-{step:07d}.safetensors", words)
        for old in sorted(self.folder.glob("step-*.safetensors"))[: -self.keep]:
            old.unlink()

    def load(self) -> tuple[int, int, dict[str, Tensor]] | None:
        """Read the newest whole checkpoint: (steps done, bytes of the log at that time, state); None: there is none."""
        while (newest := self.newest) is not None:
            if (found := load_whole(newest)) is not None:
                words, state = found
                return int(words["step"]), int(words["log_bytes"]), state
        return None
