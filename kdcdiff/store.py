"""The artifact store: every stage's result is a folder, named by what went into it.

    store = Store("artifacts")
    latents = store.get("latents", make, version=2, settings={"images": 64}, inputs={"data": data})
    tensors = safetensors.torch.load_file(latents / "latents.safetensors")

key = sha256 of canonical JSON of (stage name, stage version, its settings, the keys it reads, checksums of external
inputs). The mapping that is keyed is the one that the work is called with, `make(folder, **settings)`. `make` writes
into a work folder whose name depends on the key alone: it survives a kill, so that a training stage goes on from
`work/checkpoint`. A finished folder gets its `manifest.json`, is synced to disk and renamed into place; nobody ever
sees half of one. What was damaged since is moved aside, said, and made again. `kdcdiff.upkeep` looks after a store;
what it removes it removes `alone`: whoever has a store open holds a lock on it that all share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from kdcdiff.errors import UserError, check
from kdcdiff.manifest import (
    MANIFEST,
    STAGE,
    canonical,
    content_key,
    folder_name,
    inspect,
    manifest_fault,
    remember_whole,
    sealed,
)
from kdcdiff.provenance import PeakMemory, provenance, sha256_file

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, somebody's share of it, or a limit on a file's size
USE = "in-use"  # among the locks: shared by all who have the store open
CHECKPOINT = "checkpoint"  # a stage's own resume state, in its work folder; never published


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A published stage: its folder, its key, and how it came about."""

    path: Path
    key: str
    manifest: dict[str, Any]

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())


