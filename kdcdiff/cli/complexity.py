"""`kdcdiff complexity`: parameters, MACs, latency and memory of a U-Net."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import one_of, whole
from kdcdiff.models.shipped import UNETS, find_pipeline
from kdcdiff.models.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from kdcdiff.models.complexity import Complexity, PipelineCost
    from kdcdiff.models.timing import Timing

PUBLISHED = ("sd-1", "sd-2")
COLUMNS = ("fvcore", "thop", "all")  # of the conventions; what hooks alone see is a matter of the audit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", type=_what, help=f"a variant ({', '.join(VARIANTS)}, or a JSON file), or {UNETS}")
    cut_from = f"what the variant is cut from: {' or '.join(PUBLISHED)} (published), or {UNETS} (default: %(default)s)"
    add("--teacher", type=_teacher, default="sd-1", help=cut_from)
    add("--latent", type=whole(1), help="width of the latent; the configuration's unless given")
    add("--steps", type=whole(1), default=25, help="denoising steps of a picture (default: %(default)s)")
    add("--no-guidance", action="store_true", help="one U-Net call a step instead of two")
    add("--calls", type=whole(0), default=0, help="time this many warm calls (default: none)")
    arguments.add_device(parser)
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", type=one_of(*dtypes), default="float32", help=f"of the timed network: {', '.join(dtypes)}")
    add("--json", action="store_true", help="everything, for programs")


def _what(text: str) -> Variant | str:
    return (arguments.variant if text in VARIANTS or text.endswith(".json") else arguments.unet)(text)


def _teacher(text: str) -> str:
    return text if text in PUBLISHED else arguments.unet(text)


def run(args: argparse.Namespace) -> int:
    from kdcdiff.models.complexity import count, pipeline_cost
    from kdcdiff.models.timing import latency, random_unet

    device = arguments.device_of(args)
    folder, config = _named(args.what, args.teacher)
    cost = count(config, latent=args.latent)
    whole_cost = pipeline_cost(cost, folder, steps=args.steps, guidance=not args.no_guidance)
    timing = None
    if args.calls:
        timing = latency(random_unet(config, dtype=args.dtype, device=device), args.calls, latent=args.latent)
    if args.json:
        told = {"unet": asdict(cost), "pipeline": asdict(whole_cost), "timing": asdict(timing) if timing else None}
        print(json.dumps(told, indent=1))
        return 0
    name = args.what.name if isinstance(args.what, Variant) else args.what
    print(report(name, cost, whole_cost, timing))
    return 0


def _named(what: Variant | str, teacher: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the configuration of a variant of `teacher`, or of a U-Net, and the pipeline folder that it lies in."""
    from kdcdiff.models import surgery, unet_files
    from kdcdiff.models.configs import CONFIGS

    if isinstance(what, Variant):
        base = dict(CONFIGS[teacher]) if teacher in PUBLISHED else unet_files.read_config(teacher)
        config, where = surgery.student_config(base, what), teacher
    else:
        config, where = unet_files.read_config(what), what
    surgery.check_family(config)
    folder = None if where in PUBLISHED else find_pipeline(where, unet=True)
    return folder if folder is not None and (folder / "model_index.json").is_file() else None, config


def report(name: str, cost: Complexity, whole: PipelineCost, timing: Timing | None = None) -> str:
    """Lay out a table for people: stages, the U-Net, the pipeline."""
    from kdcdiff.models.macs import CONVENTIONS

    rows = [("", "parameters", *(f"{c} GMac" for c in COLUMNS))]
    rows += [(stage, f"{p.parameters:,}", *_giga(p.macs)) for stage, p in cost.stages.items()]
    rows.append((f"U-Net ({name})", f"{cost.parameters:,}", *_giga(cost.macs)))
    for part, p in (("text encoder", whole.text_encoder), ("decoder", whole.decoder)):
        rows.append((part, f"{p.parameters:,}", *_giga(p.macs)))
    macs = {c: whole.macs[c] for c in COLUMNS}
    guided = " with guidance" if whole.guidance else ""
    rows.append((f"a picture, {whole.steps} steps{guided}", f"{whole.parameters:,}", *_giga(macs)))
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
