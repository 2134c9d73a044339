"""A U-Net on disk, read no further than asked: its configuration, and its tensors one at a time.

Read are ``flora`` (the shipped pipeline), a diffusers pipeline or U-Net folder (whole or sharded), a hub id, and a
single ``.safetensors`` file, in diffusers' names or in those of the original Stable Diffusion code. Nothing is
unpickled. Because tensors are read one at a time, a student can be made from a checkpoint without its teacher ever
being in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kdcdiff.errors import UserError, check
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.shipped import UNETS, find_pipeline, hub_advice

LDM = "model.diffusion_model."  # what the original code's U-Net parameters start with
HUB_TEXTS = ("*.json", "*.txt", "LICENSE*")  # a pattern's star crosses folders
HUB_UNUSED = ("safety_checker/*", "*non_ema*")
HUB_WEIGHTS = ("*/*.safetensors", "diffusion_pytorch_model*.safetensors")  # not the whole-model files at the top


@dataclass(frozen=True)
class Checkpoint:
    """A U-Net's configuration and where each of its tensors lies."""

    source: str  # as the user named it
    config: dict[str, Any]
    places: dict[str, tuple[Path, str]]  # parameter -> (file, its name in there)
    pipeline: Path | None  # the pipeline folder that it came from

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensor of each item ``(new name, parameter)``, in memory of its own and its dtype as found."""
        with ExitStack() as stack:
            files = {file: stack.enter_context(_open(file)) for file in {self.places[p][0] for p in names.values()}}
            for new, parameter in names.items():
                file, name = self.places[parameter]
                yield new, files[file].get_tensor(name).clone()

    def shapes(self) -> dict[str, _Shape]:
        """Read each parameter's shape from the files' headers."""
        shapes: dict[str, _Shape] = {}
        for file in {file for file, _ in self.places.values()}:
            with _open(file) as f:
                shapes |= {
                    p: _Shape(tuple(f.get_slice(n).get_shape())) for p, (g, n) in self.places.items() if g == file
                }
        return shapes


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def open_unet(source: str | Path, pipeline: str | Path | None = None) -> Checkpoint:
    """Open the U-Net at `source`. `pipeline` is one to take the configuration from, where `source` is a file.

    UserError: no such path or hub id, another kind of model, or weights that would have to be unpickled.
    """
    path = find_pipeline(source, unet=True) or from_hub(str(source))
    if path.is_file():
        return _single_file(path, (find_pipeline(pipeline) or from_hub(str(pipeline))) if pipeline else None)
    adapters = [f for f in ("adapter_config.json", "pytorch_lora_weights.safetensors") if (path / f).is_file()]
    check(not adapters, "teacher", str(source), "a LoRA folder; fuse it into its U-Net, save that, and shrink it")
    whole = (path / "model_index.json").is_file()
    folder = path / "unet" if whole else path
    held = (folder / "config.json").is_file()
    check(held, "teacher", str(source), f"has no U-Net configuration; must be {UNETS}")
    return Checkpoint(str(source), read_json(folder / "config.json"), _places(folder), path if whole else None)


def read_config(source: str | Path) -> dict[str, Any]:
    """Read the configuration of the U-Net at `source`, without its weights."""
    path = find_pipeline(source, unet=True) or from_hub(str(source), HUB_TEXTS)
    if path.is_file():
        return _single_file(path, None).config
    for file in (path / "unet" / "config.json", path / "config.json"):
        if file.is_file():
            return read_json(file)
    raise UserError(f"path={str(source)!r}: has no U-Net configuration; must be {UNETS}")


def read_resolution(source: str | Path) -> int:
    """Read the side of the pictures that the pipeline at `source` was trained on, in pixels, without its weights."""
    folder = find_pipeline(source) or from_hub(str(source), HUB_TEXTS)
    side = read_json(folder / "unet" / "config.json").get("sample_size")
    check(isinstance(side, int), "sample_size", side, "must be one number: the pipeline's pictures must be square")
    return side * 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError where the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"file={str(path)!r}: cannot be read as JSON ({type(error).__name__})") from None
    check(isinstance(value, dict), "file", str(path), "must hold a JSON object")
    return value


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"file={str(file)!r}: cannot be read as safetensors ({error})") from None


def tensor_names(file: Path) -> list[str]:
    """List the tensors of a safetensors file. UserError: it is none."""
    with _open(file) as f:
        return list(f.keys())


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Find where each tensor of a diffusers folder lies: in shards, in one file, or in one of another precision."""
    indices = sorted(folder.glob("diffusion_pytorch_model.safetensors.index*.json"))
    if indices:
        names = read_json(indices[0]).get("weight_map")
        plain = isinstance(names, dict) and all(isinstance(f, str) and f == Path(f).name for f in names.values())
        check(plain, "file", str(indices[0]), "must name for each tensor the file beside it that holds it")
        assert isinstance(names, dict)
        for shard in sorted(set(names.values())):
            check((folder / shard).is_file(), "file", str(folder / shard), f"missing; {indices[0].name} names it")
        return {name: (folder / shard, name) for name, shard in names.items()}
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"), key=lambda f: len(f.name))
    pickled = sorted(f.name for f in folder.glob("*.bin")) + sorted(f.name for f in folder.glob("*.ckpt"))
    hint = f"{pickled[0]} would have to be unpickled; convert it to safetensors" if pickled else "no weights there"
    check(bool(files), "teacher", str(folder), hint)
    return {name: (files[0], name) for name in tensor_names(files[0])}


