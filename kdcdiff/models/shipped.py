"""Pipelines by name, and what ships with the package. Does not import torch."""

from __future__ import annotations

import contextlib
import json
import re
from functools import cache
from pathlib import Path

from kdcdiff.errors import UserError, check
from kdcdiff.provenance import sha256_file

SHIPPED = ("flora", "garden")  # data sets whose teacher ships, by the same name, with a classifier and a CLIP
ASSETS = Path(__file__).parent.parent / "assets"
PIPELINES = f"{', '.join(SHIPPED)}, a pipeline folder or a hub id like owner/name"
UNETS = f"{', '.join(SHIPPED)}, a pipeline or U-Net folder, a .safetensors file or a hub id like owner/name"
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # the last: a safety checker's, in old folders
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
PARTS = ("unet", "vae", "text_encoder")  # of a pipeline: those with weights
UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException", "ConnectionError")
ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (  # errors of the hub's client -> what happened, and what to do
    (("GatedRepoError",), "is gated: accept its licence on its page of the hub, then `hf auth login`"),
    (("DisabledRepoError",), "was disabled on the hub; name another"),
    (("RepositoryNotFoundError",), "is not on the hub, or is private: look at its name again, or `hf auth login`"),
    (
        ("IncompleteSnapshotError",),
        "is half downloaded, and the hub cannot be reached: `hf download {name}` goes on where there is a network",
    ),
    (
        UNREACHED,
        "is not on this machine, and the hub cannot be reached: `hf download {name} --local-dir <folder>` where "
        "there is a network, and name the folder instead",
    ),
)


@cache
def checked_assets(folder: Path) -> Path:
    """Return `folder` once every file in it matches its ``checksums.json``."""
    again = "reinstall the package or run `kdcdiff pretrain`"
    check((folder / "checksums.json").is_file(), "assets", str(folder), f"has no checksums.json; {again}")
    try:
        wanted = dict(json.loads((folder / "checksums.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"assets={str(folder)!r}: checksums.json cannot be read; {again}") from None
    files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")}
    for name in sorted(files | wanted.keys() - {"checksums.json"}):
        check(name in files, "assets", name, f"is missing; {again}")
        if name != "checksums.json":
            check(
                sha256_file(folder / name) == wanted.get(name), "assets", name, f"does not match its checksum; {again}"
            )
    return folder


def shipped(name: str | Path, part: str) -> Path:
    """Return where `part` of what ships as `name` lies: ``pipeline``, ``classifier``, ``clip``, ``attributes``.

    A `name` that does not ship is the part's own folder.
    """
    return checked_assets(ASSETS / name) / part if str(name) in SHIPPED else Path(name)


def shipped_for(dataset: str) -> str:
    """Name what ships that serves a data set: its own, or the first, which others are fine-tuned from."""
    return dataset if dataset in SHIPPED else SHIPPED[0]


def dataset_of(name: str | Path) -> str:
    """Return whose pictures a judge knows that was loaded as `name`: a shipped data set's, or its ``own``."""
    return str(name) if str(name) in SHIPPED else "own"


def assets_key(name: str) -> str:
    """Return one checksum of everything that ships as `name`: what stages name as their outside input."""
    return sha256_file(shipped(name, "checksums.json"))


def find_pipeline(name: str | Path, unet: bool = False) -> Path | None:
    """Return where the pipeline `name` lies: the folder of one of `SHIPPED`, a folder; None for a hub id.

    With `unet` a U-Net's folder or file will do. UserError: none of these.
    """
    if str(name) in SHIPPED:
        return shipped(name, "pipeline")
    path, allowed = Path(name).expanduser(), UNETS if unet else PIPELINES
    there = bool(str(name)) and path.exists()
    check(there or bool(HUB_ID.fullmatch(str(name))), "pipeline", str(name), f"not found; must be {allowed}")
    whole = unet or not there or (path / "model_index.json").is_file()
    check(whole, "pipeline", str(name), f"has no model_index.json; must be {allowed}")
    if there and (path / "model_index.json").is_file():
        check_index(path)
    return path if there else None


def check_index(folder: Path) -> None:
    """Raise UserError unless a pipeline's folder is made of diffusers' and transformers' classes alone.

    A ``model_index.json`` names the module of each part, which is imported: no code but theirs is to run.
    """
    try:
        index = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        told = f"cannot be loaded (its model_index.json is no JSON object: {type(error).__name__})"
        raise UserError(f"pipeline={str(folder)!r}: {told}") from None
    named = index.get("_class_name")
    check(named == "StableDiffusionPipeline", "pipeline", str(folder), f"is a {named}, not a StableDiffusionPipeline")
    for part, place in index.items():
        if isinstance(place, list):
            safe = len(place) == 2 and place[0] in LIBRARIES
            check(safe, "pipeline", str(folder), f"its {part} asks for code of {place[:1]}, which is not run")
            code = not (folder / part).is_dir() or not next((folder / part).glob("*.py"), None)
            check(code, "pipeline", str(folder), f"its {part} brings code, which is not run; remove it")


def hub_advice(name: str, error: BaseException) -> str:
    """Say in a line why the hub's client did not get the model `name`, and what to do about it."""
    told_by = (error, error.__cause__)  # it wraps some of its own
    kinds = {kind.__name__ for one in told_by for kind in type(one).__mro__}
    for names, told in ADVICE:
        if kinds.intersection(names):
            return told.format(name=name)
    return f"is not to be had from the hub ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """Return the first line of what somebody else's error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def torn(folder: Path) -> str:
    """Say what an unfinished download left out of a pipeline's folder; nothing where all of it is there.

    Looked at are the files that the parts' indices name, and whether each has as many bytes as its header says.
    """
    for part in PARTS:
        if not (folder / part / "config.json").is_file():
            return f"{part}/config.json is missing"
        files = sorted((folder / part).glob("*.safetensors"))
        for index in sorted((folder / part).glob("*.safetensors.index*.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                files += [folder / part / str(file) for file in json.loads(index.read_text())["weight_map"].values()]
        if not files and not [*(folder / part).glob("*.bin")]:
            return f"{part} has no weights in safetensors"
        for file in dict.fromkeys(files):
            if not file.is_file():
                return f"{part}/{file.name} is missing"
            if not _whole(file):
                return f"{part}/{file.name} is cut short"
    return ""


def _whole(file: Path) -> bool:
    """Say whether a safetensors file is as long as its header says: 8 bytes, a JSON object of that length, data."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, file.stat().st_size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError):
            return False
    return file.stat().st_size >= 8 + length + max(ends, default=0)
