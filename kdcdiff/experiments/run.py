"""What an experiment runs at: its sizes, its data set, its seed, its device and its store."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from kdcdiff.errors import check

DATASETS = ("flora", "oxford-102")  # by name; anything else is an image folder


def checked_dataset(dataset: str) -> str:
    """A data set's name, or an image folder's absolute path. UserError where it is neither."""
    if dataset in DATASETS:
        return dataset
    allowed = f"must be {', '.join(DATASETS)}, or the path of an existing image folder"
    check(isinstance(dataset, str) and dataset != "", "dataset", dataset, allowed)
    folder = Path(dataset).expanduser().resolve()
    check(folder.is_dir(), "dataset", dataset, allowed)
    check(
        any(folder.iterdir()),
        "dataset",
        dataset,
        "the folder is empty; it must hold one folder of images per class",
    )
    return str(folder)


def checked_seed(seed: int) -> int:
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    check(whole and 0 <= seed < 2**31, "seed", seed, "must be a whole number from 0 to 2147483647")
    return seed


def _seeded(seed: int) -> str:
    """Seed the global generators, against code that draws without one of its own; the device this runs on."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return "cuda" if torch.cuda.is_available() else "cpu"
