"""The in-domain classifier: its network, and how it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcdiff.models.shipped import shipped


class Classifier(nn.Module):
    """The in-domain classifier: a small convolutional network that has seen real images only, of every class.

    Takes images (N, 3, 64, 64), uint8 or float in [0, 1]; gives logits (N, classes). `features` are what in-domain
    FID and KID are measured on, (N, 128).
    """

    def __init__(self, classes: Sequence[str], width: int = 24) -> None:
        super().__init__()
        self.classes = tuple(classes)
        channels = (width, 2 * width, 4 * width, 128)
        layers: list[nn.Module] = []
        for previous, current in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(previous, current, 3, padding=1), nn.GroupNorm(8, current), nn.SiLU()]
            layers += [nn.Conv2d(current, current, 3, padding=1, groups=8), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, len(self.classes))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature map of each of the four stages, (N, C, H, W), before its pooling."""
        x, found = (images.float() / 255 if images.dtype == torch.uint8 else images) * 2 - 1, []
        for layer in self.body:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return found

    def features(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.body(pixels * 2 - 1).amax((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def save_classifier(classifier: Classifier, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"classes": classifier.classes}, indent=1))
    save_file({k: v.half().contiguous() for k, v in classifier.state_dict().items()}, folder / "model.safetensors")


def load_classifier(folder: Path | None = None) -> Classifier:
    """The independent classifier, the shipped one (all flora classes) or a folder's."""
    folder = folder or shipped("classifier")
    model = Classifier(json.loads((folder / "config.json").read_text())["classes"])
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval().requires_grad_(False)
