"""Every figure that a chapter reports, recorded once under a dotted name in one file, `_build/results.json`.

    {"results": {"teacher.class_accuracy": {"value": 0.93, "interval": [0.9, 0.96], "n": 400, ...}, ...},
     "stages": {"<key>": {"stage": "teacher", "seconds": 81.2, "chapters": ["baselines"], ...}, ...}}

Glue, tables, the judge and the cost table read it. `stage.<name>.seconds` and `stage.<name>.peak_bytes` are
derived: the sum, and the largest, over the artifacts of that stage that the chapters read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdcdiff.errors import UserError, check
from kdcdiff.metrics.estimate import Estimate, as_estimate
from kdcdiff.store import Artifact, write_atomically

_KEYS = {  # what the entries of the file have
    "results": {"value", "interval", "chapter"},
    "stages": {"stage", "seconds", "peak_bytes", "device", "bytes", "chapters"},
}
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure: its value, what it is counted in, how sure it is, and where it was made."""

    name: str
    value: float  # a Python float (or int, for counts)
    unit: str  # "" for a pure number or a share of 1
    interval: tuple[float, float] | None = None  # 95 %, unless the chapter says otherwise
    n: int | None = None  # samples behind the value
    profile: str = ""
    dataset: str = ""
    seed: int | None = None
    device: str = ""
    chapter: str = ""  # by its slug
    replicates: tuple[float, ...] = ()  # of a mean over seeds or orders, each one's value


class Results:
    """The results file at `path`; several processes may write it at once. Created when first written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def begin(self, chapter: str) -> None:
        """Forget what `chapter` recorded before: it is about to run again."""
        with self._changed() as data:
            _forget(data, lambda owner: owner == chapter)

    def keep(self, chapters: Iterable[str]) -> None:
        """Forget the results of chapters that are not among `chapters`."""
        kept = set(chapters)
        if self.path.exists():
            with self._changed() as data:
                _forget(data, lambda owner: owner not in kept)

    def record(self, name: str, value: Estimate | float, *, unit: str = "", **where: Any) -> Result:
        """Write one figure; an `Estimate` brings its interval, count and unit.

        `where`: profile, dataset, seed, device, chapter. An exact figure, and one whose uncertainty is unknown, have no
        interval. ValueError: a name that is not dotted words, a value that is not finite, an interval that runs
        backwards, or a name that is taken, by this chapter with another value or by another chapter.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r}: a result's name is dotted words of letters, digits, - and _")
        e = as_estimate(value)
        known = not e.is_exact and math.isfinite(e.low) and math.isfinite(e.high)
        interval = (_number(name, e.low), _number(name, e.high)) if known else None
        if interval and interval[0] > interval[1]:
            raise ValueError(f"{name}: its interval {interval} runs backwards")
        count, each = e.n if e.n is None else int(e.n), tuple(_number(name, x) for x in e.replicates)
        result = Result(name, _number(name, e.value), unit or e.unit, interval, count, replicates=each, **where)
        with self._changed() as data:
            entry = _entry(result)
            before = data["results"].setdefault(name, entry)
            if before != entry:
                owner = before.get("chapter")
                whose = "twice in this chapter" if owner == result.chapter else f"by chapter {owner!r} before"
                raise ValueError(f"{name}={result.value!r}: recorded {whose}, as {before['value']!r}")
        return result

    def use(self, artifact: Artifact, chapter: str) -> None:
        """Note that `chapter` read `artifact`, and what that cost to make."""
        cost = {name: artifact.manifest[name] for name in ("stage", "seconds", "peak_bytes", "device")}
        with self._changed() as data:
            entry = data["stages"].setdefault(artifact.key, cost | {"bytes": artifact.bytes, "chapters": []})
            entry.update(cost)
            if chapter not in entry["chapters"]:
                entry["chapters"].append(chapter)

    def stages(self) -> list[dict[str, Any]]:
        """List the artifacts that the chapters read, with their costs, in the order they were first read."""
        return [{"key": key} | entry for key, entry in _read(self.path)["stages"].items()]

    def chapter(self, name: str) -> dict[str, Any]:
        """Pick the raw entries that chapter `name` owns."""
        return {key: entry for key, entry in _read(self.path)["results"].items() if entry["chapter"] == name}

    @staticmethod
    def load(path: str | Path) -> dict[str, Result]:
        """Read all figures by name, the stages' costs included; none where there is no file yet."""
        data = _read(Path(path))
        results = {}
        for name, entry in data["results"].items():
            interval, each = entry["interval"], tuple(entry.get("replicates", ()))
            results[name] = Result(name, **(entry | {"interval": interval and tuple(interval), "replicates": each}))
        for entry in data["stages"].values():
            for what, unit, join in (("seconds", "s", sum), ("peak_bytes", "B", max)):
                name = f"stage.{entry['stage']}.{what}"
                before = [results[name].value] if name in results else []
                value = join([*before, entry[what]])
                results[name] = Result(name, value, unit, device=entry["device"], chapter=entry["chapters"][0])
        return results

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Lend the file's content, to be changed in place and written back atomically, under a lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = _read(self.path)
            yield data
            write_atomically(self.path, json.dumps(data, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"results": {}, "stages": {}}
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"results={str(path)!r}: is not a results file ({str(error)[:200]})") from None
    whole = isinstance(data, dict) and all(
        isinstance(data.get(part), dict) and all(isinstance(e, dict) and keys <= e.keys() for e in data[part].values())
        for part, keys in _KEYS.items()
    )
    check(whole, "results", str(path), "is not a results file; delete it, and `kdcdiff run` makes it again")
    return data


def _forget(data: dict[str, Any], gone: Callable[[str], bool]) -> None:
    data["results"] = {name: entry for name, entry in data["results"].items() if not gone(entry["chapter"])}
    for entry in data["stages"].values():
        entry["chapters"] = [chapter for chapter in entry["chapters"] if not gone(chapter)]
    data["stages"] = {key: entry for key, entry in data["stages"].items() if entry["chapters"]}


def _entry(result: Result) -> dict[str, Any]:
    entry = dataclasses.asdict(result)
    del entry["name"]
    entry |= {"interval": result.interval and list(result.interval), "replicates": list(result.replicates)}
    return entry


def _number(name: str, value: Any) -> float:
    """Return `value` as a finite Python int or float; tensors and numpy scalars of one element are taken."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: a result is a finite number")
    return value
