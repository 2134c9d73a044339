"""How a process treats its machine: it keeps freed memory, and its threads sleep while they wait.

**Memory.** glibc gives each large tensor pages of its own and returns them when it is freed, so a step that makes and
frees a gigabyte of activations takes hundreds of thousands of page faults, and on two cores half of its time was the
kernel handing out zeroed pages. Told to keep its memory, the same process takes almost none: `benchmarks/allocator.py`.
The price: its resident size stays at its peak until it ends.

**Waiting.** OpenMP's threads spin by default while they wait for each other. Beside another process they spin on cores
that the awaited thread needs (`benchmarks/busy.py`).
"""

from __future__ import annotations

import ctypes
import os
import platform

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
