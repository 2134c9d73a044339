"""Generated pictures in a folder: PNG files and their table, resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from kdcdiff.data.image_folder import METADATA, read_metadata
from kdcdiff.errors import UserError, check
from kdcdiff.sampling.generate import _warn, black, check_settings, make_scheduler, split, stream

# --- folders ------------------------------------------------------------------------------------------------

COLUMNS = (
    "file_name",
    "text",
    "seed",
    "index",
    "class",
    "scheduler",
    "fault",
)  # the first two: datasets' imagefolder
SETTINGS = "generation.json"


@dataclass(frozen=True)
class Report:
    """What a folder of generated images holds; `made` of its `images` were made by this call, in
    `seconds`.
    """

    folder: Path
    images: int
    made: int
    seconds: float
    not_finite: tuple[str, ...]
    black: tuple[str, ...]


def _file_name(index: int, name: str) -> str:
    return f"{name}/{index:06d}.png" if name else f"{index:06d}.png"


def _save_png(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG", compress_level=1)
    os.replace(temporary, path)


def _append(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path = folder / METADATA
    with path.open("a", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        if stream.tell() == 0:
            table.writeheader()
        table.writerows(rows)
        stream.flush()
        os.fsync(stream.fileno())


def _check_lengths(count: int, **columns: Sequence[Any]) -> None:
    for name, column in columns.items():
        check(len(column) == count, name, len(column), f"must be one for each of the {count} images")


def write(
    images: Tensor,
    folder: str | Path,
    *,
    prompts: Sequence[str],
    seeds: int | Sequence[int],
    classes: Sequence[str] | None = None,
    scheduler: str = "",
    start: int = 0,
    faults: Sequence[str] | None = None,
) -> None:
    """Append images (N, 3, H, W) uint8 to a folder as PNG, with a row each in ``metadata.csv``.

    The layout is the `datasets` library's imagefolder (file_name, text, and further columns); with `classes`
    each image lies in its class's folder. `start` numbers the first one. UserError: columns and images of
    different lengths.
    """
    count = len(images)
    check(
        images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3,
        "images",
        tuple(images.shape),
        "must be (N, 3, H, W) uint8",
    )
    seeds = [seeds] * count if isinstance(seeds, int) else seeds
    classes = [""] * count if classes is None else classes
    faults = ["black" if i in set(black(images)) else "" for i in range(count)] if faults is None else faults
    _check_lengths(count, prompts=prompts, seeds=seeds, classes=classes, faults=faults)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name = _file_name(start + i, classes[i])
        _save_png(images[i], folder / name)
        values = (name, prompts[i], seeds[i], start + i, classes[i], scheduler, faults[i])
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    _append(folder, rows)


def fingerprint(pipeline: StableDiffusionPipeline) -> str:
    """A cheap name for a pipeline's weights: its parameters' names, shapes and first numbers, hashed."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder"):
        for name, value in getattr(pipeline, part).state_dict().items():
            head = value.flatten()[:64].float().cpu().numpy().tobytes()
            digest.update(f"{part}.{name}{tuple(value.shape)}".encode() + head)
    return digest.hexdigest()[:16]


def generate_to_folder(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
    steps: int = 25,
    guidance: float = 5.0,
    batch_size: int = 50,
    scheduler: str | None = None,
    negative_prompt: str | None = None,
    progress: bool = True,
) -> Report:
    """`generate` into a folder; called again, it goes on after the last whole batch and ends in the same
    files.

    UserError: the folder holds images of other settings, another pipeline or other prompts.
    """
    check_settings(prompts, seed, steps, guidance, batch_size, pipeline.scheduler.config.num_train_timesteps)
    name = type(make_scheduler(pipeline, scheduler)).__name__
    classes = [""] * len(prompts) if classes is None else classes
    _check_lengths(len(prompts), classes=classes)
    folder = Path(folder)
    settings = {
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "batch_size": batch_size,
        "scheduler": name,
        "negative_prompt": negative_prompt,
        "images": len(prompts),
        "pipeline": fingerprint(pipeline),
        "prompts": hashlib.sha256(json.dumps([list(prompts), list(classes)]).encode()).hexdigest()[:16],
    }
    _claim(folder, settings)
    done = {row["file_name"]: row for row in read_metadata(folder)}
    names = [_file_name(i, c) for i, c in enumerate(classes)]
    todo = [numbers for numbers in split(len(prompts), batch_size) if any(names[i] not in done for i in numbers)]
    redone = {names[i] for numbers in todo for i in numbers}
    _rewrite(folder, [row for row in done.values() if row["file_name"] in set(names) - redone])
    start = time.perf_counter()
    for numbers, images, finite in stream(
        pipeline,
        prompts,
        todo,
        seed=seed,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        progress=progress,
    ):
        dark = set(black(images))
        faults = ["not finite" if not ok else "black" if i in dark else "" for i, ok in enumerate(finite.tolist())]
        write(
            images,
            folder,
            prompts=[prompts[i] for i in numbers],
            seeds=seed,
            classes=[classes[i] for i in numbers],
            scheduler=name,
            start=numbers.start,
            faults=faults,
        )
    seconds = time.perf_counter() - start
    rows = sorted(read_metadata(folder), key=lambda row: int(row["index"]))
    _rewrite(folder, rows)  # batches made late go to their place
    named = {
        fault: tuple(row["file_name"] for row in rows if row["fault"] == fault) for fault in ("not finite", "black")
    }
    _warn(len(rows), named["not finite"], named["black"])
    return Report(folder, len(rows), len(redone), seconds, named["not finite"], named["black"])


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"folder={str(folder)!r}: its {SETTINGS} cannot be read; choose another folder") from error
        differ = ", ".join(f"{k}={there.get(k)!r}, not {v!r}" for k, v in settings.items() if there.get(k) != v)
        check(
            not differ,
            "folder",
            str(folder),
            f"holds images of other settings ({differ}); choose another folder",
        )
        return
    check(not (folder / METADATA).exists(), "folder", str(folder), "holds other images; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _rewrite(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    temporary = folder / f".{METADATA}.{os.getpid()}"
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    os.replace(temporary, folder / METADATA)
