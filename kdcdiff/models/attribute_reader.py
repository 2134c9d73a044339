"""The reader of what a picture shows, attribute by attribute: its network, and how it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcdiff.models.shipped import shipped


class AttributeReader(nn.Module):
    """A small convolutional network with a head for each of `attributes` (name -> values).

    Takes square images (N, 3, H, W) of 32 pixels a side or more, uint8 or float in [0, 1]. Its last map is pooled to
    4x4 places, not to one: who stands where is among what it reads.
    """

    def __init__(self, attributes: Mapping[str, Sequence[str]], width: int = 24) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        layers: list[nn.Module] = []
        for before, after, stride in ((3, width, 2), (width, 2 * width, 1), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(before, after, 5 if stride == 2 else 3, stride, padding=2 if stride == 2 else 1)]
            layers += [nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=4), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(4), nn.Flatten())
        self.trunk = nn.Sequential(nn.Linear(64 * width, 192), nn.LayerNorm(192), nn.SiLU())
        self.head = nn.Linear(192, sum(map(len, self.attributes.values())))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits of each attribute, (N, values)."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        logits = self.head(self.trunk(self.body(pixels * 2 - 1)))
        return dict(zip(self.attributes, logits.split([len(v) for v in self.attributes.values()], 1), strict=True))


def save_reader(reader: AttributeReader, folder: Path) -> None:
    """Write `folder`: the attributes with their values, and the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"attributes": reader.attributes}, indent=1))
    save_file({k: v.half().contiguous() for k, v in reader.state_dict().items()}, folder / "model.safetensors")


def load_reader(name: str | Path = "garden") -> AttributeReader:
    """Read the reader of attributes that ships for a data set, or a folder's, in float32, frozen."""
    folder = shipped(name, "attributes")
    model = AttributeReader(**json.loads((folder / "config.json").read_text()))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval().requires_grad_(False)
