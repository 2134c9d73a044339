"""What an artifact's manifest says: the key that names it, the checksums of its files, and whether they still hold.

A manifest holds the recipe that its key is computed from, the sha256 of each file, and its own, so that no byte of an
artifact changes unseen, and no artifact is taken for another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdcdiff.provenance import sha256_file

MANIFEST = "manifest.json"
STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what a stage may be called
_whole: set[tuple[Any, ...]] = set()  # `_stamp`s of what was found whole: read again only where a file has changed


def canonical(value: Any) -> Any:
    """`value` as plain JSON types, so that equal inputs give equal keys: 1, 1.0 and True stay three values.

    Mappings need string keys; tuples, paths, numpy scalars and dataclasses (under their class's name) are taken; NaN
    and the rest raise TypeError.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} cannot be part of a key")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"a key's mapping needs string names, not {list(value)!r}")
        return {name: canonical(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {type(value).__name__: canonical(fields)}
    if isinstance(value, Path):
        return value.as_posix()
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return canonical(value.item())
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def content_key(
    stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str], external: Mapping[str, str]
) -> str:
    """The sha256, in hex, that names a stage's result. `inputs` maps names to the keys of artifacts read."""
    whole = {"stage": stage, "version": version, "settings": settings, "inputs": inputs, "external": external}
    text = json.dumps(canonical(whole), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_name(stage: str, key: str) -> str:
    """Name an artifact's folder: its stage and the first 16 digits of its key."""
    return f"{stage}-{key[:16]}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `manifest` with its own checksum, under ``sha256``."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def manifest_fault(manifest: Any) -> str | None:
    """Say what is wrong with a manifest (None: nothing): altered, of another recipe's key, or with an unsafe name."""
    try:
        if sealed(manifest)["sha256"] != manifest["sha256"]:
            return "its manifest has a wrong checksum"
        recipe = (manifest[part] for part in ("stage", "version", "settings", "inputs", "external"))
        if content_key(*recipe) != manifest["key"]:
            return "its manifest is not of its key"
        if not STAGE.fullmatch(manifest["stage"]):
            return "its manifest names no stage"
        for name, entry in manifest["files"].items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name in ("", MANIFEST) or "\0" in name:
                return f"its manifest names a file outside of it, {name!r}"
            if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
                return "its manifest cannot be read"
        return None if {"seconds", "peak_bytes", "device"} <= manifest.keys() else "its manifest cannot be read"
    except (KeyError, TypeError, ValueError, AttributeError):
        return "its manifest cannot be read"


def inspect(folder: Path, hashed: bool = True) -> tuple[str | None, dict[str, Any]]:
    """Say what is wrong with a published folder (None: nothing), and give its manifest ({}: there is none).

    Without `hashed`, files are asked for their sizes alone. What has been found whole is not read again in this
    process unless its files have changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):  # the last: of JSON that is nested without end
        return "its manifest cannot be read", {}
    if (fault := manifest_fault(manifest)) is not None:
        return fault, {}
    if folder_name(manifest["stage"], manifest["key"]) != folder.name:
        return "its manifest is another's", manifest
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            return f"{name} is missing", manifest
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {entry['bytes']:,}", manifest
    if hashed and (stamp := _stamp(folder, manifest)) not in _whole:
        for name, entry in manifest["files"].items():
            if sha256_file(folder / name) != entry["sha256"]:
                return f"{name} has a wrong checksum", manifest
        _whole.add(stamp)
    return None, manifest


def remember_whole(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Note that `folder`, whose files have just been hashed, is whole."""
    _whole.add(_stamp(folder, manifest))


def _stamp(folder: Path, manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    """Say which folder, and which state of its files: another inode or another time is another state."""
    stats = ((folder / name).stat() for name in (MANIFEST, *manifest["files"]))
    return (str(folder), *((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
