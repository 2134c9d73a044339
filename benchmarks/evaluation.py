"""Evaluation and sampling, side by side with what others offer. Prints a table; asserts nothing.

    python benchmarks/evaluation.py                              # both
    python benchmarks/evaluation.py evaluation --images 10000    # ours against torch-fidelity's command line
    python benchmarks/evaluation.py sampling                     # student's time over teacher's, against MACs

evaluation: both run as a process of their own on the same two folders of 64x64 PNG, with the same feature
extractor (a random classifier of the book's shape), FID and KID of 100 subsets of 1,000; wall time and peak
memory of the process and its children. sampling: one U-Net call at Stable Diffusion's size in float32, each network
once a round, with freed memory kept as every chapter keeps it; expected within 5 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from kdcdiff.metrics.estimate import ratio
from kdcdiff.models import complexity, timing
from kdcdiff.process import keep_memory
from kdcdiff.sampling.folder import write

OURS = """
import sys
from benchmarks_common import extractor
from kdcdiff.data.image_folder import ImageFolder
from kdcdiff.metrics import fid_kid
made, real = (fid_kid.extract(ImageFolder(folder), extractor()) for folder in sys.argv[1:3])
print("kid", fid_kid.kid(made, real).value, "fid", fid_kid.fid(made, real).value)
"""
THEIRS = """
import sys
from benchmarks_common import extractor
from tests.metrics.bridges import register_with_torch_fidelity
from torch_fidelity import fidelity
name = register_with_torch_fidelity(extractor())
flags = ["--cpu", "--batch-size", "256", "--feature-extractor", name]
flags += ["--fid", "--kid", "--no-cache", "--silent"]
sys.argv = ["fidelity", "--input1", sys.argv[1], "--input2", sys.argv[2], *flags]
fidelity.main()
"""
COMMON = """
import kdcdiff, torch
from kdcdiff.metrics import extractors
from kdcdiff.models.classifier import Classifier

def extractor():
    torch.manual_seed(0)
    return extractors.features(Classifier([str(i) for i in range(20)]).eval())
"""


def draw_folder(folder: Path, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 500):
        n = min(500, count - start)
        coarse = torch.randint(0, 256, (n, 3, 8, 8), generator=generator).float()
        images = torch.nn.functional.interpolate(coarse, size=64, mode="bilinear").to(torch.uint8)
        write(images, folder, [{"file_name": f"{start + i:06d}.png", "text": "", "seed": seed} for i in range(n)])


def measured(script: str, folders: list[Path], here: Path) -> tuple[float, float, str]:
    """(seconds, peak MiB of the process and its children, last line of output)."""
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{Path(__file__).parents[1]}"}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, folders)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(p.memory_full_info().pss for p in family))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    output = process.stdout.read().strip() if process.stdout else ""
    if process.returncode:
        raise SystemExit(output)
    return seconds, peak / 2**20, " | ".join(output.splitlines()[-3:])


def evaluation(images: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "benchmarks_common.py").write_text(COMMON)
        folders = [here / "made", here / "real"]
        for seed, folder in enumerate(folders):
            draw_folder(folder, images, seed)
        for tool, script in (("kdcdiff", OURS), ("torch-fidelity", THEIRS)):
            runs = [measured(script, folders, here) for _ in range(repeats)]
            seconds, peak = (statistics.median(run[i] for run in runs) for i in (0, 1))
            print(f"{tool:<15} {seconds:8.1f} s {peak:8.0f} MiB   2 x {images} images   {runs[-1][2]}")


def sampling_ratio(rounds: int, variant: str) -> None:

    keep_memory()
    nets = timing.full_size(["sd-1", variant], dtype="float32")
    teacher, student = (complexity.count(net).macs["all"] for net in nets.values())
    times, wanted = timing.rounds_of(nets, rounds), student / teacher
    found, seconds = ratio(times[variant], times["sd-1"]), {name: statistics.median(own) for name, own in times.items()}
    print(f"teacher {seconds['sd-1']:.2f} s, {variant} {seconds[variant]:.2f} s a call, {rounds} rounds")
    print(f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of the time for {wanted:.3f} of the MACs: ", end="")
    print(f"{100 * (found.value / wanted - 1):+.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["evaluation", "sampling"], metavar="evaluation|sampling")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3, help="of the evaluation")
    parser.add_argument("--rounds", type=int, default=9, help="of the sampling")
    parser.add_argument("--variant", default="kdc-described")
    given = parser.parse_args()
    unknown = set(given.what) - {"evaluation", "sampling"}
    if unknown:
        parser.error(f"what={', '.join(sorted(unknown))}: must be evaluation or sampling")
    if "evaluation" in given.what:
        evaluation(given.images, given.repeats)
    if "sampling" in given.what:
        sampling_ratio(given.rounds, given.variant)
