"""`kdcdiff complexity`: parameters, MACs, latency and memory of a U-Net."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kdcdiff.errors import check
from kdcdiff.models import surgery, unet_files
from kdcdiff.models.complexity import Complexity, PipelineCost, count, pipeline_cost
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.macs import CONVENTIONS
from kdcdiff.models.timing import DTYPES, Timing, latency, random_unet
from kdcdiff.models.variants import VARIANTS

COLUMNS = ("fvcore", "thop", "all")  # of the conventions; what hooks alone see is a matter of the audit


def run(args: argparse.Namespace) -> int:
    """``kdcdiff complexity``: a table, or with ``--json`` everything."""
    folder, config = _named(args.what, args.teacher)
    cost = count(config, latent=args.latent)
    whole = pipeline_cost(cost, folder, steps=args.steps, guidance=not args.no_guidance)
    check(args.calls >= 0, "calls", args.calls, "a whole number from 0")
    check(
        not args.device.startswith("cuda") or torch.cuda.is_available(),
        "device",
        args.device,
        "no GPU here; use cpu",
    )
    timing = None
    if args.calls:
        timing = latency(random_unet(config, dtype=args.dtype, device=args.device), args.calls, latent=args.latent)
    if args.json:
        told = {"unet": asdict(cost), "pipeline": asdict(whole), "timing": asdict(timing) if timing else None}
        print(json.dumps(told, indent=1))
        return 0
    print(report(args.what, cost, whole, timing))
    return 0


def _named(what: str, teacher: str) -> tuple[Path | None, dict[str, Any]]:
    """A variant of a teacher, or a folder or hub id; with it the pipeline folder that its companions lie
    in.
    """
    if what not in VARIANTS and Path(what).suffix != ".json":
        config, where = unet_files.read_config(what), what
    else:
        base = dict(CONFIGS[teacher]) if teacher in ("sd-1", "sd-2") else unet_files.read_config(teacher)
        config, where = surgery.student_config(base, what), teacher
    surgery.check_family(config)
    whole = (Path(where) / "model_index.json").is_file()
    return Path(where) if whole else None, config


def report(name: str, cost: Complexity, whole: PipelineCost, timing: Timing | None = None) -> str:
    """A table for people: stages, the U-Net, the pipeline."""
    rows = [("", "parameters", *(f"{c} GMAC" for c in COLUMNS))]
    rows += [(stage, f"{p.parameters:,}", *_giga(p.macs)) for stage, p in cost.stages.items()]
    rows.append((f"U-Net ({name})", f"{cost.parameters:,}", *_giga(cost.macs)))
    for part, p in (("text encoder", whole.text_encoder), ("decoder", whole.decoder)):
        rows.append((part, f"{p.parameters:,}", *_giga(p.macs)))
    guided = " with guidance" if whole.guidance else ""
    rows.append((f"a picture, {whole.steps} steps{guided}", f"{whole.parameters:,}", *_giga(whole.macs)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{first:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(rest, widths[1:], strict=True))
             for first, *rest in rows]  # fmt: skip
    lines += [f"{c}: {CONVENTIONS[c]}" for c in COLUMNS]
    shape, kept = "x".join(map(str, cost.latent)), cost.kept_bytes / 2**20
    lines.append(f"input {shape}; training keeps {kept:,.0f} MiB of activations for it in float32")
    if timing:
        spread = f"quartiles {timing.low:.3f} to {timing.high:.3f}, n = {timing.n}"
        lines.append(f"one call: {timing.seconds:.3f} s ({spread}), {timing.dtype} on {timing.device}, random weights")
        lines.append(f"peak memory while timing: {timing.peak_bytes / 2**30:.2f} GiB")
    return "\n".join(lines)


def _giga(macs: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{macs[c] / 1e9:,.3f}" for c in COLUMNS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        help=f"a variant ({', '.join(VARIANTS)}, or a JSON file), a folder, a .safetensors file or a hub id",
    )
    parser.add_argument(
        "--teacher", default="sd-1", help="what the variant is cut from: sd-1, sd-2, a folder or a hub id"
    )
    parser.add_argument("--latent", type=int, help="width of the latent; the configuration's unless given")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of a picture")
    parser.add_argument("--no-guidance", action="store_true", help="one U-Net call a step instead of two")
    parser.add_argument("--calls", type=int, default=0, help="time this many warm calls")
    parser.add_argument("--device", default="cpu", help="where to time them")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES), help="of the timed network")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
