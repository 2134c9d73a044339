"""`kdcdiff doctor`: each item tells what is wrong, one fault is enough for exit code 1, and torch is loaded late."""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from kdcdiff import cli
from kdcdiff.cli import doctor
from kdcdiff.errors import UserError
from kdcdiff.store import Store


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(root=tmp_path, artifacts=Path("artifacts"))


def test_one_fault_is_enough_and_the_rest_is_still_told(monkeypatch, capsys):
    def broken(_):
        raise OSError("two\nlines")

    def wrong(_):
        raise doctor.Fault("too old")

    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda _: "fine", "b": broken, "c": wrong})
    assert cli.main(["doctor"]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("kdcdiff ")
    assert [line.split() for line in lines[:3]] == [
        ["OK", "a", "fine"],
        ["FAIL", "b", "OSError:", "two", "lines"],
        ["FAIL", "c", "too", "old"],
    ]
    assert lines[3:] == ["2 of 3 items fail"]
    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda _: "fine"})
    assert cli.main(["doctor"]) == 0 and capsys.readouterr().out.endswith("all is well\n")


def test_packages_are_compared_with_the_lock(args):
    with pytest.raises(doctor.Fault, match="no requirements.lock"):
        doctor._packages(args)
    lock = args.root / "requirements.lock"
    lock.write_text(f"# pins\npytest=={importlib.metadata.version('pytest')}  # tests\n\nthop==0.1.1.post2209072238\n")
    assert doctor._packages(args) == "2 as in requirements.lock"
    lock.write_text("pytest==0.1\nno-such-package==1\n")
    with pytest.raises(doctor.Fault, match=r"pytest [\d.]+, not ==0.1; no-such-package is missing: `make setup`"):
        doctor._packages(args)


def test_an_old_interpreter_fails(args, monkeypatch):
    assert "3." in doctor._python(args)
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    with pytest.raises(doctor.Fault, match="3.11 or later"):
        doctor._python(args)


def test_the_store_is_written_to_and_read_to_the_last_byte(args):
    assert doctor._store(args) == "artifacts: none yet; it can be made"
    assert not (args.root / "artifacts").exists(), "to look is not to make"
    made = Store(args.root / "artifacts").get("numbers", lambda folder: (folder / "n.txt").write_text("7") and None)
    assert doctor._store(args) == "artifacts: writable, 1 artifacts, all whole"
    (made / "n.txt").write_text("8")
    with pytest.raises(doctor.Fault, match=f"damaged.*: {made.path.name}"):
        doctor._store(args)


def test_a_store_that_cannot_be_opened_fails(args):
    (args.root / "artifacts").write_text("")
    with pytest.raises(UserError, match="must be a folder that can be written"):
        doctor._store(args)


def test_too_little_is_a_fault(args, monkeypatch):
    assert doctor._enough(3 * 2**30, 2.0, "free") == "3.0 GiB free"
    with pytest.raises(doctor.Fault, match="1.0 GiB free; 2.0 are needed"):
        doctor._enough(2**30, 2.0, "free")
    assert doctor._disk(args).endswith("GiB free where the store lies")


def test_a_torchvision_that_does_not_load_is_told_with_torchs_build(args, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(doctor.Fault, match=r"torch 2\.[^ ]+, and torchvision cannot be loaded \(.*`make setup`"):
        doctor._torch(args)


def test_a_gpu_that_torch_cannot_use_is_a_fault_and_none_is_not(args, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)
    assert doctor._gpu(args) == "none: all runs on the CPU"
    monkeypatch.setattr(doctor.Path, "exists", lambda path: "nvidia" in str(path))
    with pytest.raises(doctor.Fault, match="cannot use it"):
        doctor._gpu(args)


def test_a_kernel_that_is_not_there_is_a_fault(args, monkeypatch):
    monkeypatch.setattr(doctor, "KERNEL", "no-such-kernel")
    with pytest.raises(doctor.Fault, match="'no-such-kernel' does not start"):
        doctor._kernel(args)


def test_torch_is_loaded_only_for_the_items_that_ask_it(tmp_path):
    """And what needs no torch is told before."""
    code = (
        "import sys\nfrom kdcdiff.cli import doctor, main\n"
        "for late in ('torch', 'GPU', 'kernel'): del doctor.CHECKS[late]\n"
        "main(['doctor'])\nprint(*doctor.CHECKS, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.endswith("interpreter packages disk memory store False\n"), done.stdout
    assert list(doctor.CHECKS)[-3:] == ["torch", "GPU", "kernel"]
