"""A distillation step on a busy machine: threads that spin while they wait (OpenMP's habit), and threads that sleep.

    python benchmarks/busy.py                    # about 10 minutes on two calm cores
    python benchmarks/busy.py --rounds 3 --steps 4

The step is that of the shipped small stack, batch 16, float32, equation (6), with freed memory kept as every command
keeps it. It is taken alone and beside another process that takes the same step over and over in two threads. All
processes are started once and take turns, round by round; who has no turn is stopped, so a slow minute hits all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

BATCH, SIDE = 16, 64
DEFAULT: dict[str, str] = {}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
MEASURED = {  # name -> threads, and how they wait
    "two threads, default": (2, DEFAULT),
    "two threads, passive": (2, PASSIVE),
    "one thread, passive": (1, PASSIVE),
}
BESIDE = {"alone": None, "beside one that waits by default": DEFAULT, "beside one that waits passively": PASSIVE}


def take_steps(threads: int) -> None:
    """Take as many steps as each line of standard input says, and print the seconds of each as a JSON list."""
    import torch
    from distill import Setup, ours

    from kdcdiff.process import keep_memory
    from kdcdiff.training.losses import KDCLoss

    torch.set_num_threads(threads)
    keep_memory()
    step = ours(Setup("small", torch.float32, BATCH, SIDE), KDCLoss())
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


def start(threads: int, waits: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process that takes steps when told to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--threads", str(threads)]
    return subprocess.Popen(
        command, env=environment | waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def steps(process: subprocess.Popen[str], count: int) -> list[float]:
    """Seconds of each of `count` steps."""
    assert process.stdin and process.stdout
    process.stdin.write(f"{count}\n")
    return json.loads(process.stdout.readline())


@contextlib.contextmanager
def running(process: subprocess.Popen[str] | None) -> Iterator[None]:
    """Let a neighbour run inside the block, and stand still outside."""
    if process:
        process.send_signal(signal.SIGCONT)
    yield
    if process:
        process.send_signal(signal.SIGSTOP)


def measure(rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Median seconds a step, by neighbour and by who is measured."""
    measured = {name: start(*how) for name, how in MEASURED.items()}
    neighbours = {name: None if waits is None else start(2, waits) for name, waits in BESIDE.items()}
    others = [process for process in neighbours.values() if process]
    times: dict[str, dict[str, list[float]]] = {beside: {name: [] for name in MEASURED} for beside in BESIDE}
    try:
        for process in [*measured.values(), *others]:
            steps(process, 3)  # a warm-up, one after another
        for process in others:
            assert process.stdin
            process.stdin.write(f"{10**9}\n")
            process.send_signal(signal.SIGSTOP)
        for _ in range(rounds):
            for beside, neighbour in neighbours.items():
                for name, process in measured.items():
                    with running(neighbour):
                        times[beside][name] += steps(process, count)
    finally:
        for process in [*measured.values(), *others]:
            process.kill()
    return {beside: {name: statistics.median(own) for name, own in row.items()} for beside, row in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a row, of each round")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        take_steps(args.threads)
        return
    print(f"load before: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    found = measure(args.rounds, args.steps)
    print(f"median seconds of {args.rounds} x {args.steps} steps; in brackets, times the first column's, alone")
    print(f"{'':<34}" + "".join(f"{name:>24}" for name in MEASURED))
    reference = found["alone"]["two threads, default"]
    for beside, row in found.items():
        print(f"{beside:<34}" + "".join(f"{s:>15.3f} ({s / reference:5.2f})" for s in row.values()))


if __name__ == "__main__":
    main()
