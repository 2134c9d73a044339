"""How a process treats its machine: freed memory stays with it, and its threads sleep while they wait."""

import os
import platform
import subprocess
import sys

import pytest

from .imports import REPO

PROGRAM = """
import resource, sys, torch
from kdcdiff.process import keep_memory
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


# passive waiting

POLICY = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
COMMAND = f"import kdcdiff.cli\ntry: kdcdiff.cli.main(['claims', '--help'])\nexcept SystemExit: {POLICY}"
WORKER = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os
from kdcdiff.process import wait_passively
if __name__ == "__main__":
    wait_passively()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        print(pool.submit(os.getenv, "OMP_WAIT_POLICY").result())
"""


def outside(user: str | None) -> dict[str, str]:
    """The environment of a process that the project has not started, where the user has set `user` or nothing."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "MAKEFLAGS")}
    return kept | ({"OMP_WAIT_POLICY": user} if user else {}) | {"PYTHONPATH": str(REPO)}


def last_line(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("user", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_every_process_waits_passively_unless_the_user_says_otherwise(user, policy, tmp_path):
    environment = outside(user)
    assert last_line([sys.executable, "-c", COMMAND], environment) == policy, "kdcdiff"
    (tmp_path / "worker.py").write_text(WORKER)
    assert last_line([sys.executable, str(tmp_path / "worker.py")], environment) == policy, "a worker"
    make = ["make", "--no-print-directory", "--eval", "policy: ; @echo $$OMP_WAIT_POLICY", "policy"]
    assert last_line(make, environment) == policy, "make test, make book"


def test_the_tests_wait_passively_without_make():
    """pytest imports the package of the tests before its conftest, and so before torch."""
    code = f"import tests, sys\nassert 'torch' not in sys.modules\n{POLICY}"
    assert last_line([sys.executable, "-c", code], outside(None)) == "PASSIVE"
    assert os.environ["OMP_WAIT_POLICY"]


def test_openmp_learns_of_it():
    """It reads the variable once, when torch loads it: a command has set it by then. libgomp then does not spin."""
    code = "from kdcdiff.process import wait_passively\nwait_passively()\nimport torch"
    environment = outside(None) | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP here than libgomp")
    assert "GOMP_SPINCOUNT = '0'" in done.stderr
