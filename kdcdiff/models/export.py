"""Students on disk: whole pipelines with a model card, for plain diffusers.

`kdcdiff shrink` copies everything but the U-Net file by file from the teacher's pipeline, and of the U-Net reads only
the tensors that stay: the peak of memory is about one student, whatever the teacher's size.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdcdiff
from kdcdiff.errors import check, one_line
from kdcdiff.models import surgery
from kdcdiff.models.unet_files import Checkpoint
from kdcdiff.models.variants import Variant
from kdcdiff.store import aside

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, distillation, {name}]
---

# {name}: a student of {teacher}

A Stable Diffusion pipeline whose U-Net was cut down by `kdcdiff {version}`. {state}

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
pipeline = StableDiffusionPipeline.from_pretrained(".", dtype=torch.{dtype})
```

{origin}; text encoder, tokenizer, autoencoder and scheduler are the teacher's. The teacher's licence and its limits on
use hold for this model as well.
"""
CUT = """The weights that stay are the teacher's, unchanged, in
{dtype}. **It has not been retrained**: its pictures are worse than the teacher's until it is."""
TRAINED = """It has then been trained on the
teacher's knowledge by `kdcdiff distill`:

| | |
|---|---|
{rows}"""
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


def model_card(
    config: Mapping[str, Any], cut: Variant, teacher: str, dtype: str, training: Mapping[str, object] | None = None
) -> str:
    """Write the README of a student: what was removed, what is left, how it was trained, how to load it.

    `config` is the teacher U-Net's; `training` are the rows of the table that a distilled student has.
    """
    student = surgery.student_config(config, cut)
    sizes = [sum(s.numel() for s in surgery.parameter_shapes(c).values()) for c in (config, student)]
    full = [dict(surgery.on_meta(c).config) for c in (config, student)]
    mids = ["yes" if c["mid_block_type"] else "none" for c in full]
    layers = [", ".join(map(str, surgery.layers(c))) for c in full]
    stages = [", ".join(map(str, c["block_out_channels"])) for c in full]
    rows = "\n".join(f"| {name} | {_as_words(value)} |" for name, value in (training or {}).items())
    return CARD.format(
        name=cut.name, teacher=_as_words(teacher), version=kdcdiff.__version__, dtype=dtype,
        before=sizes[0], after=sizes[1],
        state=TRAINED.format(rows=rows) if training else CUT.format(dtype=dtype),
        origin=f"Every tensor of `unet/` {'began as' if training else 'comes from'} one tensor of the teacher",
        share=sizes[1] / sizes[0], stages_before=stages[0], stages_after=stages[1], layers_before=layers[0],
        layers_after=layers[1], mid_before=mids[0], mid_after=mids[1], removed=_as_words(cut.description),
        notes=NOTES.get(cut.innermost, ""),
    )  # fmt: skip


LEARNT = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, {tag}]
---

# {pipeline}, and {more}

A Stable Diffusion pipeline to which `kdcdiff {version}` has taught {taught}.

| | |
|---|---|
{rows}

```python
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(".")
```

Text encoder, tokenizer, autoencoder and scheduler are those of {pipeline}, whose licence and limits on use hold for
this model as well.
"""


def learnt_card(student: str, count: int, training: Mapping[str, object]) -> str:
    """Write the README of a pipeline that has learnt `count` classes; `training` are the rows of its table."""
    taught = "new classes, one after another"
    return _taught_card(student, f"{count} classes more", taught, "continual-learning", training)


def personal_card(pipeline: str, caption: str, training: Mapping[str, object]) -> str:
    """Write the README of a pipeline that has learnt one subject, called by `caption`; `training` as above."""
    taught = f"one subject. Ask for it as *{_as_words(caption)}*"
    return _taught_card(pipeline, "one subject more", taught, "dreambooth", training)


def _taught_card(pipeline: str, more: str, taught: str, tag: str, training: Mapping[str, object]) -> str:
    rows = "\n".join(f"| {name} | {_as_words(value)} |" for name, value in training.items())
    words = {"more": more, "taught": taught, "tag": tag, "rows": rows, "version": kdcdiff.__version__}
    return LEARNT.format(pipeline=_as_words(pipeline), **words)


def _as_words(value: object) -> str:
    """Write somebody's words so that Markdown shows them and does nothing else with them."""
    return html.escape(one_line(value), quote=False).replace("|", "\\|").replace("`", "'")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write in, which becomes `out` when it is complete.

    UserError: `out` holds something.
    """
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    check(empty, "out", str(out), "must be a new or empty folder")
    with aside(out) as work:
        work.mkdir()
        yield work


def save_portable(part: Any, folder: Path) -> None:
    """Write a network, a tokenizer or a whole pipeline to `folder`: safetensors and JSON that name no other folder."""
    part.save_pretrained(folder, safe_serialization=True)
    forget_paths(folder)


def forget_paths(folder: Path) -> None:
    """Take out of the configurations below `folder` where they were read from: a path of this machine."""
    for file in sorted(folder.rglob("*.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # of somebody's pipeline; whoever loads it says what is wrong with it
            continue
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_student(checkpoint: Checkpoint, cut: Variant, out: Path) -> UNet2DConditionModel:
    """Cut a student of `checkpoint` into the new folder `out`: a whole pipeline where the teacher is one, else a U-Net.

    UserError: `out` holds something. The folder appears when it is complete.
    """
    with _whole_or_nothing(out) as work:
        student = surgery.shrink_checkpoint(checkpoint, cut)
        if checkpoint.pipeline is not None:
            shutil.copytree(checkpoint.pipeline, work, ignore=_ignored(checkpoint.pipeline), dirs_exist_ok=True)
        save_portable(student, work / "unet" if checkpoint.pipeline is not None else work)
        forget_paths(work)  # what came with the teacher's other parts
        dtype, teacher = str(student.dtype).removeprefix("torch."), name_of(checkpoint.source)
        (work / "README.md").write_text(model_card(checkpoint.config, cut, teacher, dtype), encoding="utf-8")
    return student


def save_distilled(
    pipeline: StableDiffusionPipeline, card: str, out: Path, adapter: Mapping[str, Tensor] | None = None
) -> None:
    """Write a trained pipeline and its model card to the new folder `out`; it appears when it is complete.

    An `adapter` of LoRA, whose weights the U-Net has in it, is written to its folder ``lora`` as well.
    """
    with _whole_or_nothing(out) as work:
        save_portable(pipeline.to("cpu"), work)
        if adapter:
            pipeline.save_lora_weights(work / "lora", unet_lora_layers=dict(adapter), safe_serialization=True)
        (work / "README.md").write_text(card, encoding="utf-8")


def name_of(source: str) -> str:
    """Name a teacher on a model card: a hub id as it is, a folder without the path of this machine."""
    return Path(source).name if Path(source).exists() else source


def _ignored(pipeline: Path) -> Callable[[str, list[str]], set[str]]:
    """Leave out of a copied pipeline its U-Net, whole-model files beside it, and what would have to be unpickled."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == pipeline
        left = {n for n in names if n.endswith((".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb"))}
        left |= {n for n in names if n.startswith(".")}
        return left | ({n for n in names if n in ("unet", "README.md") or n.endswith(".safetensors")} if top else set())

    return ignore
