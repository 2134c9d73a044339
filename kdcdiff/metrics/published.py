"""Published feature networks, read from safetensors with their checksums: Inception, CLIP, DINO, LPIPS.

They come from a folder or from the hub. A folder holds ``checksums.json`` (file name -> sha256); the hub's files carry
theirs. Nothing is unpickled, so torch-fidelity's and torchvision's ``.pth`` files have to be converted once, outside,
with the module's own key names.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lpips
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from kdcdiff.errors import UserError, check
from kdcdiff.metrics.extractors import Clip, Extractor, Perceptual
from kdcdiff.provenance import sha256_file


def _inception(name: str, folder: Path, file: str) -> Extractor:
    # The library's class fills itself while it is made, by unpickling a download or a file. A copy of its module, ours
    # alone, is given the same tensors from safetensors instead.
    spec = importlib.util.find_spec("torch_fidelity.feature_extractor_inceptionv3")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_state_dict_from_url = lambda *_, **__: load_file(folder / file)
    model = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    # torch-fidelity's inception score leaves the bias out of the logits, as the original did
    return Extractor(name, model, lambda net, images: net(images)[0], lambda net, rows: rows @ net.fc.weight.T)


def _alex(name: str, folder: Path, file: str) -> Perceptual:
    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    network.load_state_dict(load_file(folder / file))
    return Perceptual(name, network, lambda net, a, b: net(a.float() / 127.5 - 1, b.float() / 127.5 - 1))


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


PUBLISHED: dict[str, tuple[Callable[[str, Path, str], Any], str, str | None]] = {
    # name -> its reader, its file in a folder, its hub id (None: not there as safetensors)
    "inception": (_inception, "inception.safetensors", None),
    "lpips-alex": (_alex, "lpips-alex.safetensors", None),
    "clip-vit-b-32": (_clip, "model.safetensors", "openai/clip-vit-base-patch32"),
    "clip-vit-g-14": (_clip, "model.safetensors", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    "dino-vit-s-16": (_dino, "model.safetensors", "facebook/dino-vits16"),
}


def published(name: str, folder: str | Path | None = None) -> Any:
    """Load a published network from `folder` or the hub: `Extractor`, `Clip` (clip-*) or `Perceptual` (lpips-alex).

    Inception resizes to 299 as TF1 does (torch-fidelity's port), CLIP to its size bicubically, DINO to 224 bicubically;
    LPIPS reads images at their own size. UserError: an unknown name, weights that are missing or not the right ones.
    """
    check(name in PUBLISHED, "extractor", name, f"must be one of {', '.join(PUBLISHED)}")
    reader, file, hub_id = PUBLISHED[name]
    if folder is not None:
        folder = Path(folder).expanduser()
        _check_listed(folder, file)
    elif hub_id is not None:
        folder = _hub_folder(name, hub_id, file)
    else:
        raise UserError(f"extractor={name!r}: give a folder that holds {file} and checksums.json")
    try:
        return reader(name, folder, file)
    except (KeyError, RuntimeError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"weights={str(folder)!r}: do not hold {name} ({reason})") from error


def _check_listed(folder: Path, file: str) -> None:
    """Refuse `folder/file` unless its sha256 is the one that ``checksums.json`` gives."""
    check((folder / file).is_file(), "weights", str(folder), f"must be a folder that holds {file}")
    try:
        wanted = json.loads((folder / "checksums.json").read_text(encoding="utf-8")).get(file)
    except (OSError, ValueError, AttributeError):
        wanted = None
    check(wanted is not None, "weights", str(folder), f"needs checksums.json with the sha256 of {file}")
    _check_sum(folder / file, str(wanted))


def _check_sum(path: Path, wanted: str) -> None:
    found = sha256_file(path)
    allowed = f"has the sha256 {found[:12]}..., not {wanted[:12]}...; fetch it again"
    check(found == wanted, "weights", str(path), allowed)


def _hub_folder(name: str, hub_id: str, file: str) -> Path:
    """Fetch a snapshot from the hub whose weights match the hub's checksum: its large files are named by it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", file]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"extractor={name!r}: {hub_id} cannot be had from the hub ({type(error).__name__}); "
            "give a folder with its weights"
        ) from error
    allowed = f"{hub_id} has no {file}; give a folder with its weights"
    check((folder / file).is_file(), "extractor", name, allowed)
    blob = (folder / file).resolve()
    _check_sum(blob, blob.name)
    return folder
