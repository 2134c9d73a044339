"""The networks that the papers may mean, at full size on the meta device: no weights, no download, seconds.

Two ways to the same numbers, both independent of `kdcdiff.models.surgery`. `NETWORKS` are diffusers configurations
written by hand from the papers' text, built and run whole. `Design` adds up parts, each a real diffusers block,
counted alone and cached; so it reaches readings of the text that no configuration expresses, such as `DownBlock2D`
removed with `UpBlock2D` kept. The tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from kdcdiff.errors import check
from kdcdiff.models.configs import AUTOENCODER, CONFIGS, LATENT, TEXT_ENCODER, TOKENS, WIDTHS
from kdcdiff.models.macs import CONVENTIONS, Count, count

# torch and diffusers are imported where a network is built: reading the claims needs neither.

_OUTER_REMOVED = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": WIDTHS[:3],
}
_SD1 = CONFIGS["sd-1"]
NETWORKS: dict[str, dict[str, Any]] = CONFIGS | {
    "down-up-removed": _SD1 | _OUTER_REMOVED,
    "mid-removed": _SD1 | {"mid_block_type": None},
    "fewer-pairs": _SD1 | {"layers_per_block": 1},
    "bk-sdm-base": _SD1 | {"layers_per_block": 1},
    "bk-sdm-small": _SD1 | {"layers_per_block": 1, "mid_block_type": None},
    "bk-sdm-tiny": _SD1 | _OUTER_REMOVED | {"layers_per_block": 1, "mid_block_type": None},
    "kdc-described": _SD1 | _OUTER_REMOVED | {"layers_per_block": 1},
}
COMPANIONS = ("text-encoder", "image-decoder")  # the rest of a Stable Diffusion v1 pipeline


@lru_cache(maxsize=16)
def unet(name: str) -> Any:
    """Build the named `UNet2DConditionModel` on the meta device. It is shared: leave it as it is."""
    import torch
    from diffusers import UNet2DConditionModel

    check(name in NETWORKS, "network", name, f"one of {', '.join(NETWORKS)}")
    with torch.device("meta"):
        return UNet2DConditionModel(**NETWORKS[name])


@lru_cache(maxsize=64)
def network_count(name: str, latent: int = LATENT) -> Count:
    """Count one call of a U-Net or companion: a latent of `latent` squared, a prompt of 77 tokens."""
    import torch

    from kdcdiff.models import complexity

    if name == "text-encoder":
        return complexity.count_text_encoder(TEXT_ENCODER)
    if name == "image-decoder":
        return complexity.count_decoder(AUTOENCODER, latent)
    net = unet(name)
    with torch.device("meta"):
        prompt = torch.empty(1, TOKENS, net.config.cross_attention_dim)
        return count(net, torch.empty(1, 4, latent, latent), torch.zeros(1), prompt)


def pairs(name: str, side: str) -> tuple[int, ...]:
    """Count the residual-transformer pairs of each cross-attention block of the ``down`` or ``up`` side, in order."""
    blocks = _blocks(name, side)
    return tuple(len(b.attentions) for b in blocks if getattr(b, "attentions", None))


def stages(name: str, side: str) -> tuple[str, ...]:
    """Name the classes of the blocks of the ``down``, ``mid`` or ``up`` side, in order."""
    return tuple(type(b).__name__ for b in _blocks(name, side))


def widths(name: str) -> tuple[int, ...]:
    """List the output channels of the down stages, outermost first."""
    return tuple(unet(name).config.block_out_channels)


def _blocks(name: str, side: str) -> list[Any]:
    net = unet(name)
    check(side in ("down", "mid", "up"), "side", side, "down, mid or up")
    if side == "mid":
        return [net.mid_block] if net.mid_block is not None else []
    return list(net.down_blocks if side == "down" else net.up_blocks)


def inherits(student: str, teacher: str) -> bool:
    """Say whether every student parameter has a teacher parameter of its shape to come from.

    Down stages take the first pair, up stages the first and the last; up stages match from the outside in (BK-SDM,
    section 3.1.1).
    """
    s, t = unet(student), unet(teacher)
    source = {name: p.shape for name, p in t.named_parameters()}
    shift = len(t.up_blocks) - len(s.up_blocks)
    for name, p in s.named_parameters():
        bits = name.split(".")
        if bits[0] == "up_blocks":
            if bits[2] in ("resnets", "attentions"):
                last = len(s.up_blocks[int(bits[1])].resnets) - 1
                bits[3] = str(len(t.up_blocks[0].resnets) - 1) if int(bits[3]) == last else bits[3]
            bits[1] = str(int(bits[1]) + shift)
        if source.get(".".join(bits)) != p.shape:
            return False
    return True


@dataclass(frozen=True)
class Design:
    """One reading of "we removed one R-T block from each ... and the DownBlock2D and UpBlock2D layers"."""

    family: str = "sd-1"  # sd-1 or sd-2: the width of the prompt, linear or 1x1 projections
    drop: str = "none"  # what leaves each cross-attention block: none, second or last pair, transformer
    plain: bool = False  # whether DownBlock2D and UpBlock2D lose a ResNet as well
    outer: str = "kept"  # kept, both removed, down removed (UpBlock2D kept), up removed (DownBlock2D kept)
    mid: str = "kept"  # kept, removed
    innermost: int = 8  # where the outer stage is gone: 16 (its sampler goes as well) or 8 (a pair of samplers stays)

    @property
    def label(self) -> str:
        """A short name in words."""
        words = [self.family]
        if self.drop != "none":
            words.append({"second": "-1 pair", "last": "-1 pair (last up)", "transformer": "-1 T"}[self.drop])
        if self.plain:
            words.append("plain blocks too")
        if self.outer != "kept":
            words.append({"both": "no Down/UpBlock2D", "down": "no DownBlock2D", "up": "no UpBlock2D"}[self.outer])
        if self.outer == "both" and self.innermost == 8:
            words.append("8x8 inside")
        if self.mid != "kept":
            words.append("no mid stage")
        return ", ".join(words)


DESIGNS: dict[str, Design] = {  # the reading that each of `NETWORKS` is, so that the two ways can be held together
    "sd-1": Design(),
    "sd-2": Design("sd-2"),
    "down-up-removed": Design(outer="both", innermost=16),
    "mid-removed": Design(mid="removed"),
    "fewer-pairs": Design(drop="second", plain=True),
    "bk-sdm-base": Design(drop="second", plain=True),
    "bk-sdm-small": Design(drop="second", plain=True, mid="removed"),
    "bk-sdm-tiny": Design(drop="second", outer="both", mid="removed", innermost=16),
    "kdc-described": Design(drop="second", outer="both", innermost=16),
}


def family() -> Iterator[Design]:
    """List every reading, without those that name the same network twice."""
    choices = product(
        ("sd-1", "sd-2"),
        ("none", "second", "last", "transformer"),
        (False, True),
        ("kept", "both", "down", "up"),
        ("kept", "removed"),
        (8, 16),
    )
    for base, drop, plain, outer, mid, innermost in choices:
        nothing_plain = plain and (outer == "both" or drop == "none")
        if not nothing_plain and (outer == "both" or innermost == 8):
            yield Design(base, drop, plain, outer, mid, innermost)


def design_count(design: Design) -> Count:
    """Add up the parts of one reading."""
    return sum((_part(design.family, *p) for p in parts(design)), Count())


def parts(design: Design) -> list[tuple[Any, ...]]:
    """List the blocks of a reading, each as ``(kind, channels in, channels out, resolution)``."""
    both = design.outer == "both"
    inner = design.innermost if both else LATENT // 8
    listed: list[tuple[Any, ...]] = [("stem", 4, WIDTHS[0], LATENT)]
    for i, width in enumerate(WIDTHS[:3]):
        size, before = LATENT >> i, WIDTHS[max(i - 1, 0)]
        keep = 1 if design.drop in ("second", "last") else 2
        for k in range(keep):
            listed.append(("resnet", before if k == 0 else width, width, size))
        transformers = 1 if design.drop != "none" else 2
        listed += [("transformer", width, width, size)] * transformers
        if i < 2 or not both or inner == 8:
            listed.append(("down", width, width, size))
    w = WIDTHS[3]
    if design.outer in ("kept", "up"):
        listed += [("resnet", w, w, 8)] * (1 if design.plain else 2)
    if design.mid != "removed":
        listed += [("resnet", w, w, inner), ("transformer", w, w, inner), ("resnet", w, w, inner)]
    if design.outer in ("kept", "down"):
        listed += [("resnet", 2 * w, w, 8)] * (2 if design.plain else 3)
    if not both or inner == 8:
        listed.append(("up", w, w, 8))
    for i, width in reversed(list(enumerate(WIDTHS[:3]))):
        size, below, above = LATENT >> i, WIDTHS[i + 1], WIDTHS[max(i - 1, 0)]
        skips = [
            ("resnet", below + width, width, size),
            ("resnet", 2 * width, width, size),
            ("resnet", width + above, width, size),
        ]
        gone = {"second": 1, "last": 2}.get(design.drop)
        listed += [s for k, s in enumerate(skips) if k != gone]
        listed += [("transformer", width, width, size)] * (3 if design.drop == "none" else 2)
        if i > 0:
            listed.append(("up", width, width, size))
    return [*listed, ("head", WIDTHS[0], 4, LATENT)]


@lru_cache(maxsize=256)
def _part(base: str, kind: str, inside: int, outside: int, size: int) -> Count:
    """Count one real diffusers block on the meta device."""
    import torch
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    config = CONFIGS[base]
    with torch.device("meta"):
        x = torch.empty(1, inside, size, size)
        if kind == "resnet":
            block = ResnetBlock2D(in_channels=inside, out_channels=outside, temb_channels=1280)
            return count(block, x, torch.empty(1, 1280))
        if kind == "transformer":
            width, linear = config["cross_attention_dim"], config.get("use_linear_projection", False)
            heads = {"in_channels": inside, "cross_attention_dim": width, "use_linear_projection": linear}
            block = Transformer2DModel(8, inside // 8, **heads)
            return count(block, x, torch.empty(1, TOKENS, width), return_dict=False)
        if kind == "down":
            return count(Downsample2D(inside, use_conv=True, out_channels=outside), x)
        if kind == "up":
            return count(Upsample2D(inside, use_conv=True, out_channels=outside), x)
        return _end(kind, inside, outside, x)


def _end(kind: str, inside: int, outside: int, x: Any) -> Count:
    """Count the stem (first convolution and time embedding) or the head (last norm and convolution)."""
    from diffusers.models.embeddings import TimestepEmbedding
    from torch import empty, nn

    if kind == "stem":
        return count(nn.Conv2d(inside, outside, 3, padding=1), x) + count(TimestepEmbedding(320, 1280), empty(1, 320))
    return count(nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)), x)


@lru_cache(maxsize=1)
def family_counts() -> dict[Design, Count]:
    """Count every reading; a few seconds, once a process."""
    return {design: design_count(design) for design in family()}


def printed(count_in_units: int, unit: int, text: str) -> bool:
    """Say whether a count prints as `text` in that unit, rounded or cut: 339.50 is 339.505, cut."""
    places = len(text.partition(".")[2])
    value, scale = count_in_units / unit, 10**places
    target = round(float(text.replace(",", "")) * scale)
    return target in (round(value * scale), int(value * scale))


def matching(total: int | None = None, gmac: str | None = None) -> list[tuple[Design, str]]:
    """List the readings of that many parameters that print that GMac figure, each with the convention that does.

    What is None is not asked for, and without a figure the convention is empty.
    """
    found = []
    for design, c in family_counts().items():
        if total is not None and c.parameters != total:
            continue
        if gmac is None:
            found.append((design, ""))
        else:
            found += [(design, name) for name in CONVENTIONS if printed(c.macs[name], 10**9, gmac)]
    return found