class Store:
    """A folder of artifacts. Raises `UserError` where `root` cannot be written.

    An open store is in use, until it is dropped or its process ends, and nobody tidies one that others use: what a
    chapter has made, or is about to read, is on no record yet. Opening one that is being tidied waits.
    `on_use(artifact, built)` hears of each artifact that `get` hands out; `say` prints the one line about it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        on_use: Callable[[Artifact, bool], None] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self.on_use = on_use
        self.say = say
        self._told: set[str] = set()
        with self._explained("opening the store"):
            for folder in (self.root, self.root / "work", self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root / "locks").close()  # a probe, without a name that a kill could leave
            self._use = (self.root / "locks" / USE).open("a")
            self._share()

    def _share(self) -> None:
        """Hold the lock of those who use the store; wait for one who tidies it."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.say(f"wait   {self.root.name}  is being tidied by another process")
            fcntl.flock(self._use, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the store to oneself. UserError: another process, or another `Store` of this one, has it open."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._share()
            line = "is in use (a run, or an open notebook), and what that reads is not all on record; end it first"
            raise UserError(f"artifacts={str(self.root)!r}: {line}") from None
        try:
            yield
        finally:
            self._share()

    def get(
        self,
        stage: str,
        make: Callable[..., None],
        *,
        version: int = 1,
        settings: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Artifact] | None = None,
        external: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Return the artifact of `stage`, made by `make(folder, **settings)` unless it is there and whole.

        A second process that asks for the same key waits for the first. An error in `make` is passed on and
        publishes nothing; the work folder stays only where it holds a checkpoint.
        """
        settings, inputs, external = settings or {}, inputs or {}, external or {}
        if not STAGE.fullmatch(stage):
            raise ValueError(f"stage={stage!r}: letters, digits, dots, dashes and underscores")
        input_keys = {name: artifact.key for name, artifact in inputs.items()}
        key = content_key(stage, version, settings, input_keys, external)
        name = folder_name(stage, key)
        with self._explained(f"building stage {stage}"), self._locked(name):
            artifact, built = self._published(name, key), False
            if artifact is None:
                recipe = {
                    "stage": stage,
                    "version": version,
                    "key": key,
                    "settings": canonical(settings),
                    "inputs": input_keys,
                    "external": dict(external),
                }
                artifact, built = self._build(name, recipe, lambda folder: make(folder, **settings)), True
        seconds, peak = artifact.manifest["seconds"], artifact.manifest["peak_bytes"]
        if built or name not in self._told:  # a chapter asks for some stages many times over
            self._told.add(name)
            verb = "built " if built else "reused"
            cost = f"{seconds:,.1f} s, peak {peak / 2**30:.2f} GiB, {artifact.bytes / 2**20:,.1f} MiB"
            self.say(f"{verb} {name}  {cost}")
        if self.on_use:
            self.on_use(artifact, built)
        return artifact

    def _published(self, name: str, key: str) -> Artifact | None:
        folder = self.root / name
        if not folder.exists():
            return None
        fault, manifest = inspect(folder)
        if fault is None and manifest["key"] == key:
            return Artifact(folder, key, manifest)
        fault = fault or "it is another's"
        aside = self.root / "damaged" / name
        aside.parent.mkdir(exist_ok=True)
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{name}.{number}")
        os.replace(folder, aside)
        self.say(f"warning: {name} is damaged ({fault}): moved to damaged/{aside.name}, making it again")
        return None

    def _build(self, name: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Artifact:
        work = self.root / "work" / name
        resumed = (work / CHECKPOINT).exists()
        if not resumed:
            shutil.rmtree(work, ignore_errors=True)  # what a kill before the first checkpoint has left
        work.mkdir(exist_ok=True)
        if resumed:
            self.say(f"resume {name}  from its last checkpoint")
        start = time.perf_counter()
        try:
            with PeakMemory() as memory:
                make(work)
            manifest = recipe | {
                "files": _files(work),
                "seconds": time.perf_counter() - start,
                "peak_bytes": memory.peak_bytes,
                "resumed": resumed,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                **provenance(),
            }
            return self._publish(work, name, sealed(manifest))
        except BaseException:
            if not (work / CHECKPOINT).exists():
                shutil.rmtree(work, ignore_errors=True)
            raise

    def _publish(self, work: Path, name: str, manifest: dict[str, Any]) -> Artifact:
        """Make the finished folder `work`, whose checksums are known to be right, the artifact `name`."""
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        _remove(work / CHECKPOINT)  # only now: on a full disk it is what stays of hours of training
        _sync(work)
        os.replace(work, self.root / name)
        _sync_one(self.root)
        remember_whole(self.root / name, manifest)
        return Artifact(self.root / name, manifest["key"], manifest)

    def adopt(self, manifest: dict[str, Any], fetch: Callable[[str], BinaryIO]) -> bool:
        """Publish an artifact of another store; False where it is here and whole already.

        `fetch` opens one of its files, by its name in the manifest, whose checksum it is held to while it is copied.
        UserError: the manifest is damaged, or a file is not what it says; nothing of it is published then.
        """
        check((fault := manifest_fault(manifest)) is None, "manifest", manifest.get("key"), str(fault))
        name = folder_name(manifest["stage"], manifest["key"])
        work = self.root / "work" / f"{name}.pull"
        with self._explained(f"pulling {name}"), self._locked(name):
            if self._published(name, manifest["key"]) is not None:
                return False
            shutil.rmtree(work, ignore_errors=True)
            try:
                for file, entry in manifest["files"].items():
                    (work / file).parent.mkdir(parents=True, exist_ok=True)
                    with fetch(file) as source, (work / file).open("wb") as target:
                        found = _copy(source, target, entry["bytes"])
                    check(found == entry["sha256"], "file", f"{name}/{file}", "has a wrong checksum there")
                work.mkdir(parents=True, exist_ok=True)
                self._publish(work, name, manifest)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return True

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.root / "locks" / f"{name}.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"wait   {name}  is being made by another process")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn the two ways a disk refuses, wherever they arise below, into one clear line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            code = getattr(error, "errno", None)
            # safetensors and torch pass a full disk on as text
            if code in FULL or any(os.strerror(full) in str(error) for full in FULL):
                raise UserError(
                    f"artifacts={str(self.root)!r}: no space left while {doing}; "
                    "free some, or choose a folder on another disk"
                ) from error
            ours = Path(getattr(error, "filename", None) or "/").is_relative_to(self.root)
            refused = ours and code in (errno.EACCES, errno.EPERM, errno.EROFS)
            if refused or (doing == "opening the store" and isinstance(error, OSError)):
                raise UserError(
                    f"artifacts={str(self.root)!r}: must be a folder that can be written "
                    f"({os.strerror(code) if code else error})"
                ) from error
            raise


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    left = (folder / MANIFEST, folder / CHECKPOINT)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not {path, *path.parents} & {*left})
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
    }


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> str:
    """Copy `size` bytes, and one more where there are more, which no checksum then fits; the sha256 of what came."""
    digest, left = hashlib.sha256(), size + 1
    while left and (part := source.read(min(left, 2**20))):
        digest.update(part)
        target.write(part)
        left -= len(part)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """fsync every file and folder below, children first, so that the rename never precedes the content."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_one(Path(path) / name)
        _sync_one(Path(path))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a hidden place beside `path` for a file or a folder, which becomes `path` where the block ends well.

    So a reader sees the old or the new one, never a part. What a killed process has left on its way to `path` goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*.partial"):
        maker = left.name.rsplit(".", 3)[1]
        if maker.isdecimal() and not psutil.pid_exists(int(maker)):
            _remove(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new one, never a part."""
    with aside(path) as temporary, temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def claim(path: Path, settings: Mapping[str, Any], holds: str) -> None:
    """Note in `path` what its folder is used for, so that the same command goes on there and no other does.

    UserError: the note cannot be read, or the folder `holds` something of other settings.
    """
    own = json.loads(json.dumps(settings, default=str))
    if not path.is_file():
        write_atomically(path, json.dumps(own, indent=1))
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        line = f"folder={str(path.parent)!r}: its {path.name} cannot be read; choose another folder"
        raise UserError(line) from error
    differ = ", ".join(f"{k}={there.get(k)!r}, not {v!r}" for k, v in own.items() if there.get(k) != v)
    check(not differ, "folder", str(path.parent), f"holds {holds} ({differ}); choose another folder")
