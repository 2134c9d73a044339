"""Keep freed memory in the process: on two cores, half of a training step was the kernel handing out zeroed pages.

glibc gives each large tensor pages of its own and returns them when it is freed, so a step that makes and frees a
gigabyte of activations takes hundreds of thousands of page faults. Told to keep its memory, the same process takes
almost none (`benchmarks/allocator.py`). The price: its resident size stays at its peak until it ends.
"""

from __future__ import annotations

import ctypes
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


def passive_environment() -> dict[str, str]:
    """Name the variables with which a child's OpenMP threads sleep while they wait, and leave the cores to others."""
    return {"OMP_WAIT_POLICY": "PASSIVE"}
