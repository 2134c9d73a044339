"""Hold the pinned packages against recorded advisories, offline: `make audit ADVISORIES=<folder or zip>`.

The record is a folder or a zip of OSV entries, JSON or YAML: https://github.com/pypa/advisory-database (its `vulns/`),
or OSV's own export for PyPI. Without one there is nothing to compare with, and that is what is said. An advisory holds
for a version that it lists, or that lies in one of its ranges (https://ossf.github.io/osv-schema, "evaluation").
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SKIPPED = """\
audit: skipped: no recorded advisories were named, and nothing is asked of a network here. To record them:
  git clone --depth 1 https://github.com/pypa/advisory-database advisories
  make audit ADVISORIES=advisories/vulns"""


def pinned(lock: Path) -> dict[str, Version]:
    """Read the packages of a lock file and their versions."""
    lines = (line.partition(" #")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    found = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(each.name): Version(str(each.specifier).removeprefix("==")) for each in found}


def entries(record: Path) -> Iterator[dict[str, Any]]:
    """Yield the advisories of a folder or a zip. ValueError: one that cannot be read."""
    if record.is_dir():
        files = ((path.name, path.read_bytes()) for path in sorted(record.rglob("*")) if path.is_file())
        yield from _parsed(files)
    else:
        with zipfile.ZipFile(record) as archive:
            yield from _parsed((name, archive.read(name)) for name in sorted(archive.namelist()))


def _parsed(files: Iterator[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for name, content in files:
        if name.endswith((".json", ".yaml", ".yml")):
            try:
                entry = json.loads(content) if name.endswith(".json") else loader(content).get_single_data()
            except (ValueError, yaml.YAMLError, RecursionError) as error:
                raise ValueError(f"{name} cannot be read ({type(error).__name__})") from error
            if isinstance(entry, dict) and "affected" in entry:
                yield entry


def holds(affected: Mapping[str, Any], version: Version) -> bool:
    """Say whether one `affected` part of an advisory holds for a version."""
    if str(version) in map(str, affected.get("versions", ())):
        return True
    return any(_in_range(each["events"], version) for each in affected.get("ranges", ()) if each["type"] != "GIT")


def _in_range(events: list[Mapping[str, str]], version: Version) -> bool:
    """Walk a range's events in the order of their versions: each turns it on or off from there."""
    inside = False
    for number, kind in sorted((_version(text), kind) for event in events for kind, text in event.items()):
        if kind == "introduced" and version >= number:
            inside = True
        elif (kind == "fixed" and version >= number) or (kind == "last_affected" and version > number):
            inside = False
    return inside


def _version(text: str) -> Version:
    try:
        return Version(str(text))
    except InvalidVersion:  # "0": from the beginning; and what no index would take
        return Version("0")


def audit(lock: Path, record: Path) -> tuple[list[str], str]:
    """Return a line for each advisory that holds, and one about what was compared with what."""
    pins, seen, newest, found = pinned(lock), 0, "", []
    for entry in entries(record):
        if entry.get("withdrawn"):
            continue
        seen, newest = seen + 1, max(newest, str(entry.get("modified", ""))[:10])
        for affected in entry["affected"]:
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in pins and holds(affected, pins[name]):
                words = entry.get("summary") or " ".join(str(entry.get("details", "")).split())[:100]
                found.append(f"{name} {pins[name]}: {entry['id']} ({', '.join(entry.get('aliases', ()))}) {words}")
    return sorted(set(found)), f"{len(pins)} packages, {seen:,} advisories, the newest of {newest or 'no date'}"


def main(words: list[str]) -> int:
    """Print what holds; 1 where something does, 2 where the record cannot be read or is none."""
    if not any(words):
        print(SKIPPED)
        return 0
    try:
        found, compared = audit(LOCK, Path(words[0]).expanduser())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: advisories={words[0]!r}: {error}", file=sys.stderr)
        return 2
    if ", 0 advisories" in compared:
        print(f"error: advisories={words[0]!r}: holds no advisory", file=sys.stderr)
        return 2
    print("\n".join([*found, f"audit: {len(found)} hold ({compared})"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
