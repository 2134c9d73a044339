"""Pipelines by name, and what ships with the package. Does not import torch."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from kdcdiff.errors import check
from kdcdiff.provenance import sha256_file

ASSETS = Path(__file__).parent.parent / "assets"
PIPELINES = "flora, a pipeline folder or a hub id like owner/name"
UNETS = "flora, a pipeline or U-Net folder, a .safetensors file or a hub id like owner/name"
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@cache
def checked_assets(folder: Path) -> Path:
    """Return `folder` once every file in it matches its ``checksums.json``."""
    again = "reinstall the package or run `kdcdiff pretrain`"
    check((folder / "checksums.json").is_file(), "assets", str(folder), f"has no checksums.json; {again}")
    for name, digest in json.loads((folder / "checksums.json").read_text()).items():
        check(sha256_file(folder / name) == digest, "assets", name, f"does not match its checksum; {again}")
    return folder


def shipped(name: str) -> Path:
    """Return the folder of what ships as `name`: ``pipeline``, ``classifier`` or ``clip``."""
    return checked_assets(ASSETS) / name


def assets_key() -> str:
    """Return one checksum of everything that ships: what stages name as their outside input."""
    return sha256_file(shipped("checksums.json"))


def find_pipeline(name: str | Path, unet: bool = False) -> Path | None:
    """Return where the pipeline `name` lies: the shipped one's folder for ``flora``, a folder; None for a hub id.

    With `unet` a U-Net's folder or file will do. UserError: none of these.
    """
    if str(name) == "flora":
        return shipped("pipeline")
    path, allowed = Path(name).expanduser(), UNETS if unet else PIPELINES
    there = bool(str(name)) and path.exists()
    check(there or bool(HUB_ID.fullmatch(str(name))), "pipeline", str(name), f"not found; must be {allowed}")
    whole = unet or not there or (path / "model_index.json").is_file()
    check(whole, "pipeline", str(name), f"has no model_index.json; must be {allowed}")
    return path if there else None
