"""Killed, stopped, crowded, refused and without room: the road ends where an unbroken one ends, bit for bit.

So does every command that makes something. `make test-faults` kills more often, KDCDIFF_KILLS says how many times, and
the long ones as well.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .commands import COMMANDS, LONG, Command, Given, given, left_behind
from .road import CHECKPOINT, Roads, outcome, rests, roads

KILLS = int(os.environ.get("KDCDIFF_KILLS", "2"))


@pytest.fixture(scope="module")
def server():
    with roads() as server:
        yield server


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory) -> tuple[dict[str, str], float]:
    """What an unbroken road leaves, and the seconds that it takes."""
    root = tmp_path_factory.mktemp("unbroken") / "road"
    start = time.perf_counter()
    assert server.go(root) == 0, log(root)
    assert len(outcome(root)) > 20 and rests(root) == []
    return outcome(root), time.perf_counter() - start


def log(root: Path) -> str:
    return Path(f"{root}.log").read_text()


def ends_as(server: Roads, root: Path, unbroken: tuple[dict[str, str], float]) -> None:
    """Finish the road, and compare."""
    assert server.go(root) == 0, log(root)
    assert outcome(root) == unbroken[0]
    assert rests(root) == []


def wait_for(pattern: str, root: Path) -> None:
    end = time.monotonic() + 300
    while not list(root.glob(pattern)):
        assert time.monotonic() < end, log(root)
        time.sleep(0.005)


def test_a_road_killed_at_random_moments_ends_where_an_unbroken_one_ends(server, unbroken, tmp_path):
    """Each kill falls at a moment of what is left of the road, until it has been killed KILLS times."""
    chance, root, killed, number = random.Random(0), tmp_path / "road0", 0, 0
    published: set[Path] = set()
    while killed < KILLS:
        child = server.start(root)
        time.sleep(chance.uniform(0, unbroken[1]))
        code = server.kill(child)
        assert code in (0, -signal.SIGKILL), log(root)
        killed += code != 0
        assert published <= set(root.glob("artifacts/*/manifest.json")), "nothing published is lost"
        published = set(root.glob("artifacts/*/manifest.json"))
        if code == 0:
            assert outcome(root) == unbroken[0] and rests(root) == []
            number += 1
            root, published = tmp_path / f"road{number}", set()
    ends_as(server, root, unbroken)


def killed_at_random(server: Roads, root: Path, name: str, command: Command, made: Given, times: int) -> None:
    """Kill a command `times` times at random moments of what it takes unbroken, and finish it: the same outcome."""
    chance, whole = random.Random(name), root / "unbroken"
    words = [name, *command.words(made, whole)]
    start = time.perf_counter()
    assert server.wait(server.command(whole, words)) == 0, log(whole)
    seconds, unbroken = time.perf_counter() - start, command.outcome(whole)
    assert len(unbroken) >= command.least and left_behind(whole) == []
    broken = root / "broken"
    words = [name, *command.words(made, broken)]
    for _ in range(times):
        child = server.command(broken, words)
        time.sleep(chance.uniform(0, seconds))
        if (code := server.kill(child)) == 0:
            break
        assert code == -signal.SIGKILL, log(broken)
    done = server.wait(server.command(broken, words))
    there = any(words in log(broken) for words in ("must be a new or empty folder", "must not exist yet"))
    assert done == 0 or (done == 2 and there), log(broken)  # a new model is whole once it is there: none writes over it
    assert command.outcome(broken) == unbroken
    assert left_behind(broken) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Given:
    return given(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_given_again_ends_where_an_unbroken_one_ends(server, made, tmp_path, name):
    killed_at_random(server, tmp_path, name, COMMANDS[name], made, max(1, KILLS // 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_so_does_one_that_takes_long(server, made, small_book, tmp_path, name):
    cells = ["print(sum(range(100)))", "md:Words, and {cite}`kdc`."]
    book = small_book({"01-a": cells, "02-b": [*cells, "md:```{bibliography}\n```"]}, light=True)
    whole = dataclasses.replace(made, book=book)
    killed_at_random(server, tmp_path, name, LONG[name], whole, max(1, KILLS // 10))


def test_a_clock_that_is_set_back_changes_nothing(server, unbroken, tmp_path):
    """What lies there is of a time that is still to come, and goes on all the same: nothing is decided by a date."""
    root = tmp_path / "road"
    child = server.start(root)
    wait_for("artifacts/teacher-*/manifest.json", root)
    server.kill(child)
    later = time.time() + 10 * 365 * 86400
    for path in (root, *root.rglob("*")):
        os.utime(path, (later, later))
    ends_as(server, root, unbroken)
    assert "reused teacher" in log(root), "and nothing is made twice"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_asked_to_end_writes_a_checkpoint_and_says_so(server, tmp_path, number):
    root = tmp_path / "road"
    child = server.start(root, "--steps", "100000")
    wait_for("artifacts/work/student-*/checkpoint/step-*", root)
    os.killpg(child, number)
    assert server.wait(child) == 128 + number
    steps = [int(path.stem.partition("-")[2]) for path in root.glob("artifacts/work/student-*/checkpoint/step-*")]
    assert max(steps) % CHECKPOINT or len(steps) == 2
    assert "interrupted; finished stages are kept" in log(root) and "Traceback" not in log(root)
    assert len(list(root.glob("artifacts/teacher-*/manifest.json"))) == 1
    assert not list(root.glob("artifacts/**/*.partial"))


def test_two_roads_at_once_share_one_store(server, unbroken, tmp_path):
    root = tmp_path / "road"
    children = [server.start(root), server.start(root)]
    wait_for("artifacts/continual-*/manifest.json", root)
    assert server.kill(children[1]) in (0, -signal.SIGKILL)
    assert server.wait(children[0]) == 0, log(root)
    ends_as(server, root, unbroken)


def test_a_store_that_becomes_read_only_loses_nothing(server, unbroken, tmp_path):
    """As an ordinary user: the superuser may write anywhere."""
    root = tmp_path / "road"
    root.mkdir()
    for folder in (*tmp_path.parents, tmp_path):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    root.chmod(0o777)
    Path(f"{root}.log").touch(0o666)
    child = server.start(root, "--limit", "user")
    wait_for("artifacts/teacher-*/manifest.json", root)
    folders = [root / "artifacts", *(root / "artifacts").glob("*")]
    for folder in folders:
        folder.chmod(0o555)
    code = server.wait(child)
    assert code in (0, 2) and ("must be a folder that can be written" in log(root)) == (code == 2), log(root)
    assert "Traceback" not in log(root) and list(root.glob("artifacts/teacher-*/manifest.json"))
    for folder in folders:
        folder.chmod(0o777)
    ends_as(server, root, unbroken)


def test_a_largest_file_that_is_too_small_is_one_line(server, unbroken, tmp_path):
    root = tmp_path / "road"
    assert server.go(root, "--limit", "files") == 2
    assert "no space left while building stage" in log(root) and "Traceback" not in log(root)
    ends_as(server, root, unbroken)


def test_a_full_disk_is_one_line(server, unbroken, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "size=700k"  # the teacher, and not all of what follows
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("only the superuser may mount a small disk; a limit on the size of files is tested in any case")
    try:
        assert server.go(disk / "road") == 2
        assert "no space left while building stage" in Path(f"{disk}/road.log").read_text()
        shutil.copytree(disk / "road", tmp_path / "road")
    finally:
        subprocess.run(["umount", disk], check=True)
    ends_as(server, tmp_path / "road", unbroken)
