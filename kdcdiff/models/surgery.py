"""U-Net surgery: what to remove from a Stable Diffusion U-Net, written as a value and carried out with its weights.

A `Variant` says what leaves. Everything else follows from it and from the teacher's configuration: the student's
diffusers configuration (`student_config`), which teacher parameter each student parameter comes from (`weight_map`),
and the student itself (`shrink`). No variant has code of its own.

Which layers stay (BK-SDM, section 3.1.1): a down stage keeps its first R-T pairs, an up stage its first ones and its
last one, because the last one reads the skip connection of the stage's beginning. A layer of an up stage reads one skip
connection each, so where a down stage loses a layer, the up stage opposite loses the layer that read it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from kdcdiff.errors import UserError, check
from kdcdiff.models.unet_files import Checkpoint
from kdcdiff.models.variants import Variant, variant

if TYPE_CHECKING:  # importing diffusers takes twice as long as torch: only what makes a network does it
    from diffusers import UNet2DConditionModel

FAMILY = "the four-stage family of Stable Diffusion 1.x and 2.x (diffusers' UNet2DConditionModel)"
WIDTHS = "block_out_channels"
MID_KEYS = ("attention_head_dim", "cross_attention_dim", "transformer_layers_per_block")  # of the innermost stage
PER_STAGE = (WIDTHS, *MID_KEYS, "layers_per_block", "num_attention_heads", "only_cross_attention")
"""Configuration entries that may hold one value per stage, outermost stage first."""
FOREIGN = {  # entries that make a U-Net another kind of network, and which kind
    "addition_embed_type": "an SDXL or Kandinsky U-Net",
    "class_embed_type": "a class- or image-conditioned U-Net",
    "encoder_hid_dim_type": "an image- or projection-conditioned U-Net",
    "reverse_transformer_layers_per_block": "an asymmetric U-Net",
}

LARGEST = {  # numbers of a configuration, and how large they may be
    WIDTHS: 2**14, "layers_per_block": 16, "in_channels": 2**10, "out_channels": 2**10, "attention_head_dim": 2**12,
    "cross_attention_dim": 2**14, "transformer_layers_per_block": 64, "norm_num_groups": 2**12,
    "sample_size": 2**12,
}  # fmt: skip

# --- what the student looks like


def student_config(config: Mapping[str, Any], what: str | Variant) -> dict[str, Any]:
    """Derive the student's diffusers configuration; `config` is the teacher's.

    Raises `UserError` where the teacher is not of the family, or the variant leaves it without a stage.
    """
    check_family(config)
    cut, full = variant(what), with_defaults(config)
    student = {k: v for k, v in config.items() if k in full or k == "_class_name"}
    widths, n = tuple(full[WIDTHS]), len(full[WIDTHS])

    def need(ok: bool, allowed: str) -> None:
        check(ok, "variant", cut.name, allowed)

    had, pairs = layers(full), _pairs_left(full, cut)
    stages = n - 1 if cut.innermost == "both removed" else n
    need(cut.innermost == "kept" or n > 1, "leaves no stage of this teacher")
    plain = full["down_block_types"][-1] == "DownBlock2D"
    need(cut.innermost != "down removed" or plain, "removes DownBlock2D, and this teacher has none")
    for s, left in enumerate(pairs[:stages]):
        bypassed = s == n - 1 and left == 0 and widths[s] == widths[s - 1]
        need(left >= 1 or bypassed, f"leaves no R-T pair in stage {s}, which has {had[s]}")
    if stages < n:
        for key in (WIDTHS, *MID_KEYS) if cut.mid else (WIDTHS,):  # what the new neighbours must agree in
            *_, outer, inner = _stage_values(full, key)
            differ = f"this teacher's two innermost stages differ in {key}, {outer} and {inner}"
            need(inner == outer, f"does not fit: {differ}")
        student |= {key: list(full[key])[:stages] for key in PER_STAGE if isinstance(full[key], list | tuple)}
        student["down_block_types"] = list(full["down_block_types"])[:stages]
        student["up_block_types"] = list(full["up_block_types"])[n - stages :]
    if pairs != had or stages < n:
        kept = pairs[:stages]
        student["layers_per_block"] = kept[0] if len(set(kept)) == 1 else kept
    if not cut.mid:
        student["mid_block_type"] = None
    return student


def check_family(config: Mapping[str, Any]) -> None:
    """Raise `UserError` that says what a configuration is, unless it is a U-Net of the family. Channels are free."""
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), config.get("model_type"))
    if (named or "UNet2DConditionModel") != "UNet2DConditionModel":
        raise UserError(f"teacher={named!r}: not a U-Net that can be shrunk; supported is {FAMILY}")
    for key, what in FOREIGN.items():
        if config.get(key) is not None:
            raise UserError(f"teacher={key}={config[key]!r}: {what}; supported is {FAMILY}")
    full = with_defaults(config)
    check_sizes(full)
    down, up, mid = list(full["down_block_types"]), list(full["up_block_types"]), full["mid_block_type"]
    mirrored = [b.replace("Down", "Up") for b in reversed(down)] == up
    plain = set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}
    check(mirrored and plain, "teacher", down, f"stages of another kind; supported is {FAMILY}")
    known = mid in ("UNetMidBlock2DCrossAttn", None)
    check(known, "teacher", mid, f"a mid stage of another kind; supported is {FAMILY}")


def check_sizes(full: Mapping[str, Any]) -> None:
    """Raise UserError where a configuration's numbers are no sizes, or would build a network that no machine holds."""
    for key, most in LARGEST.items():
        value = full.get(key)
        entries = list(value) if isinstance(value, list | tuple) else [value]
        flat = [n for entry in entries for n in (entry if isinstance(entry, list | tuple) else [entry])]
        ok = len(flat) <= 64 and all(n is None or (type(n) is int and 0 < n <= most) for n in flat)
        check(ok and bool(flat), "teacher", f"{key}={value!r}"[:80], f"must be whole numbers from 1 to {most:,}")
    for key in ("down_block_types", "up_block_types"):
        stages = full[key]
        ok = isinstance(stages, list | tuple) and 0 < len(stages) <= 16 and all(isinstance(s, str) for s in stages)
        check(ok, "teacher", f"{key}={stages!r}"[:80], "must be a list of stages")
    widths = full[WIDTHS]
    ok = isinstance(widths, list | tuple) and len(widths) == len(full["down_block_types"])
    check(ok, "teacher", f"{WIDTHS}={widths!r}"[:80], "must hold one number per stage")


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a configuration: every entry that diffusers' U-Net takes, and no other."""
    return {name: config.get(name, default) for name, default in _defaults().items()}


