"""A training step of the small U-Net with glibc's own habits, and with freed memory kept: seconds and page faults."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

from kdcdiff.models.pipeline import new_unet
from kdcdiff.process import keep_memory


def measure(keep: bool, steps: int = 15) -> dict[str, float]:
    import torch

    if keep:
        keep_memory()
    unet = new_unet(0).to(memory_format=torch.channels_last)
    noisy, prompt = torch.randn(32, 8, 8, 8), torch.randn(32, 32, 64)
    seconds, faults = [], []
    for _ in range(steps):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        unet(noisy, torch.zeros(32, dtype=torch.long), prompt).sample.square().mean().backward()
        unet.zero_grad()
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"seconds": statistics.median(seconds[3:]), "faults": statistics.median(faults[3:])}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "kept")))
        sys.exit()
    rounds: dict[str, list[dict[str, float]]] = {"plain": [], "kept": []}
    for _ in range(5):  # in turn, so that a busy minute hits both
        for name, rows in rounds.items():
            rows.append(
                json.loads(
                    subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout
                )
            )
    print("one training step of the small U-Net, batch 32: median of 5 processes x 12 steps")
    for name, rows in rounds.items():
        print(
            f"{name:>6}: {statistics.median(r['seconds'] for r in rows):.3f} s, "
            f"{statistics.median(r['faults'] for r in rows):,.0f} page faults"
        )
    ratio = statistics.median(p["seconds"] / k["seconds"] for p, k in zip(*rounds.values(), strict=True))
    print(f" ratio: {ratio:.2f}")
