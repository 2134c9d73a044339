"""What metrics look through: networks that turn images into features, embeddings or distances.

    features = extractors.features(load_classifier())          # (N, 3, H, W) uint8 -> (N, 128)
    inception = published("inception", folder)                 # kdcdiff.metrics.published: checked by checksum

In-domain ones, trained by the book itself, stand where the published ones cannot be had. Each carries the name that
is printed with every figure made through it: figures of two extractors are never comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels

from kdcdiff.data.image_set import check_images
from kdcdiff.errors import UserError, check
from kdcdiff.provenance import sha256_weights

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

CPU_BATCH = 32  # images at a time on a CPU: their activations stay in its cache (three times as fast as 256)


class Extractor(nn.Module):
    """Images (N, 3, H, W) uint8 to features (N, D) float32, as `read(model, images)` gives them.

    `head(model, features)` gives class logits (N, classes); None: the model has none.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        read: Callable[[Any, Tensor], Tensor],
        head: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.read, self.head = read, head

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        parts = images.split(CPU_BATCH) if self.device.type == "cpu" else (images,)
        laid_out = (part.to(self.device).contiguous(memory_format=torch.channels_last) for part in parts)
        return torch.cat([self.read(self.model, part).flatten(1).float() for part in laid_out])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Return the class logits (N, classes) that follow from features (N, D). UserError: there are none."""
        if self.head is None:
            raise UserError(f"extractor={self.name!r}: has no class logits")
        return self.head(self.model, features.to(self.device)).cpu()

    def train(self, mode: bool = True) -> Extractor:
        """Stay in evaluation mode, whatever a metric asks."""
        return super().train(False)

    def key(self) -> str:
        """Return a checksum of name and weights: what a cache of its features is named by."""
        return hashlib.sha256(f"{self.name}:{sha256_weights(self.model.state_dict())}".encode()).hexdigest()


def _named(classifier: nn.Module, name: str | None, more: str = "") -> str:
    """Name an in-domain network: whose pictures it knows, and the size that it looks at where it has one of its own."""
    name, side = name or f"{getattr(classifier, 'dataset', 'own')} classifier{more}", getattr(classifier, "side", None)
    return name if side is None else f"{name} at {side} px"


def features(classifier: nn.Module, name: str | None = None) -> Extractor:
    """Make the in-domain extractor of FID, KID and the inception score: a classifier's features, at any image size."""
    return Extractor(
        _named(classifier, name),
        classifier,
        lambda model, images: model.features(images),
        lambda model, rows: model.head(rows),
    )


def logits(classifier: nn.Module, name: str | None = None) -> Extractor:
    """Make an extractor of the same classifier's logits: what a metric says of another layer."""
    name = _named(classifier, name)
    return Extractor(name, classifier, lambda model, images: model(images), lambda model, rows: rows)


class Clip(nn.Module):
    """A CLIP's two towers: `images` (N, 3, H, W) uint8 and `texts` to embeddings (N, D), not normalised.

    Images are resized (bicubic, antialiased, shorter side) and centre-cropped to the model's size, rounded to bytes as
    PIL would, and scaled by `mean` and `std`. Texts are padded to the full length without a mask, as in training.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str | None = None,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        own = f"{getattr(model.config, 'dataset', 'own')} CLIP"
        self.name, self.tokenizer, self.mean, self.std = name or own, tokenizer, list(mean), list(std)
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embed images, (N, D)."""
        side = self.model.config.vision_config.image_size
        images = check_images(images).to(self.model.device)
        if tuple(images.shape[-2:]) != (side, side):
            resized = pixels.resize(images, [side], pixels.InterpolationMode.BICUBIC, antialias=True)
            images = pixels.center_crop(resized, [side, side])
        scaled = pixels.normalize(images.float() / 255, self.mean, self.std)
        return self.model.get_image_features(scaled).pooler_output.float()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, (N, D)."""
        length = self.model.config.text_config.max_position_embeddings
        padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **padded)
        return self.model.get_text_features(tokens.input_ids.to(self.model.device)).pooler_output.float()


def embeddings(clip: Clip) -> Extractor:
    """Make the second in-domain extractor of distances: a CLIP's image embeddings.

    It has another architecture than the classifier (a transformer) and another objective (captions, not classes), and
    no class logits. The shipped one learnt from the same pictures.
    """
    return Extractor(clip.name, clip, lambda model, images: model.images(images))


class Perceptual(nn.Module):
    """The distance of images a and b, each (N, 3, H, W) uint8, pair by pair: `distance(network, a, b)`, (N,)."""

    def __init__(self, name: str, network: nn.Module, distance: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.distance = name, distance
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        allowed = f"must have the shape of their partners, {tuple(a.shape)}"
        check(a.shape == b.shape, "images", tuple(b.shape), allowed)
        device = next(p.device for p in self.network.parameters())
        a, b = (check_images(x).to(device).contiguous(memory_format=torch.channels_last) for x in (a, b))
        return self.distance(self.network, a, b).flatten().cpu()


def perceptual(classifier: nn.Module) -> Perceptual:
    """Make the in-domain distance in LPIPS's form (Zhang et al. 2018, equation 1), over the classifier's four stages.

    Not LPIPS: no layer weights were fitted to human judgement. Comparable with itself only.
    """
    return Perceptual(_named(classifier, None, ", unlearned"), classifier, _unit_distance)


def _unit_distance(classifier: Any, a: Tensor, b: Tensor) -> Tensor:
    """Sum over stages the mean squared difference of unit features, (N,): lpips' own "baseline" form."""
    total = torch.zeros(len(a), device=a.device)
    for maps in zip(classifier.maps(a), classifier.maps(b), strict=True):
        x, y = (f / ((f**2).sum(1, keepdim=True).sqrt() + 1e-10) for f in maps)
        total = total + ((x - y) ** 2).sum(1).mean((1, 2))
    return total