@cache
def _defaults() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def layers(config: Mapping[str, Any]) -> list[int]:
    """Count the layers (R-T pairs, or R alone) of each down stage; an up stage has one more."""
    return list(_stage_values(with_defaults(config), "layers_per_block"))


def _pairs_left(full: Mapping[str, Any], cut: Variant) -> list[int]:
    """Count the layers that `cut` leaves to each down stage."""
    had = layers(full)
    fewer = (cut.fewer_pairs,) * len(had) if isinstance(cut.fewer_pairs, int) else cut.fewer_pairs
    allowed = f"one number, or one for each of the teacher's {len(had)} stages"
    check(len(fewer) == len(had), "fewer_pairs", cut.fewer_pairs, allowed)
    left = [h - f for h, f in zip(had, fewer, strict=True)]
    if cut.innermost == "down removed":
        left[-1] = 0
    return left


def _stage_values(full: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """Spread an entry over the stages, outermost first."""
    value = full[key]
    return tuple(value) if isinstance(value, list | tuple) else (value,) * len(full[WIDTHS])


# --- where its weights come from


def weight_map(config: Mapping[str, Any], what: str | Variant) -> dict[str, str]:
    """Map each of the student's parameters to the teacher's parameter that it takes its values from."""
    small = student_config(config, what)
    had, left = layers(config), layers(small)
    gone = len(had) - len(left)  # innermost stages removed
    names = {}
    for name in parameter_shapes(small):
        part = name.split(".")
        if part[0] == "up_blocks":
            u = int(part[1])
            s = len(left) - 1 - u  # the down stage opposite
            part[1] = str(u + gone)
            if part[2] in ("resnets", "attentions") and int(part[3]) == left[s]:
                part[3] = str(had[s])  # the last layer stays the last
        names[name] = ".".join(part)
    known = parameter_shapes(config)
    missing = [source for source in names.values() if source not in known]
    assert not missing, f"{variant(what).name}: {missing[:3]}"
    return names


def layer_of(parameter: str) -> str:
    """Name a parameter's layer: ``down_blocks.0.resnets.1``, ``mid_block.attentions.0``, ``conv_in``."""
    part = parameter.split(".")
    return ".".join(part[: {"down_blocks": 4, "up_blocks": 4, "mid_block": 3}.get(part[0], 1)])


def layers_kept(config: Mapping[str, Any], what: str | Variant) -> dict[str, bool]:
    """Say of each layer of the teacher, in its own order, whether the student has it."""
    kept = {layer_of(source) for source in weight_map(config, what).values()}
    return {layer: layer in kept for layer in dict.fromkeys(map(layer_of, parameter_shapes(config)))}


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name and size every parameter of a U-Net configuration, without making it."""
    return _parameter_shapes(json.dumps(with_defaults(config), sort_keys=True, default=list))


@lru_cache(maxsize=64)
def _parameter_shapes(config: str) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in on_meta(json.loads(config)).state_dict().items()}


def on_meta(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """Make the U-Net of a configuration on the meta device: shapes, no memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**{k: v for k, v in config.items() if k in _defaults()}).eval()


