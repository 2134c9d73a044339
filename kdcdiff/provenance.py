"""Where a figure comes from: checksums, library versions, commit, device, and the memory its making took."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kdcdiff.process import DEVICE, compute_dtype

LIBRARIES = (
    "kdcdiff",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "torchmetrics",
    "lpips",
    "torch-fidelity",
    "scipy",
)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file in hex, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_weights(state: Mapping[str, Any]) -> str:
    """Return the sha256 in hex of a network's ``state_dict``: names and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class PeakMemory:
    """Measure peak resident bytes of this process and its children in a `with` block, sampled 10 times a second."""

    def __init__(self, interval: float = 0.1) -> None:
        self.interval = interval
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _sample(self) -> None:
        process = psutil.Process()
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += child.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total)

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            with contextlib.suppress(psutil.Error):
                self._sample()

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()


def device_name() -> str:
    """Name what a stage ran on: the GPU and the dtype of its arithmetic, or ``cpu``. Does not import torch.

    It is what `process.use_device` decided, and not what the machine has.
    """
    torch = sys.modules.get("torch")
    if torch is None or os.environ.get(DEVICE) == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda ({torch.cuda.get_device_name()}, {str(compute_dtype('cuda')).removeprefix('torch.')})"


@functools.cache
def libraries() -> dict[str, str]:
    """Return the versions of the installed libraries that figures depend on."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def commit() -> str | None:
    """Return the source's git commit (with `+` after it if the tree differs), or None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
        if Path(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip()).resolve() != here:
            return None
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, Any]:
    """Gather what a manifest says of where it was made."""
    return {
        "libraries": libraries(),
        "commit": commit(),
        "device": device_name(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
