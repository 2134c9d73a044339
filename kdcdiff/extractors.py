"""What metrics look through: networks that turn images into features, and the libraries' hooks for them.

    judge = extractors.features(stack.classifier())            # (N, 3, 64, 64) uint8 -> (N, 128)
    inception = extractors.published("inception", folder)      # the published one, checked by checksum

In-domain extractors, trained by the book itself, stand in where the published ones cannot be had. Each
carries the name that is printed with every figure made through it: figures of two extractors are never
comparable.

Published weights are read as safetensors only, from a folder or from the hub. A folder holds
``checksums.json`` (file name -> sha256); the hub's files carry theirs. Nothing is unpickled, so
torch-fidelity's and torchvision's ``.pth`` files have to be converted once, outside, with the module's own
key names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lpips
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchvision.transforms.v2 import functional as pixels
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from kdcdiff.errors import UserError, check

CPU_BATCH = 32  # images at a time on a CPU: their activations stay in its cache (three times as fast as 256)


def check_images(images: Tensor, name: str = "images") -> Tensor:
    """`images` if they are a batch of (N, 3, H, W) uint8; UserError otherwise."""
    ok = images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3
    check(ok, name, f"{tuple(images.shape)} {images.dtype}", "must be (N, 3, H, W) uint8, values 0 to 255")
    return images


def _pooled(output: Any) -> Tensor:
    """transformers 5 wraps what 4 returned bare."""
    return output if isinstance(output, Tensor) else output.pooler_output


class Extractor(nn.Module):
    """Images (N, 3, H, W) uint8 to features (N, num_features) float32: the form that torchmetrics' hooks
    take.
    """

    def __init__(self, name: str, model: nn.Module, read: Callable[[Any, Tensor], Tensor], size: int = 64) -> None:
        super().__init__()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._read = read
        self.num_features = int(self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        parts = images.split(CPU_BATCH) if device.type == "cpu" else (images,)
        laid_out = (part.to(device).contiguous(memory_format=torch.channels_last) for part in parts)
        return torch.cat([self._read(self.model, part).flatten(1).float() for part in laid_out])

    def train(self, mode: bool = True) -> Extractor:
        """Stays in evaluation mode, whatever a metric asks."""
        return super().train(False)

    def key(self) -> str:
        """A checksum of name and weights: what a cache of its features is named by."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def features(classifier: nn.Module, name: str = "flora classifier") -> Extractor:
    """The in-domain extractor of FID and KID: a classifier's features, read at the images' own size."""
    return Extractor(name, classifier, lambda model, images: model.features(images))


def logits(classifier: nn.Module, name: str = "flora classifier") -> Extractor:
    """The in-domain extractor of the inception score: the same classifier's logits."""
    return Extractor(name, classifier, lambda model, images: model(images))


class Clip(nn.Module):
    """A CLIP's two towers: `images` (N, 3, H, W) uint8 and `texts` to embeddings (N, D), not normalised.

    Images are resized (bicubic, antialiased, shorter side) and centre-cropped to the model's size, rounded to
    bytes as PIL would, and scaled by `mean` and `std`. Texts are padded to the full length without a mask, as
    in training.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str = "flora CLIP",
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.name, self.tokenizer, self.mean, self.std = name, tokenizer, list(mean), list(std)
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        images = check_images(images).to(self.model.device)
        if tuple(images.shape[-2:]) != (side, side):
            resized = pixels.resize(images, [side], pixels.InterpolationMode.BICUBIC, antialias=True)
            images = pixels.center_crop(resized, [side, side])
        scaled = pixels.normalize(images.float() / 255, self.mean, self.std)
        return _pooled(self.model.get_image_features(scaled)).float()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return _pooled(self.model.get_text_features(tokens.input_ids.to(self.model.device))).float()

    def extractor(self) -> Extractor:
        """Its image tower alone, for CLIP-I."""
        return Extractor(
            self.name,
            self,
            lambda model, images: model.images(images),
            self.model.config.vision_config.image_size,
        )

    def for_torchmetrics(self) -> tuple[nn.Module, Callable[..., dict[str, Any]]]:
        """(model, processor) as `torchmetrics`' clip_score takes them; it expects tensors where transformers
        5 wraps.
        """
        return _TorchmetricsClip(self), _processor


class _TorchmetricsClip(nn.Module):
    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.config = None

    def get_image_features(self, images: Tensor) -> Tensor:
        return self.clip.images(images)

    def get_text_features(self, texts: _Texts, mask: _Texts) -> Tensor:
        return self.clip.texts(texts.texts)


@dataclass(frozen=True)
class _Texts:
    """Strings that pass for a tensor on their way through torchmetrics."""

    texts: tuple[str, ...]

    def to(self, device: torch.device) -> _Texts:
        return self


def _processor(images: Sequence[Tensor] = (), text: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    if len(images):
        return {"pixel_values": torch.stack(list(images))}
    return {"input_ids": _Texts(tuple(text)), "attention_mask": _Texts(tuple(text))}


# --- perceptual distances -----------------------------------------------------------------------------------


class Perceptual(nn.Module):
    """The distance of images a and b, each (N, 3, H, W) uint8, pair by pair: (N,). The network sees [-1,
    1].
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        check(
            a.shape == b.shape,
            "images",
            tuple(b.shape),
            f"must have the shape of their partners, {tuple(a.shape)}",
        )
        device = next(p.device for p in self.network.parameters())
        a, b = (check_images(x).to(device).contiguous(memory_format=torch.channels_last) for x in (a, b))
        return self.network(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten().cpu()


class _Stages(nn.Module):
    """A sequential trunk's activations before each of its poolings."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        out = []
        for layer in self.body:
            if isinstance(layer, nn.MaxPool2d):
                out.append(x)
            x = layer(x)
        return out


class _Unlearned(lpips.LPIPS):
    """lpips' own distance in its "baseline" form, without weights learnt from human judgement, over another
    trunk.
    """

    def __init__(self, trunk: _Stages) -> None:
        nn.Module.__init__(self)
        self.net, self.L = trunk, sum(isinstance(layer, nn.MaxPool2d) for layer in trunk.body)
        self.lpips, self.spatial, self.version = False, False, "0.1"
        self.scaling_layer = nn.Identity()


def perceptual(classifier: nn.Module, name: str = "flora classifier, unlearned") -> Perceptual:
    """The in-domain distance in LPIPS's form: lpips' own arithmetic over the classifier's four stages.

    Not LPIPS: no layer weights were fitted to human judgement. Comparable with itself only.
    """
    return Perceptual(name, _Unlearned(_Stages(classifier.body)))  # type: ignore[arg-type]


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


# --- torch-fidelity's hook ----------------------------------------------------------------------------------

_HOOKED: dict[str, Extractor] = {}


class _Hook(FeatureExtractorBase):
    """An `Extractor` as torch-fidelity wants them."""

    def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.extractor = _HOOKED[name]

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.extractor(images),)


def register_with_torch_fidelity(extractor: Extractor) -> str:
    """The name under which `torch_fidelity.calculate_metrics(feature_extractor=...)` finds `extractor`."""
    name = "kdcdiff-" + extractor.name.replace(" ", "-").replace("/", "-")
    _HOOKED[name] = extractor
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, _Hook)
    return name
