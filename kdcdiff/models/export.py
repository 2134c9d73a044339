"""`kdcdiff shrink`: a student as a whole pipeline on disk, with a model card, for plain diffusers.

Everything but the U-Net is copied file by file from the teacher's pipeline, and of the U-Net only the tensors
that stay are read: the peak of memory is about one student, whatever the teacher's size."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

import kdcdiff
from kdcdiff.errors import check
from kdcdiff.models import surgery
from kdcdiff.models.unet_files import Checkpoint
from kdcdiff.models.variants import Variant

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, distillation, {name}]
---

# {name}: a student of {teacher}

A Stable Diffusion pipeline whose U-Net was cut down by `kdcdiff {version}`. The weights that stay are the
teacher's, unchanged, in {dtype}. **It has not been retrained**: its pictures are worse than the teacher's
until it is.

| | teacher | student |
|---|---:|---:|
| U-Net parameters | {before:,} | {after:,} ({share:.1%}) |
| down stages | {stages_before} | {stages_after} |
| layers per stage | {layers_before} | {layers_after} |
| mid stage | {mid_before} | {mid_after} |

Removed: {removed}.
{notes}
```python
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(".", torch_dtype=torch.{dtype})
```

Every tensor of `unet/` comes from one tensor of the teacher; text encoder, tokenizer, autoencoder and
scheduler are the teacher's files. The teacher's licence and its limits on use hold for this model as well.
"""
NOTES = {
    "down removed": """
DownBlock2D hands on what it gets. UpBlock2D keeps the one layer whose skip connection is still made; its
other layers read what DownBlock2D made and went with it, because no diffusers configuration can keep them.
""",
    "both removed": """
The stage before DownBlock2D is now the innermost one: it has no down-sampler, UpBlock2D's up-sampler went as
well, and the middle works at twice the teacher's resolution.
""",
}


def model_card(config: dict[str, Any], cut: Variant, teacher: str, dtype: str) -> str:
    """The README of a student: what was removed, what is left, how to load it."""
    student = surgery.student_config(config, cut)
    sizes = [sum(s.numel() for s in surgery.parameter_shapes(c).values()) for c in (config, student)]
    full = [dict(surgery.on_meta(c).config) for c in (config, student)]
    mids = ["yes" if c["mid_block_type"] else "none" for c in full]
    layers = [", ".join(map(str, surgery.layers(c))) for c in full]
    stages = [", ".join(map(str, c["block_out_channels"])) for c in full]
    return CARD.format(
        name=cut.name, teacher=teacher, version=kdcdiff.__version__, dtype=dtype,
        before=sizes[0], after=sizes[1],
        share=sizes[1] / sizes[0], stages_before=stages[0], stages_after=stages[1], layers_before=layers[0],
        layers_after=layers[1], mid_before=mids[0], mid_after=mids[1], removed=cut.description,
        notes=NOTES.get(cut.innermost, ""),
    )  # fmt: skip


def save_student(checkpoint: Checkpoint, cut: Variant, out: Path) -> UNet2DConditionModel:
    """Write the student of `checkpoint` to the new folder `out`: a whole pipeline where the teacher is one,
    else a U-Net.

    UserError: `out` holds something. The folder appears when it is complete.
    """
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    check(empty, "out", str(out), "must be a new or empty folder")
    student = surgery.shrink_checkpoint(checkpoint, cut)
    work = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if checkpoint.pipeline is not None:
            shutil.copytree(checkpoint.pipeline, work, ignore=_ignored(checkpoint.pipeline))
        work.mkdir(parents=True, exist_ok=True)
        student.save_pretrained(work / "unet" if checkpoint.pipeline is not None else work)
        dtype = str(student.dtype).removeprefix("torch.")
        teacher = Path(checkpoint.source).name if Path(checkpoint.source).exists() else checkpoint.source
        (work / "README.md").write_text(model_card(checkpoint.config, cut, teacher, dtype), encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return student


def _ignored(pipeline: Path) -> Any:
    """Of a pipeline folder: the U-Net, whole-model files beside it, and whatever would have to be
    unpickled."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == pipeline
        left = {n for n in names if n.endswith((".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb"))}
        left |= {n for n in names if n.startswith(".")}
        return left | ({n for n in names if n in ("unet", "README.md") or n.endswith(".safetensors")} if top else set())

    return ignore
