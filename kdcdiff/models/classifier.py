"""The in-domain classifier: its network, and how it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcdiff.models.shipped import dataset_of, shipped


class Classifier(nn.Module):
    """The in-domain classifier: a small convolutional network of four stages, each of which halves the side.

    Takes images (N, 3, H, W) of 16 pixels a side or more, uint8 or float in [0, 1]; gives logits (N, classes). With
    `side` it looks at them at that size, whatever theirs is.
    """

    dataset = "own"  # whose pictures it was trained on: a part of the name that figures through it are printed with

    def __init__(self, classes: Sequence[str], width: int = 24, side: int | None = None) -> None:
        super().__init__()
        self.classes, self.side = tuple(classes), side
        channels = (width, 2 * width, 4 * width, 128)
        layers: list[nn.Module] = []
        for previous, current in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(previous, current, 3, padding=1), nn.GroupNorm(8, current), nn.SiLU()]
            layers += [nn.Conv2d(current, current, 3, padding=1, groups=8), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], len(self.classes))

    def _run(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return each stage's output before its pooling, and the last one's after it."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        if self.side is not None and pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        x = pixels * 2 - 1
        maps = []
        for layer in self.body:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return maps, x

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the feature map of each of the four stages, (N, C, h, w), before its pooling."""
        return self._run(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Compute what in-domain FID and KID are measured on, (N, 128)."""
        return self._run(images)[1].amax((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write `folder`: the classes, the size if it has one of its own, and the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"classes": classifier.classes} | ({} if classifier.side is None else {"side": classifier.side})
    (folder / "config.json").write_text(json.dumps(words, indent=1))
    save_file({k: v.half().contiguous() for k, v in classifier.state_dict().items()}, folder / "model.safetensors")


def load_classifier(name: str | Path = "flora") -> Classifier:
    """Read the independent classifier that ships for a data set (all its classes) or a folder's; float32, frozen."""
    folder = shipped(name, "classifier")
    model = Classifier(**json.loads((folder / "config.json").read_text()))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    model.dataset = dataset_of(name)
    return model.eval().requires_grad_(False)
