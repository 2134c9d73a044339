"""How a reader of attributes is trained: on real pictures only, in every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcdiff.data.latents import draw_rows
from kdcdiff.models.attribute_reader import AttributeReader
from kdcdiff.training.components import soften_half
from kdcdiff.training.loop import fit


def train_reader(
    images: Tensor,
    targets: Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    steps: int,
    batch: int,
    seed: int,
    folder: Path | None = None,
    describe: str = "attributes",
    device: str | torch.device = "cpu",
) -> AttributeReader:
    """Train on `device` with cross-entropy, summed over `attributes`, on `images` (N, 3, H, W) uint8.

    `targets` (N, attributes) number the values. Pictures vary in exposure and place and are not mirrored: left and
    right are among the attributes. Half of each batch is resampled to a lower resolution and back, as for the
    classifier: softness must not be read as another value.
    """
    torch.manual_seed(seed)
    model = AttributeReader(attributes).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = draw_rows(batch, len(images), generator)
        pixels = images[rows].float() / 255
        height, width = pixels.shape[-2:]
        most = width // 20
        dx, dy = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
        pixels = F.pad(pixels, (most,) * 4, mode="replicate")[:, :, dy : dy + height, dx : dx + width]
        pixels = pixels * (0.9 + 0.2 * torch.rand(batch, 1, 1, 1, generator=generator))
        soften_half(pixels, width * 2 // 5, width * 4 // 5, generator)
        return {"pixels": pixels.clamp(0, 1).contiguous(memory_format=torch.channels_last), "wanted": targets[rows]}

    def loss(model: nn.Module, data: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(data["pixels"])
        terms = {k: F.cross_entropy(v, data["wanted"][:, i]) for i, (k, v) in enumerate(logits.items())}
        return torch.stack(list(terms.values())).sum(), {k: v.detach() for k, v in terms.items()}

    fit(
        model,
        loss,
        batch_of,
        steps=steps,
        lr=2e-3,
        seed=seed,
        warmup=min(100, steps // 10),
        weight_decay=0.05,
        folder=folder,
        checkpoint_every=100,
        describe=describe,
    )
    return model.requires_grad_(False)
