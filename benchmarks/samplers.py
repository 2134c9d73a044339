"""Fewer steps of a better solver: DPM-Solver++ beside DDIM, by what the judge reads and how far its pictures move.

    python benchmarks/samplers.py                                   # 20 steps of DDIM, 10 of DPM-Solver++, 10 of DDIM
    python benchmarks/samplers.py --per-class 40 --out book/results/samplers.json

Every setting draws the same prompts from the same noise. The judge's accuracy carries Wilson's interval; KID, through
the judge's features, is against the first setting's pictures from another seed, so that its own row is the null;
seconds are of processor time, so that a busy machine tells nearly the same. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from kdcdiff.data.image_set import ImageSet, caption_of
from kdcdiff.data.sources import open_source
from kdcdiff.metrics import extractors, fid_kid
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.models.classifier import load_classifier
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.provenance import provenance
from kdcdiff.sampling.generate import generate

SETTINGS = (("DDIM", 20), ("DPMSolverMultistep", 10), ("DDIM", 10))  # the first is what the others are held against
GUIDANCE = 5.0


def compare(per_class: int, seed: int) -> list[dict[str, Any]]:
    """Draw `per_class` pictures of each base class under each of `SETTINGS`: a row of figures for each."""
    pipeline, judge, base = load_pipeline("flora"), load_classifier(), open_source("flora").base
    prompts = [caption_of(name) for name in base for _ in range(per_class)]
    labels = torch.arange(len(base)).repeat_interleave(per_class)
    known = torch.tensor([judge.classes.index(name) for name in base])[labels]
    seen = extractors.features(judge)
    rows: list[dict[str, Any]] = []

    def draw(scheduler: str, steps: int, seed: int) -> ImageSet:
        images = generate(pipeline, prompts, seed=seed, steps=steps, guidance=GUIDANCE, scheduler=scheduler)
        return ImageSet(images, labels, tuple(prompts), base)

    reference = fid_kid.extract(draw(*SETTINGS[0], seed + 1), seen)
    for scheduler, steps in SETTINGS:
        begun = time.process_time()
        drawn = draw(scheduler, steps, seed)
        seconds = (time.process_time() - begun) / len(prompts)
        right, moved = class_accuracy(drawn.images, known, judge), fid_kid.kid(drawn, reference, seen)
        print(f"{scheduler:<20} {steps:3d} steps  accuracy {right:.3f}  KID {moved:.4f}  {seconds:.3f} s a picture")
        row: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "processor_seconds_a_picture": round(seconds, 4)}
        for name, own in (("accuracy", right), ("kid", moved)):
            row[name] = {"value": own.value, "interval": own.interval, "n": own.n}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=8, help="pictures of each base class (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the figures and where they come from")
    args = parser.parse_args()
    rows = compare(args.per_class, args.seed)
    if args.out:
        command = f"python benchmarks/samplers.py --per-class {args.per_class} --seed {args.seed}"
        words = {"command": command, "guidance": GUIDANCE, "rows": rows, "provenance": provenance()}
        args.out.write_text(json.dumps(words, indent=1) + "\n")


if __name__ == "__main__":
    main()
