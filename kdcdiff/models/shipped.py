"""What ships with the package: its folder, and its checksums."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from kdcdiff.errors import check
from kdcdiff.provenance import sha256_file

ASSETS = Path(__file__).parent.parent / "assets"


# --- what ships ----------------------------------------------------------------------------------------------


@cache
def checked_assets(folder: Path) -> Path:
    """`folder` once every file matches ``checksums.json``."""
    check(
        (folder / "checksums.json").is_file(),
        "assets",
        str(folder),
        "has no checksums.json; reinstall the package or run `kdcdiff pretrain`",
    )
    for name, digest in json.loads((folder / "checksums.json").read_text()).items():
        check(
            sha256_file(folder / name) == digest,
            "assets",
            name,
            "does not match its checksum; reinstall the package or run `kdcdiff pretrain`",
        )
    return folder


def assets_key() -> str:
    """One checksum of everything that ships: what stages name as their outside input."""
    return sha256_file(checked_assets(ASSETS) / "checksums.json")
