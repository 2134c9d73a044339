"""Published feature networks, read from safetensors with their checksums: Inception, CLIP, DINO, LPIPS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lpips
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from kdcdiff.errors import UserError, check
from kdcdiff.metrics.extractors import Clip, Extractor, Perceptual

# --- published ones -----------------------------------------------------------------------------------------

PUBLISHED = {  # name -> file in a folder, hub id (None: not there as safetensors)
    "inception": ("inception.safetensors", None),
    "lpips-alex": ("lpips-alex.safetensors", None),
    "clip-vit-b-32": ("model.safetensors", "openai/clip-vit-base-patch32"),
    "clip-vit-g-14": ("model.safetensors", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    "dino-vit-s-16": ("model.safetensors", "facebook/dino-vits16"),
}


def checked_file(folder: Path, name: str) -> Path:
    """`folder/name` once its sha256 is the one that ``checksums.json`` gives; UserError otherwise."""
    check((folder / name).is_file(), "weights", str(folder), f"must be a folder that holds {name}")
    table = folder / "checksums.json"
    try:
        wanted = json.loads(table.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError):
        wanted = None
    check(wanted is not None, "weights", str(folder), f"needs checksums.json with the sha256 of {name}")
    return _checked(folder / name, str(wanted))


def _checked(path: Path, wanted: str) -> Path:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    check(
        found == wanted,
        "weights",
        str(path),
        f"has the sha256 {found[:12]}..., not {wanted[:12]}...; fetch it again",
    )
    return path


def _hub_folder(name: str, hub_id: str, file: str) -> Path:
    """A snapshot from the hub whose weights match the checksum that the hub states (its large files are named
    by it).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", file]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"extractor={name!r}: {hub_id} cannot be had from the hub ({type(error).__name__}); "
            "give a folder with its weights"
        ) from error
    check(
        (folder / file).is_file(),
        "extractor",
        name,
        f"{hub_id} has no {file}; give a folder with its weights",
    )
    _checked((folder / file).resolve(), (folder / file).resolve().name)
    return folder


def published(name: str, folder: str | Path | None = None) -> Any:
    """A published extractor, from `folder` or the hub: `Extractor`, `Clip` (clip-*) or `Perceptual`
    (lpips-alex).

    Inception resizes to 299 as TF1 does (torch-fidelity's port), CLIP to its size bicubically, DINO to 224
    bicubically; LPIPS reads images at their own size. UserError: an unknown name, weights that are missing or
    not the right ones.
    """
    check(name in PUBLISHED, "extractor", name, f"must be one of {', '.join(PUBLISHED)}")
    file, hub_id = PUBLISHED[name]
    if folder is None:
        if hub_id is None:
            raise UserError(f"extractor={name!r}: give a folder that holds {file} and checksums.json")
        folder = _hub_folder(name, hub_id, file)
    else:
        folder = Path(folder).expanduser()
        checked_file(folder, file)
    try:
        return _READERS[name](name, folder, file)
    except (KeyError, RuntimeError, OSError, ValueError) as error:
        raise UserError(f"weights={str(folder)!r}: do not hold {name} ({str(error).splitlines()[0][:120]})") from error


def _inception(name: str, folder: Path, file: str) -> Extractor:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    # The library's constructor would unpickle a download: it gets the same tensors from safetensors.
    with mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: load_file(folder / file)):
        model = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    return Extractor(name, model, lambda inception, images: inception(images)[0])


def _alex(name: str, folder: Path, file: str) -> Perceptual:
    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    network.load_state_dict(load_file(folder / file))
    return Perceptual(name, network)


def _clip(name: str, folder: Path, file: str) -> Clip:
    model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    scale = CLIPImageProcessor.from_pretrained(folder)
    return Clip(model, CLIPTokenizer.from_pretrained(folder), name, mean=scale.image_mean, std=scale.image_std)


def _dino(name: str, folder: Path, file: str) -> Extractor:
    model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, trust_remote_code=False)

    def read(vit: nn.Module, images: Tensor) -> Tensor:
        resized = pixels.resize(images, [224, 224], pixels.InterpolationMode.BICUBIC, antialias=True)
        scaled = pixels.normalize(resized.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return vit(pixel_values=scaled).last_hidden_state[:, 0]  # the class token

    return Extractor(name, model, read)


_READERS: dict[str, Callable[[str, Path, str], Any]] = {
    "inception": _inception,
    "lpips-alex": _alex,
    "clip-vit-b-32": _clip,
    "clip-vit-g-14": _clip,
    "dino-vit-s-16": _dino,
}
