"""What a network costs: parameters, multiply-accumulates in each convention, kept activations, time and
memory.

Counts are exact and come from the meta device in about a second, without weights. Which tool counts what is
the subject of `kdcdiff.claims.counting`; here its conventions ``fvcore``, ``thop`` and ``all`` are applied to
a whole U-Net, to each of its stages, and to the pipeline around it. Times are measured, warm, and given with
their spread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdcdiff import checkpoints, surgery
from kdcdiff.claims.counting import Count
from kdcdiff.claims.counting import count as count_call
from kdcdiff.claims.networks import CONFIGS, TOKENS, network_count
from kdcdiff.errors import check
from kdcdiff.timing import DTYPES, Timing, full_size, latency, measure, random_unet, ratios
from kdcdiff.variants import VARIANTS

__all__ = [
    "CONVENTIONS",
    "Complexity",
    "Part",
    "PipelineCost",
    "Timing",
    "count",
    "count_parts",
    "full_size",
    "kept_bytes",
    "latency",
    "measure",
    "pipeline_cost",
    "random_unet",
    "ratios",
    "report",
]

CONVENTIONS = {
    "fvcore": "convolutions, linear layers, norms, up-sampling; no attention products (KDC-Diff's column)",
    "thop": "convolutions, linear layers, layer norms; no attention products (BK-SDM's column)",
    "all": "every matrix product, attention's too",
}


@dataclass(frozen=True)
class Part:
    """A stage's share: parameters, and one call's multiply-accumulates in each convention."""

    parameters: int
    macs: dict[str, int]


@dataclass(frozen=True)
class Complexity(Part):
    """A U-Net's cost at one input; `stages` add up to it, `kept_bytes` is what training keeps for its
    backward pass.
    """

    stages: dict[str, Part]
    kept_bytes: int
    latent: tuple[int, ...]  # (batch, channels, height, width)


def count(
    unet: UNet2DConditionModel | Mapping[str, Any],
    *,
    latent: int | None = None,
    tokens: int = TOKENS,
    batch: int = 1,
) -> Complexity:
    """Count one call of a U-Net, or of a U-Net's configuration, on latents (batch, channels, latent, latent).

    `latent` is the configuration's ``sample_size`` unless given (64 for a 512x512 picture), `tokens` the
    prompt's length.
    """
    config = unet if isinstance(unet, Mapping) else unet.config
    full = surgery.with_defaults(config)
    size = full["sample_size"] or 64 if latent is None else latent
    check(isinstance(size, int) and size >= 1, "latent", size, "a whole number from 1")
    check(min(tokens, batch) >= 1, "tokens and batch", (tokens, batch), "whole numbers from 1")
    return _count(json.dumps(full, default=list, sort_keys=True), size, tokens, batch)


@lru_cache(maxsize=256)
def _count(config: str, size: int, tokens: int, batch: int) -> Complexity:
    net = surgery.on_meta(json.loads(config))
    inputs = meta_inputs(net, size, tokens, batch)
    whole = count_call(net, *inputs)
    stages = {name: _part(c) for name, c in count_parts(net, inputs).items()}
    return Complexity(whole.parameters, _part(whole).macs, stages, kept_bytes(net, inputs), tuple(inputs[0].shape))


def meta_inputs(
    net: UNet2DConditionModel, size: int, tokens: int = TOKENS, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents (batch, channels, size, size), time steps and prompts (batch, tokens, width), without
    values.
    """
    with torch.device("meta"):
        x = torch.empty(batch, net.config.in_channels, size, size)
        return x, torch.zeros(batch), torch.empty(batch, tokens, net.config.cross_attention_dim)


def _part(c: Count) -> Part:
    return Part(c.parameters, {name: c.macs(name) for name in CONVENTIONS})


