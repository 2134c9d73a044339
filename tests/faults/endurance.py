"""Long and large: memory and open files stay where they were, over thousands of executions, reads and rebuilds.

    python -m tests.faults.endurance --chapters 2000 --reads 10000 --rows 1000000 --books 200

Prints a table, writes it with its provenance to `_build/endurance.json`, and exits with 1 where something grew.
`make test-faults` runs it at full length.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from kdcdiff import cli
from kdcdiff.book import runner
from kdcdiff.book.tables import table
from kdcdiff.provenance import provenance, sha256_file
from kdcdiff.store import Store, write_atomically
from kdcdiff.training.replay import LatentReplayBuffer

from ..conftest import REPO, write_book

READERS = 8
CLASSES = 10  # that fill the replay buffer
SHAPE = (4, 4, 4)  # of a latent there
WARM = 0.2  # the share of the turns after which what a process holds is taken as what it needs
GROWTH = 0.05  # of memory from there to the end, and
LEAST = 24 * 2**20  # bytes that an allocator may keep in any case


@dataclass
class Row:
    """A line of the table: how many turns of what, what they held after the warm-up and at the end, and the verdict."""

    what: str
    n: int
    seconds: float
    mib_before: float
    mib_after: float
    files_before: int
    files_after: int
    holds: bool
    note: str = ""


def held() -> tuple[int, int]:
    """Count this process's resident bytes, and its open files and sockets."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds()


