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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lpips
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchvision.transforms.v2 import functional as pixels
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.data.image_set import check_images
from kdcdiff.errors import check

CPU_BATCH = 32  # images at a time on a CPU: their activations stay in its cache (three times as fast as 256)


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