def shrink(teacher: UNet2DConditionModel, what: str | Variant) -> UNet2DConditionModel:
    """Make a student of `teacher`: the teacher's weights carried over, on its device, in its dtype, in its mode.

    The student owns its memory; beside teacher and student nothing is allocated. `teacher` is left as it was. Raises
    `UserError` where `teacher` is not a U-Net of the family, or its weights are not those of its configuration.
    """
    from diffusers import UNet2DConditionModel

    if not isinstance(teacher, UNet2DConditionModel):
        raise UserError(f"teacher={type(teacher).__name__!r}: not a U-Net that can be shrunk; supported is {FAMILY}")
    weights = teacher.state_dict()
    config = dict(teacher.config)
    check_weights(weights, config)
    student = on_meta(student_config(config, what))
    carried = {name: weights[source].detach().clone() for name, source in weight_map(config, what).items()}
    student.load_state_dict(carried, strict=True, assign=True)
    return student.train(teacher.training)


def shrink_checkpoint(checkpoint: Checkpoint, what: str | Variant) -> UNet2DConditionModel:
    """Make a student straight from a checkpoint: only the tensors that it keeps are read, the teacher never is.

    Raises `UserError` where the tensors are not those of the checkpoint's configuration.
    """
    check_weights(checkpoint.shapes(), checkpoint.config, checkpoint.source)
    student = on_meta(student_config(checkpoint.config, what))
    student.load_state_dict(dict(checkpoint.read(weight_map(checkpoint.config, what))), strict=True, assign=True)
    return student


def check_weights(weights: Mapping[str, Any], config: Mapping[str, Any], where: str = "teacher") -> None:
    """Raise `UserError` naming the first tensor that is missing, surplus or of another shape than `config` says.

    The values of `weights` need a ``.shape`` only, so that a checkpoint can be checked before it is read.
    """
    check_family(config)
    shapes = parameter_shapes(config)
    lora = next((name for name in weights if "lora" in name.lower()), None)
    check(lora is None, where, lora, "LoRA layers; fuse and unload them into the U-Net first")
    lacking, surplus = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    for problem, names in (("missing", lacking), ("surplus", surplus)):
        count = f"{len(names)} {problem} tensor{'s' if len(names) > 1 else ''}"
        check(not names, where, (names or [""])[0], f"{count}; expected {len(shapes)}, found {len(weights)}")
    for name, shape in shapes.items():
        held = tuple(weights[name].shape)
        check(held == tuple(shape), where, name, f"has shape {held}, its configuration says {tuple(shape)}")
