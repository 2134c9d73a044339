"""Data sets by name. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from kdcdiff.errors import check

DATASETS = ("flora", "garden", "oxford-102")  # by name; anything else is an image folder


def checked_dataset(dataset: str) -> str:
    """Return a data set's name, or an image folder's absolute path. UserError where it is neither."""
    if dataset in DATASETS:
        return dataset
    allowed = f"must be {', '.join(DATASETS)}, or the path of an existing image folder"
    check(isinstance(dataset, str) and dataset != "" and "\0" not in dataset, "dataset", dataset, allowed)
    folder = Path(dataset).expanduser().resolve()
    check(folder.is_dir(), "dataset", dataset, allowed)
    filled = any(folder.iterdir())
    check(filled, "dataset", dataset, "the folder is empty; it must hold one folder of images per class")
    return str(folder)
