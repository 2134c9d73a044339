"""Looking after a store: what lies there, whether it is whole, what nobody needs any more, and what another one has.

Nothing here makes a stage. What is removed is moved out of the way in one step first, while nobody has the store open,
and what is taken from another store appears only when every byte of it matches its manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from kdcdiff.errors import UserError, check
from kdcdiff.manifest import MANIFEST, folder_name, inspect, manifest_fault
from kdcdiff.store import CHECKPOINT, Store

LARGEST_MANIFEST = 2**24  # bytes: of another store no more is read
STATES = {  # of what lies in a store: what it means
    "published": "finished",
    "damaged": "not what its manifest says: made again when it is asked for",
    "unfinished": "a killed training's checkpoint, from which it goes on",
    "left": "of a killed process, or moved aside as damaged",
}


@dataclass(frozen=True)
class Entry:
    """A folder of a store: its state, what is wrong with it, its manifest ({}: there is none that can be read)."""

    path: Path
    state: str  # of `STATES`
    fault: str
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def bytes(self) -> int:
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir())


def entries(root: Path, hashed: bool = False) -> Iterator[Entry]:
    """Yield what lies in the store at `root`, published artifacts first; `hashed` reads every byte of them.

    UserError: no store is there.
    """
    check((root / "work").is_dir(), "artifacts", str(root), "must be the folder of a store")
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in ("work", "locks", "damaged"):
            fault, manifest = inspect(path, hashed)
            yield Entry(path, "damaged" if fault else "published", fault or "", manifest)
    for path in sorted((root / "work").iterdir()):
        yield Entry(path, "unfinished" if (path / CHECKPOINT).exists() else "left", "", {})
    for path in sorted(root.glob("damaged/*")):
        yield Entry(path, "left", "", {})


def unneeded(store: Store, needed: Collection[str], unfinished: bool = False) -> list[Entry]:
    """List what may go: artifacts that no key of `needed` leads to, and what killed and damaged ones left behind.

    With `unfinished`, checkpoints of trainings that never ended, too.
    """
    found = list(entries(store.root))
    inputs = {entry.manifest["key"]: entry.manifest["inputs"].values() for entry in found if entry.manifest}
    kept: set[str] = set()
    ahead = list(needed)
    while ahead:
        if (key := ahead.pop()) not in kept:
            kept.add(key)
            ahead += inputs.get(key, ())
    going = {"left", "damaged"} | ({"unfinished"} if unfinished else set())
    return [entry for entry in found if entry.state in going or (entry.manifest and entry.manifest["key"] not in kept)]


def remove(store: Store, entry: Entry) -> None:
    """Remove a folder of the store, which the caller has to itself (`Store.alone`)."""
    gone = store.root / "damaged" / f"{entry.name}.{os.getpid()}.gone"  # never seen half removed
    gone.parent.mkdir(exist_ok=True)
    os.replace(entry.path, gone)
    shutil.rmtree(gone)


def pull(root: Path, source: str, stages: Sequence[str] = (), say: Callable[[str], None] = print) -> tuple[int, int]:
    """Take to the store at `root` the artifacts of another one, all or those of `stages`; how many came and were here.

    `source` is a folder or a URL that fsspec opens. UserError: no store is there, none of `stages`, or an artifact
    that is not what its manifest says; those before it stay.
    """
    came = here = 0
    with _refusals(source):
        files, there = fsspec.core.url_to_fs(source if "://" in source else str(Path(source).expanduser().resolve()))
        folders = sorted(str(path).rstrip("/") for path in files.ls(there, detail=False))
        manifests = {path: manifest for path in folders if (manifest := _manifest(files, path)) is not None}
        check(bool(manifests), "source", source, "holds no artifact")
        known = sorted({manifest["stage"] for manifest in manifests.values()})
        for stage in stages:
            check(stage in known, "stage", stage, f"must be one of {', '.join(known)}")
        store = Store(root, say=say)
        for path, manifest in manifests.items():
            if not stages or manifest["stage"] in stages:
                new = store.adopt(manifest, partial(_open, files, path))
                came, here = came + new, here + (not new)
                say(f"{'pulled' if new else 'here  '} {folder_name(manifest['stage'], manifest['key'])}")
    return came, here


def _open(files: Any, folder: str, name: str) -> BinaryIO:
    return files.open(f"{folder}/{name}", "rb")


def _manifest(files: Any, path: str) -> dict[str, Any] | None:
    """Read the manifest of a folder of another store; None where it has none. UserError: a damaged one."""
    file = f"{path}/{MANIFEST}"
    if not files.isfile(file):
        return None
    with files.open(file, "rb") as stream:
        text = stream.read(LARGEST_MANIFEST + 1)
    try:
        manifest = json.loads(text[:LARGEST_MANIFEST])
    except (ValueError, RecursionError):
        manifest = None
    fault = manifest_fault(manifest)
    name = path.rpartition("/")[2]
    if fault is None and folder_name(manifest["stage"], manifest["key"]) != name:
        fault = "its manifest is another's"
    check(fault is None, "artifact", name, f"{fault}; nothing of it is taken")
    return manifest


@contextlib.contextmanager
def _refusals(source: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:  # no such place, no such protocol, no package for it
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"source={source!r}: cannot be read as a store ({reason})") from error
