"""Freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from kdcdiff.allocator import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
def step():
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB, above the largest size that glibc learns to keep
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> tuple[bool, int]:
    out = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True).stdout
    kept, count = out.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator takes these settings")
def test_tensors_of_a_second_step_reuse_the_pages_of_the_first():
    (kept, few), (_, many) = faults("keep"), faults("plain")
    assert kept and few * 20 < many
