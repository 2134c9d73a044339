"""What the book took: time and memory of each chapter and of each stage, as figures and as tables."""

from __future__ import annotations

from typing import Any

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.results import Results
from kdcdiff.book.tables import Table, table
from kdcdiff.book.toc import Book

Costs = list[dict[str, Any]]


def chapter_costs(book: Book) -> Costs:
    """Read what each chapter took from its executed copy: seconds, peak_bytes, profile, device, finished."""
    rows = []
    for chapter in book.chapters():
        copy = book.staged / chapter.path
        made = notebooks.read(copy).metadata.get("kdcdiff", {}) if copy.exists() else {}
        status = made.get("status", "failed" if copy.exists() else "not run")
        keys = ("seconds", "peak_bytes", "profile", "device", "finished")
        rows.append({"chapter": chapter.name, "status": status} | {key: made.get(key) for key in keys})
    return rows


def stage_costs(book: Book) -> Costs:
    """Add up what each stage took when it was made: seconds and bytes of its artifacts together, the largest peak."""
    stages: dict[str, dict[str, Any]] = {}
    for entry in Results(book.results).stages():
        fresh = {"chapter": entry["chapters"][0], "artifacts": 0, "seconds": 0.0, "peak_bytes": 0, "bytes": 0}
        row = stages.setdefault(entry["stage"], {"stage": entry["stage"]} | fresh)
        row["artifacts"] += 1
        row["seconds"] += entry["seconds"]
        row["bytes"] += entry["bytes"]
        row["peak_bytes"] = max(row["peak_bytes"], entry["peak_bytes"])
    return list(stages.values())


def chapter_table(rows: Costs) -> Table:
    return table(
        [
            {
                "chapter": row["chapter"],
                "status": row["status"],
                "profile": row["profile"],
                "device": row["device"],
                "seconds": row["seconds"],
                "peak GiB": _gib(row["peak_bytes"]),
                "finished (UTC)": (row["finished"] or "")[:16].replace("T", " "),
            }
            for row in rows
        ],
        formats={"seconds": ",.0f"},
    )


def stage_table(rows: Costs) -> Table:
    """Lay out the stages, and all of them together: the sum of their times, the largest of their peaks."""
    total = {
        "stage": "all stages",
        "chapter": None,
        "artifacts": sum(row["artifacts"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "peak_bytes": max((row["peak_bytes"] for row in rows), default=0),
        "bytes": sum(row["bytes"] for row in rows),
    }
    return table(
        [
            {
                "stage": row["stage"],
                "first read in": row["chapter"],
                "artifacts": row["artifacts"],
                "seconds": float(row["seconds"]),
                "peak GiB": _gib(row["peak_bytes"]),
                "MiB on disk": row["bytes"] / 2**20,
            }
            for row in [*rows, total]
        ],
        formats={"seconds": ",.1f", "MiB on disk": ",.1f"},
    )


def _gib(peak_bytes: int | None) -> float | None:
    return None if peak_bytes is None else peak_bytes / 2**30