def repeated(turn: Callable[[int], None], n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Take `n` turns; return what the process holds after the first `WARM` of them, and at the end."""
    before = held()
    for number in range(n):
        if number == int(WARM * n):
            before = held()
        turn(number)
    return before, held()


def row(what: str, n: int, start: float, before: tuple[int, int], after: tuple[int, int], note: str = "") -> Row:
    """Judge: no more open files than after the warm-up, and no more memory than `GROWTH` and `LEAST` allow."""
    holds = after[1] <= before[1] and after[0] - before[0] <= max(LEAST, GROWTH * before[0])
    mib = before[0] / 2**20, after[0] / 2**20
    return Row(what, n, time.perf_counter() - start, *mib, before[1], after[1], holds, note)


# --- the four -------------------------------------------------------------------------------------------------------


def chapters(n: int, root: Path) -> Row:
    """Execute a tiny chapter `n` times by papermill, in a kernel of its own each time, and publish it."""
    book, start = write_book(root / "chapters", {"01-a": ["print(6 * 7)"]}, light=True), time.perf_counter()

    def turn(number: int) -> None:
        with redirect_stdout(io.StringIO()):
            runner.run(book, profile="smoke", force=True)

    before, after = repeated(turn, n)
    kernels = [each for each in psutil.Process().children(recursive=True) if "ipykernel" in " ".join(each.cmdline())]
    left = len(kernels)  # and not multiprocessing's own helper
    judged = row("papermill executions of a chapter", n, start, before, after, f"{left} kernels left")
    judged.holds &= left == 0
    return judged


def _read(root: Path, n: int, told: Any) -> None:
    def make(folder: Path, *, number: int) -> None:
        (folder / "n.bin").write_bytes(bytes([number]) * 100_000)

    def turn(number: int) -> None:
        store = Store(root, say=lambda line: None)  # opened anew each time
        got = store.get("number", make, settings={"number": number % 7})
        assert (got / "n.bin").read_bytes()[0] == number % 7

    told.put(repeated(turn, n))


def reads(n: int, root: Path) -> Row:
    """Read 7 artifacts of one store `n` times, by 8 processes at once, which race to make them first."""
    start, spawned = time.perf_counter(), multiprocessing.get_context("spawn")
    told = spawned.Queue()
    readers = [spawned.Process(target=_read, args=(root / "store", n // READERS, told)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    found = [told.get(timeout=3600) for _ in readers]
    for reader in readers:
        reader.join()
    worst = max(found, key=lambda pair: pair[1][0] - pair[0][0])
    judged = row(f"reads of a store by {READERS} processes", n // READERS * READERS, start, *worst, "the worst of them")
    made = len(list((root / "store").glob("number-*/manifest.json")))
    judged.holds &= made == 7 and all(reader.exitcode == 0 for reader in readers)
    judged.holds &= all(after[1] <= before[1] for before, after in found)
    return judged


def _fill(folder: Path, rows: int, told: Any) -> None:
    """Add class after class to a buffer on disk and save it after each, going on where it was killed."""
    before = held()
    there = (folder / "saved" / "buffer.json").is_file()
    disk = folder / "rows.bin"
    buffer = LatentReplayBuffer.load(folder / "saved", disk) if there else LatentReplayBuffer(rows, disk=disk)
    for number in range(len(buffer.counts), CLASSES):
        drawn = torch.Generator().manual_seed(number)
        latents = torch.randn(rows // CLASSES, *SHAPE, generator=drawn)
        buffer.add_class(f"class {number}", latents, [f"a class {number}"] * len(latents))
        buffer.save(folder / "saved")
    told.put((before, held(), len(buffer)))


def buffer(rows: int, root: Path) -> Row:
    """Fill a replay buffer with `rows` latents; once killed while it saves the half of them, and filled on."""
    start, spawned = time.perf_counter(), multiprocessing.get_context("spawn")
    told, ends = spawned.Queue(), []
    for name in ("unbroken", "broken"):
        saved = root / name / "saved"
        if name == "broken":
            filler = spawned.Process(target=_fill, args=(root / name, rows, told))
            filler.start()
            while _classes(saved) < CLASSES // 2 or not (saved / "rows.partial").exists():
                assert filler.is_alive(), "it ended before it could be killed"
                time.sleep(0.001)
            assert filler.pid is not None
            os.kill(filler.pid, signal.SIGKILL)
            filler.join()
        filler = spawned.Process(target=_fill, args=(root / name, rows, told))
        filler.start()
        before, after, filled = told.get(timeout=3600)
        filler.join()
        ends.append({file.name: sha256_file(file) for file in sorted(saved.iterdir())})
    judged = row("rows of a replay buffer, killed half-way", filled, start, before, after)
    apiece = rows // CLASSES * SHAPE[0] * SHAPE[1] * SHAPE[2] * 4
    index = 40 * rows  # places, keys, captions and their order, in memory
    judged.holds = ends[0] == ends[1] and len(ends[0]) == 3 and filled == rows // CLASSES * CLASSES
    judged.holds &= after[0] - before[0] < LEAST + 3 * apiece + 2 * index
    judged.note = f"{'the same' if ends[0] == ends[1] else 'another'} end; {apiece / 2**20:.0f} MiB arrive at a time"
    return judged


def _classes(saved: Path) -> int:
    try:
        return len(json.loads((saved / "buffer.json").read_text())["counts"])
    except (OSError, ValueError):
        return 0


def _stats(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a book's folder but the record of costs, which each run writes."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != "costs.json")
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def books(n: int, root: Path, book: Path | None = None) -> Row:
    """Run and build a book `n` times with nothing changed, as `make book` does: nothing is made, and nothing grows."""
    cells = {"01-a": ["print(6 * 7)", "md:Words, and {cite}`kdc`.\n\n```{bibliography}\n```"]}
    own = book or write_book(root / "book", cells, light=True)

    def turn(number: int) -> None:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            codes = cli.main(["run", "--root", str(own), "--profile", "smoke"]), cli.main(["build", "--root", str(own)])
        assert codes == (0, 0), said.getvalue()
        assert number < 0 or ("\n0 chapters executed" in said.getvalue() and "is up to date" in said.getvalue())

    turn(-1)  # the one that makes it
    start, there = time.perf_counter(), _stats(own / "_build" / "html") | _stats(own / "artifacts")
    before, after = repeated(turn, n)
    judged = row("books with nothing changed", n, start, before, after, f"{len(there)} files as they were")
    judged.holds &= there == _stats(own / "_build" / "html") | _stats(own / "artifacts")
    return judged


# --- the command ----------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace, root: Path) -> Iterator[Row]:
    """Measure what is asked for, each in a folder of its own."""
    if args.reads:
        yield reads(args.reads, root)
    if args.rows:
        yield buffer(args.rows, root)
    if args.books:
        yield books(args.books, root, args.book)
    if args.chapters:
        yield chapters(args.chapters, root)


def main() -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {"chapters": 2000, "reads": 10_000, "rows": 1_000_000, "books": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=number, help="how many; 0: none (default: %(default)s)")
    parser.add_argument("--book", type=Path, help="an executed book for --books (default: a small one, made here)")
    parser.add_argument("--out", type=Path, default=REPO / "_build" / "endurance.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for each in measured(args, Path(folder)):
            made.append(each)
            print(f"{'holds' if each.holds else 'FAILS'}: {each.n:,} {each.what}, {each.seconds:,.0f} s", flush=True)
    rows = [asdict(each) for each in made]
    print(table(rows, formats={name: ",.1f" for name in ("seconds", "mib_before", "mib_after")}))
    when = {"measured": datetime.now(UTC).isoformat(timespec="minutes"), "warm_up": WARM, "growth": GROWTH}
    write_atomically(args.out, json.dumps(when | {"rows": rows} | provenance(), indent=1) + "\n")
    return 0 if all(each.holds for each in made) else 1


if __name__ == "__main__":
    sys.exit(main())