def _single_file(path: Path, pipeline: Path | None) -> Checkpoint:
    safe = path.suffix == ".safetensors"
    check(safe, "teacher", str(path), "would have to be unpickled; convert it to safetensors")
    with _open(path) as f:
        names = list(f.keys())
        original = any(name.startswith(LDM) for name in names)
        lora = any("lora" in name.lower() for name in names)
        check(not lora, "teacher", str(path), "a LoRA file; fuse it into its U-Net, save that, and shrink it")
        stem, block = "conv_in", "down_blocks.0.attentions.0"
        if original:
            stem, block = LDM + "input_blocks.0.0", LDM + "input_blocks.1.1"
        stem, text = f"{stem}.weight", f"{block}.transformer_blocks.0.attn2.to_k.weight"
        known = all(n in names and len(f.get_slice(n).get_shape()) >= 2 for n in (stem, text))
        check(known, "teacher", str(path), "holds no U-Net of Stable Diffusion 1.x or 2.x")
        channels, width = f.get_slice(stem).get_shape()[1], f.get_slice(text).get_shape()[1]
    if pipeline is not None:
        config = read_config(pipeline)
    else:
        family = {768: "sd-1", 1024: "sd-2"}.get(width)
        allowed = "768 (1.x) or 1024 (2.x); name a pipeline folder that has its configuration"
        check(family is not None, "teacher", str(path), f"its prompts are {width} wide, not {allowed}")
        config = {"_class_name": "UNet2DConditionModel"} | CONFIGS[str(family)] | {"in_channels": channels}
    renamed = _diffusers_names(names, config) if original else {name: name for name in names}
    return Checkpoint(str(path), config, {new: (path, old) for new, old in renamed.items()}, pipeline)


def _diffusers_names(names: list[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Map diffusers' parameter names to the original code's: diffusers' own converter, run on the names themselves."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layers = {"layers_per_block": 2} | dict(config)
    return convert_ldm_unet_checkpoint({name: name for name in names}, layers)


def from_hub(name: str, patterns: tuple[str, ...] = HUB_TEXTS + HUB_WEIGHTS) -> Path:
    """Fetch what matches `patterns` of the hub's model `name`, or find it in the cache; return its folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(HUB_UNUSED)))
    except Exception as error:  # the hub's many ways to fail
        raise UserError(f"pipeline={name!r}: {hub_advice(name, error)}") from None
