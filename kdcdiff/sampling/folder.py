"""Generated pictures in files: a resumable folder of PNG with its table, and sheets."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from kdcdiff.data.image_folder import METADATA, read_metadata
from kdcdiff.data.image_set import check_images
from kdcdiff.errors import check
from kdcdiff.process import on_full_gpu
from kdcdiff.sampling.generate import Sampling, generate, make_scheduler, most_at_once, stream, warn_of
from kdcdiff.store import aside, claim

COLUMNS = ("file_name", "text", "seed", "index", "class", "scheduler", "fault")  # two first: datasets' imagefolder
SETTINGS = "generation.json"


@on_full_gpu()
def generate_to_folder(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool = True,
    **settings: Any,  # the fields of `Sampling`
) -> int:
    """Draw one image for each prompt into `folder`; return how many this call drew.

    The layout is the `datasets` library's imagefolder (file_name, text, and further columns); with `classes` each
    image lies in its class's folder. Called again, it goes on after the last whole batch and ends in the same files.
    UserError: the folder holds images of other settings, another pipeline or other prompts.
    """
    sampling = Sampling(**settings)
    sampling.check(pipeline, prompts)
    sampling = replace(sampling, batch_size=sampling.batch_size or most_at_once(pipeline, sampling.resolution))
    scheduler = type(make_scheduler(pipeline, sampling.scheduler)).__name__
    classes = [""] * len(prompts) if classes is None else classes
    check(len(classes) == len(prompts), "classes", len(classes), f"must be one for each of the {len(prompts)} images")
    folder = Path(folder)
    asked = hashlib.sha256(json.dumps([list(prompts), list(classes)]).encode()).hexdigest()[:16]
    own = {"scheduler": scheduler, "images": len(prompts), "pipeline": fingerprint(pipeline), "prompts": asked}
    if not (folder / SETTINGS).is_file():
        check(not (folder / METADATA).exists(), "folder", str(folder), "holds other images; choose another folder")
    claim(folder / SETTINGS, asdict(sampling) | own, "images of other settings")

    names = [(f"{name}/" if name else "") + f"{i:06d}.png" for i, name in enumerate(classes)]
    wanted = {names[i]: (text, str(sampling.seed), str(i), classes[i], scheduler) for i, text in enumerate(prompts)}
    told = {row["file_name"]: row for row in read_metadata(folder)}
    done = {name: row for name, row in told.items() if wanted.get(name) == tuple(row.get(c) for c in COLUMNS[1:6])}
    parts = sampling.batches(pipeline, len(prompts))
    todo = [numbers for numbers in parts if any(names[i] not in done for i in numbers)]
    redone = {names[i] for numbers in todo for i in numbers}
    _rewrite(folder, [row for row in done.values() if row["file_name"] in set(names) - redone])
    for numbers, images, faults in stream(pipeline, prompts, sampling, todo, progress):
        cells = [
            (names[i], prompts[i], sampling.seed, i, classes[i], scheduler, fault)
            for i, fault in zip(numbers, faults, strict=True)
        ]
        write(images, folder, [dict(zip(COLUMNS, row, strict=True)) for row in cells])
    table = sorted(read_metadata(folder), key=lambda row: int(row["index"]))
    _rewrite(folder, table)  # batches made late go to their place
    warn_of([row["fault"] for row in table], [row["file_name"] for row in table])
    return len(redone)


def write(images: Tensor, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append images (N, 3, H, W) uint8 to `folder` as PNG, with a row of `COLUMNS` each in ``metadata.csv``."""
    count = len(check_images(images))
    check(len(rows) == count, "rows", len(rows), f"must be one for each of the {count} images")
    for image, row in zip(images, rows, strict=True):
        _save_png(image, folder / row["file_name"])
    path = folder / METADATA
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            table.writeheader()
        table.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def _save_png(image: Tensor, path: Path) -> None:
    with aside(path) as temporary:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG", compress_level=1)


def _rewrite(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with aside(folder / METADATA) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def fingerprint(pipeline: StableDiffusionPipeline) -> str:
    """Name a pipeline's weights cheaply: its parameters' names, shapes and first numbers, hashed."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder"):
        for name, value in getattr(pipeline, part).state_dict().items():
            head = value.flatten()[:64].float().cpu().numpy().tobytes()
            digest.update(f"{part}.{name}{tuple(value.shape)}".encode() + head)
    return digest.hexdigest()[:16]


def save_sheet(pipeline: StableDiffusionPipeline, prompts: Sequence[str], file: Path, columns: int = 4) -> None:
    """Draw one image for each prompt, always from the same noise, and save them side by side."""
    save_grid(generate(pipeline, prompts, seed=0, steps=20, guidance=4.0), file, columns)


def save_grid(images: Tensor, file: Path, columns: int) -> None:
    """Save images (N, 3, H, W) uint8 side by side, `columns` in a row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_grid(images, nrow=columns).permute(1, 2, 0).numpy()).save(file)
