"""Pictures with captions and classes, in memory: `ImageSet`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.errors import check

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageSet:
    """`images` (N, 3, H, W) uint8, `labels` (N,) int64 into `classes`, one caption each.

    `masks` (N, H, W) uint8 show where the subjects are; None where nobody knows.
    """

    images: Tensor
    labels: Tensor
    captions: tuple[str, ...]
    classes: tuple[str, ...]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor) -> ImageSet:
        """Take the pictures of these numbers, (n,) int64."""
        masks = None if self.masks is None else self.masks[rows]
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            masks=masks,
            captions=tuple(self.captions[i] for i in rows.tolist()),
        )

    def of_classes(self, names: Sequence[str]) -> ImageSet:
        """Take the pictures of these classes; `classes` stays whole, so labels keep their meaning."""
        return self.subset(rows_of(self.labels, self.classes, names))

    def first(self, count: int) -> ImageSet:
        """Take the first `count` pictures of each class, class after class; of a class with fewer, all."""
        rows = [(self.labels == label).nonzero()[:count, 0] for label in self.labels.unique()]
        return self.subset(torch.cat(rows))

    def resized(self, side: int) -> ImageSet:
        """Bring the pictures to another size; masks are dropped where that changes anything."""
        if self.images.shape[-2:] == (side, side):
            return self
        return replace(self, images=resize(self.images, side), masks=None)

    def views(self, count: int, seed: int) -> ImageSet:
        """Make `count` views of each picture: itself, then random crops of 80 % to all of its side, half flipped.

        A cache that holds the views keeps flips and crops live though each is encoded once: a row is drawn at each
        step. Masks are dropped.
        """
        check(count >= 1, "views", count, "must be 1 or more")
        generator, side = torch.Generator().manual_seed(seed), self.images.shape[-1]
        images, rows = [self.images], torch.arange(len(self)).repeat(count)
        for _ in range(count - 1):
            view = torch.empty_like(self.images)
            for k, image in enumerate(self.images):
                size = int(torch.randint(round(0.8 * side), side + 1, (1,), generator=generator))
                top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
                crop = image[None, :, top : top + size, left : left + size].float()
                crop = F.interpolate(crop, (side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
                mirror = bool(torch.rand((), generator=generator) < 0.5)
                view[k] = (crop.flip(-1) if mirror else crop)[0].to(torch.uint8)
            images.append(view)
        captions = tuple(self.captions[i] for i in rows.tolist())
        return replace(self, images=torch.cat(images), labels=self.labels[rows], captions=captions, masks=None)

    def save(self, folder: Path) -> None:
        """Write the set to `folder`, as safetensors and JSON."""
        tensors = {"images": self.images, "labels": self.labels} | ({} if self.masks is None else {"masks": self.masks})
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "pictures.safetensors")
        words = {"classes": self.classes, "captions": self.captions}
        (folder / "pictures.json").write_text(json.dumps(words, indent=0))

    @classmethod
    def load(cls, folder: Path) -> ImageSet:
        """Read a set that `save` wrote."""
        fields: dict[str, Any] = load_file(folder / "pictures.safetensors")
        words = json.loads((folder / "pictures.json").read_text())
        fields |= {name: tuple(texts) for name, texts in words.items()}
        return cls(**fields)


def captioned(images: Tensor, caption: str) -> ImageSet:
    """Gather pictures (N, 3, H, W) uint8 of one thing, under one caption that is also their class."""
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (caption,) * len(images), (caption,))


def joined(one: ImageSet, other: ImageSet) -> ImageSet:
    """Put two sets of different classes together, `one` first; masks are dropped."""
    labels = torch.cat([one.labels, other.labels + len(one.classes)])
    images, captions = torch.cat([one.images, other.images]), one.captions + other.captions
    return ImageSet(images, labels, captions, one.classes + other.classes)


def rows_of(labels: Tensor, classes: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return the numbers, (n,) int64, of the rows whose class is one of `names`. UserError: a name not in `classes`."""
    for name in names:
        check(name in classes, "class", name, f"must be one of {', '.join(classes)}")
    return torch.isin(labels, torch.tensor([classes.index(n) for n in names])).nonzero()[:, 0]


def words_of(name: str) -> str:
    """Spell a class's name as captions do: ``red admiral`` of the folder ``red-admiral``."""
    return name.replace("-", " ").replace("_", " ").strip().lower()


def caption_of(name: str) -> str:
    """Fill in the caption template: ``a photo of a red admiral``, with the article that the name wants."""
    name = words_of(name)
    return f"a photo of {'an' if name[:1] in 'aeiou' else 'a'} {name}"


def resize(images: Tensor, side: int) -> Tensor:
    """Bring pictures (N, 3, H, W) uint8 to (N, 3, side, side), bicubic and antialiased, a few at a time."""
    parts = (F.interpolate(part.float(), (side, side), mode="bicubic", antialias=True) for part in images.split(64))
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


Images = Tensor | Iterable[Tensor]  # (N, 3, H, W) uint8, whole or in batches


def check_images(images: Tensor, name: str = "images") -> Tensor:
    """Return `images` if they are (N, 3, H, W) uint8; UserError otherwise."""
    ok = images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3
    check(ok, name, f"{tuple(images.shape)} {images.dtype}", "must be (N, 3, H, W) uint8, values 0 to 255")
    return images


def batches(images: Images, size: int = 256) -> Iterator[Tensor]:
    """Yield batches of (n, 3, H, W) uint8; UserError for anything else, none at all, or images of several sizes."""
    first: tuple[int, ...] | None = None
    for part in images.split(size) if isinstance(images, Tensor) else images:
        own = tuple(part.shape[1:])
        first = first or own
        check(own == first, "images", own, f"must all have one size, {first}")
        yield check_images(part)
    check(first is not None and 0 not in first, "images", 0, "must be at least one image")
