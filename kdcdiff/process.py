"""How a process treats its machine: where it computes, that it keeps freed memory, how its threads wait, how it ends.

**Device and dtype.** `use_device` decides where a process and all that it starts compute; networks are placed there by
whoever loads them (`experiments.run.Run`, a command), and everything else follows the networks. The dtype follows the
device: weights stay in float32, and under `computing` the arithmetic of a GPU is in half precision.

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
from typing import TYPE_CHECKING

from kdcdiff.errors import UserError, check

if TYPE_CHECKING:  # the list of commands is to appear without it
    import torch

DEVICES = ("cpu", "cuda")
DEVICE = "KDCDIFF_DEVICE"  # the variable by which kernels and workers know what was decided
FULL = (
    "smaller batches (--batch with --accumulate, --batch-size; -p distill_batch of a run), --checkpointing or a "
    "smaller --resolution need less; --device cpu needs none"
)

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


def use_device(name: str | None = None) -> str:
    """Decide where this process and all that it starts compute, and return it, ``cpu`` or ``cuda``.

    Without a name it is what was named before, or else the GPU where there is one. UserError: there is no GPU.
    """
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = name or os.environ.get(DEVICE) or found
    check(wanted in DEVICES, "device", wanted, f"must be {' or '.join(DEVICES)}")
    check(wanted in ("cpu", found), "device", wanted, "must be cpu here: no GPU is visible")
    if name:
        os.environ[DEVICE] = name
    return wanted


def compute_dtype(device: str | torch.device) -> torch.dtype:
    """Return the dtype of arithmetic on a device: bfloat16 on a GPU that has it, else float16 there; float32 elsewhere.

    A CPU's half precision is slower than its float32 wherever it is emulated, and its figures are to be the same on any
    machine.
    """
    import torch

    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def computing(device: str | torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in `compute_dtype` while it lasts: autocast, so that networks keep the weights that they were given."""
    import torch

    dtype = compute_dtype(device)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype)


@contextlib.contextmanager
def on_full_gpu() -> Iterator[None]:
    """Let a GPU without memory for the block, or for the function that this decorates, be one line: a UserError."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for it
            raise
        raise UserError(f"the GPU's memory is full ({str(error).partition('. GPU')[0]}): {FULL}") from None
