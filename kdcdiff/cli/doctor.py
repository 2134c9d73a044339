"""`kdcdiff doctor`: check what the book needs: OK or FAIL for each item, to be pasted into a report.

What is quick comes first, and torch is loaded only for the items that ask it. Exit code 1 if any item fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from kdcdiff import __version__
from kdcdiff.errors import UserError
from kdcdiff.provenance import commit

PYTHON = (3, 11)
DISK = 2.0  # GiB that must be free: the store and the pages of a book at mini, with room for another
MEMORY = 4.5  # GiB that must be available: a full-size U-Net is timed at 4.3
KERNEL = "kdcdiff"
START = 60  # seconds that a kernel may take to start


class Fault(Exception):
    """An item that fails. The message says what was found and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=".", help="the book's folder (default: the working folder)")
    artifacts = "the store's folder, relative to the book (default: %(default)s)"
    parser.add_argument("--artifacts", type=Path, default="artifacts", help=artifacts)


def run(args: argparse.Namespace) -> int:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    print(f"kdcdiff {__version__}, commit {(commit() or 'none')[:12]}, {system}, {os.cpu_count()} cores")
    failed = 0
    for item, check in CHECKS.items():
        try:
            word, said = "OK", check(args)
        except Exception as error:  # whatever is broken here is an item's answer
            word, said = "FAIL", _line(error)
            failed += 1
        print(f"{word:4}  {item:11}  {said}", flush=True)
    print("all is well" if not failed else f"{failed} of {len(CHECKS)} items fail")
    return 1 if failed else 0


def _line(error: Exception) -> str:
    """Say an error in one line; its kind too, unless it was raised to be read."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Fault | UserError) else f"{type(error).__name__}: {text}"


def _python(args: argparse.Namespace) -> str:
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < PYTHON:
        raise Fault(f"{found}: {'.'.join(map(str, PYTHON))} or later is needed")
    return found


def _packages(args: argparse.Namespace) -> str:
    """Compare what is installed with the lock file; a build's own label (2.13.0+cpu) makes no other version."""
    lock = args.root / "requirements.lock"
    if not lock.is_file():
        raise Fault("no requirements.lock in the book's folder (--root)")
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    pinned = [Requirement(line) for line in lines if line]
    other = []
    for package in pinned:
        try:
            found = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            other.append(f"{package.name} is missing")
            continue
        if found not in package.specifier:
            other.append(f"{package.name} {found}, not {package.specifier}")
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        raise Fault(f"{'; '.join(other[:5])}{more}: `make setup`")
    return f"{len(pinned)} as in requirements.lock"


def _store(args: argparse.Namespace) -> str:
    """Write to the store, and read every byte that lies in it."""
    root = _root(args)
    if not root.exists():
        if not os.access(_existing(root), os.W_OK):
            raise Fault(f"{args.artifacts} cannot be made there")
        return f"{args.artifacts}: none yet; it can be made"

    from kdcdiff.store import Store
    from kdcdiff.upkeep import entries

    Store(root, say=lambda _: None)  # refuses a folder that cannot be written
    found = [entry for entry in entries(root, hashed=True) if entry.state in ("published", "damaged")]
    damaged = [entry.name for entry in found if entry.fault]
    if damaged:
        raise Fault(f"damaged, and made again when asked for: {', '.join(damaged)}")
    return f"{args.artifacts}: writable, {len(found)} artifacts, all whole"


def _disk(args: argparse.Namespace) -> str:
    return _enough(shutil.disk_usage(_existing(_root(args))).free, DISK, "free where the store lies")


def _memory(args: argparse.Namespace) -> str:
    return _enough(psutil.virtual_memory().available, MEMORY, "available")


def _enough(have: int, need: float, where: str) -> str:
    if have < need * 2**30:
        raise Fault(f"{have / 2**30:.1f} GiB {where}; {need} are needed")
    return f"{have / 2**30:.1f} GiB {where}"


def _torch(args: argparse.Namespace) -> str:
    """Load torch and torchvision, which fails where their builds do not fit together."""
    import torch

    try:
        import torchvision
    except Exception as error:
        said = f"torch {torch.__version__}, and torchvision cannot be loaded ({_line(error)}): `make setup`"
        raise Fault(said) from None
    builds = {torch: torch.version.cuda, torchvision: torchvision.version.cuda}
    return ", ".join(
        f"{library.__name__} {library.__version__} for {f'CUDA {cuda}' if cuda else 'the CPU'}"
        for library, cuda in builds.items()
    )


def _gpu(args: argparse.Namespace) -> str:
    """Compute on the GPU where there is one; a GPU that torch cannot use is a fault, none is not."""
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
        return f"{name}, {memory / 2**30:.0f} GiB, of {torch.cuda.device_count()}"
    if Path("/proc/driver/nvidia/version").exists():
        raise Fault(f"there is one, and torch {torch.__version__} cannot use it: install the build for its CUDA")
    return "none: all runs on the CPU"


def _kernel(args: argparse.Namespace) -> str:
    """Start the Jupyter kernel that the notebooks name, and ask whose interpreter it is."""
    import nbformat
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell("import sys; print(sys.prefix, end='')")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    quiet = ["--log-level=CRITICAL"]
    try:
        NotebookClient(
            notebook, kernel_name=KERNEL, timeout=START, startup_timeout=START, extra_arguments=quiet
        ).execute()
    except Exception as error:
        raise Fault(f"{KERNEL!r} does not start ({_line(error)}): `make setup`") from None
    if not os.path.samefile(notebook.cells[0].outputs[0].text, sys.prefix):
        raise Fault(f"{KERNEL!r} is another environment's: `make setup`, or `make book`, which brings its own")
    return f"{KERNEL!r} starts"


def _root(args: argparse.Namespace) -> Path:
    return Path(args.root).resolve() / args.artifacts.expanduser()


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


CHECKS: dict[str, Callable[[argparse.Namespace], str]] = {
    "interpreter": _python,
    "packages": _packages,
    "disk": _disk,
    "memory": _memory,
    "store": _store,
    "torch": _torch,
    "GPU": _gpu,
    "kernel": _kernel,
}