def count_parts(net: UNet2DConditionModel, inputs: tuple[Any, ...], fine: bool = False) -> dict[str, Count]:
    """Each stage of a U-Net on the meta device counted alone, at the input that it gets in the whole; they
    add up to it.

    `fine` goes one level deeper, to the layers of each stage (``down_blocks.0.resnets.1``).
    """
    modules = {name: m for name, m in net.named_modules() if _is_part(name, m, fine)}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    handles = [m.register_forward_pre_hook(note(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with torch.no_grad():
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: count_call(modules[name], *args, **kwargs) for name, (args, kwargs) in calls.items()}


def _is_part(name: str, module: nn.Module, fine: bool) -> bool:
    parts = name.split(".")
    if not name:
        return False
    if parts[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return len(parts) == 1 and any(True for _ in module.parameters())
    depth = 1 if parts[0] == "mid_block" else 2
    return len(parts) == (depth + 2 if fine else depth) and not isinstance(module, nn.ModuleList)


class _FusedAttention(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: q, k, v, its result and one number per query. No
    values.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, length, width = q.shape
        out = q.new_empty(n, length, heads, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(n, heads, length, dtype=torch.float32))
        return out


class _Fused(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _FusedAttention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


def kept_bytes(net: UNet2DConditionModel, inputs: tuple[Any, ...]) -> int:
    """Bytes of activations that one training step keeps between forward and backward, with fused
    attention.
    """
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage gets its number
        return tensor

    with _Fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


# --- the pipeline around it


@dataclass(frozen=True)
class PipelineCost:
    """One picture: the text encoder (twice with guidance), `steps` U-Net calls (twice each with guidance),
    the decoder.
    """

    unet: Complexity
    text_encoder: Part
    decoder: Part
    steps: int
    guidance: bool

    @property
    def parameters(self) -> int:
        return self.unet.parameters + self.text_encoder.parameters + self.decoder.parameters

    def macs(self, convention: str) -> int:
        """Multiply-accumulates of one picture in one of `CONVENTIONS`."""
        check(convention in CONVENTIONS, "convention", convention, f"one of {', '.join(CONVENTIONS)}")
        calls = 2 if self.guidance else 1
        looped = calls * (self.text_encoder.macs[convention] + self.steps * self.unet.macs[convention])
        return looped + self.decoder.macs[convention]


def pipeline_cost(
    unet: Complexity, folder: Path | None = None, *, steps: int = 25, guidance: bool = True
) -> PipelineCost:
    """The cost of a picture with this U-Net and the companions of a pipeline folder, or of Stable Diffusion
    1.x.
    """
    check(isinstance(steps, int) and steps >= 1, "steps", steps, "a whole number from 1")
    if folder is None:
        text, decoder = network_count("text-encoder"), network_count("image-decoder", unet.latent[-1])
    else:
        text, decoder = _text_encoder(folder), _decoder(folder, unet.latent[-1])
    return PipelineCost(unet, _part(text), _part(decoder), steps, guidance)


def _text_encoder(folder: Path) -> Count:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**checkpoints.read_json(folder / "text_encoder" / "config.json"))
    with torch.device("meta"):
        return count_call(
            CLIPTextModel(config).eval(), torch.zeros(1, config.max_position_embeddings, dtype=torch.long)
        )


def _decoder(folder: Path, latent: int) -> Count:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(checkpoints.read_json(folder / "vae" / "config.json")).eval()
        z = torch.empty(1, vae.config.latent_channels, latent, latent)
        after = count_call(vae.post_quant_conv, z) if vae.post_quant_conv is not None else Count()
        return after + count_call(vae.decoder, z)


# --- the command


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
        config, where = checkpoints.read_config(what), what
    else:
        base = dict(CONFIGS[teacher]) if teacher in ("sd-1", "sd-2") else checkpoints.read_config(teacher)
        config, where = surgery.student_config(base, what), teacher
    surgery.check_family(config)
    whole = (Path(where) / "model_index.json").is_file()
    return Path(where) if whole else None, config


def report(name: str, cost: Complexity, whole: PipelineCost, timing: Timing | None = None) -> str:
    """A table for people: stages, the U-Net, the pipeline."""
    rows = [("", "parameters", *(f"{c} GMAC" for c in CONVENTIONS))]
    rows += [(stage, f"{p.parameters:,}", *_giga(p.macs)) for stage, p in cost.stages.items()]
    rows.append((f"U-Net ({name})", f"{cost.parameters:,}", *_giga(cost.macs)))
    for part, p in (("text encoder", whole.text_encoder), ("decoder", whole.decoder)):
        rows.append((part, f"{p.parameters:,}", *_giga(p.macs)))
    macs = {c: whole.macs(c) for c in CONVENTIONS}
    guided = " with guidance" if whole.guidance else ""
    rows.append((f"a picture, {whole.steps} steps{guided}", f"{whole.parameters:,}", *_giga(macs)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{first:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(rest, widths[1:], strict=True))
             for first, *rest in rows]  # fmt: skip
    lines += [f"{c}: {what}" for c, what in CONVENTIONS.items()]
    shape, kept = "x".join(map(str, cost.latent)), cost.kept_bytes / 2**20
    lines.append(f"input {shape}; training keeps {kept:,.0f} MiB of activations for it in float32")
    if timing:
        spread = f"quartiles {timing.low:.3f} to {timing.high:.3f}, n = {timing.n}"
        lines.append(f"one call: {timing.seconds:.3f} s ({spread}), {timing.dtype} on {timing.device}, random weights")
        lines.append(f"peak memory while timing: {timing.peak_bytes / 2**30:.2f} GiB")
    return "\n".join(lines)


def _giga(macs: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{macs[c] / 1e9:,.3f}" for c in CONVENTIONS)


def add_parser(subparsers: Any) -> None:
    """Register ``kdcdiff complexity``."""
    parser = subparsers.add_parser(
        "complexity", help="parameters, MACs, latency and memory of a U-Net",
        description="Counts are exact and need no weights; --calls measures time with seeded random weights.",
    )  # fmt: skip
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
    parser.set_defaults(run=run)
