"""How a process treats its machine: it keeps freed memory, its threads sleep while they wait, and it ends when asked.

**Memory.** glibc gives each large tensor pages of its own and returns them when it is freed, so a step that makes and
frees a gigabyte of activations takes hundreds of thousands of page faults, and on two cores half of its time was the
kernel handing out zeroed pages. Told to keep its memory, the same process takes almost none: `benchmarks/allocator.py`.
The price: its resident size stays at its peak until it ends.

**Waiting.** OpenMP's threads spin by default while they wait for each other. Beside another process they spin on cores
that the awaited thread needs (`benchmarks/busy.py`).

**Ending.** SIGTERM, which schedulers and containers send, ends a command as Ctrl-C does. A training puts both off to
the end of its step, where it can write a checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

MALLOPT = {  # parameter of mallopt(3) -> value
    -4: 0,  # M_MMAP_MAX: no allocation gets a mapping of its own
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the top of the heap is not given back
    -2: 2**28,  # M_TOP_PAD: the heap grows by 256 MiB at a time
}


def keep_memory() -> bool:
    """Tell glibc to keep what is freed; False where the C library is another one, and nothing is changed."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(parameter, value) for parameter, value in MALLOPT.items()])


def wait_passively() -> None:
    """Let this process's OpenMP threads, and those of all that it starts, sleep while they wait.

    A value of OMP_WAIT_POLICY that the user has set stays. OpenMP reads it once, when its library is loaded: call this
    before torch is imported. (libgomp then has GOMP_SPINCOUNT at 0 of itself.)
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM asked this process to end; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the block, where it is run by the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled_by(stop):
        yield


@contextlib.contextmanager
def stop_put_off() -> Iterator[Callable[[], int | None]]:
    """Put SIGINT and SIGTERM off in the block: what is yielded says which came, and a second one raises `Stopped`.

    Whoever asks raises `Stopped` when all is in order; a signal that came too late for that is raised at the end.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise Stopped(number)

    with _handled_by(note):
        yield lambda: came[0] if came else None
    if came:
        raise Stopped(came[0])


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there does Python take signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
