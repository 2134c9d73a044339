"""What an experiment runs at: its sizes, its data set, its seed, its device and its store. No notebook is needed.

For example:

    run = open_run(profile="smoke", artifacts="artifacts", distill_steps=20)
    pipeline = stages.student(run, "kdc-described")
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kdcdiff.data.names import DATASETS, checked_dataset
from kdcdiff.data.sources import Source, open_source
from kdcdiff.errors import check
from kdcdiff.experiments import profiles
from kdcdiff.experiments.profiles import Profile
from kdcdiff.models.shipped import shipped_for
from kdcdiff.models.unet_files import read_resolution
from kdcdiff.process import compute_dtype, keep_memory, use_device
from kdcdiff.store import Artifact, Store


@dataclass(frozen=True)
class Run:
    """What every function of `experiments` takes first."""

    profile: Profile
    dataset: str  # one of `names.DATASETS`, or the absolute path of an image folder
    seed: int
    device: str  # cuda or cpu
    store: Store

    @cached_property
    def source(self) -> Source:
        """The data set, with its base and novel classes."""
        return open_source(self.dataset, self.profile.classes)

    @cached_property
    def resolution(self) -> int:
        """The side of the pictures in pixels: the profile's, or that which the teacher was trained on."""
        return self.profile.resolution or read_resolution(self.teacher)

    @property
    def teacher(self) -> str:
        """The teacher's name, folder or hub id; where the data set is a folder, it is fine-tuned."""
        return self.profile.teacher or shipped_for(self.dataset)

    def shipped(self, dataset: str) -> Self:
        """Return the same run on a data set that ships, with the teacher that does."""
        own = replace(self.profile, teacher=None, resolution=None, classes=None)
        return replace(self, profile=own, dataset=dataset)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the run's arithmetic; weights are in float32."""
        return compute_dtype(self.device)

    @property
    def dataset_word(self) -> str:
        """The data set's name, without the folder that it lies in."""
        return self.dataset if self.dataset in DATASETS else Path(self.dataset).name

    def place(self, model: Any) -> Any:
        """Move a module or a pipeline to the run's device; the one place that does, and all else follows it."""
        return model.to(self.device)


def open_run(
    profile: str = "mini",
    dataset: str = "flora",
    seed: int = 0,
    artifacts: str | Path = "artifacts",
    *,
    device: str | None = None,
    on_use: Callable[[Artifact, bool], None] | None = None,
    say: Callable[[str], None] = print,
    **sizes: Any,
) -> Run:
    """Check everything, seed the global generators, and open the store.

    `sizes` are fields of `Profile` and override it; None keeps the profile's own. `device` is as `process.use_device`
    has it. UserError: an unknown profile, data set, size or device, a value out of range, a store that cannot be
    written.
    """
    chosen, dataset, seed = profiles.get(profile, **sizes), checked_dataset(dataset), checked_seed(seed)
    store = Store(artifacts, on_use=on_use, say=say)
    keep_memory()
    random.seed(seed)  # against code that draws without a generator of its own
    np.random.seed(seed)
    torch.manual_seed(seed)
    return Run(chosen, dataset, seed, use_device(device), store)


def checked_seed(seed: int) -> int:
    """Return `seed`. UserError unless it is a whole number from 0 to 2147483647."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    check(whole and 0 <= seed < 2**31, "seed", seed, "must be a whole number from 0 to 2147483647")
    return seed
