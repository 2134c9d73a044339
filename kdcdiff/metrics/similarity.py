"""How alike an image is to its prompt (CLIP score), to other images as seen (LPIPS) or pixel by pixel (PSNR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio

from kdcdiff.data.image_set import Images, batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, mean_of
from kdcdiff.metrics.extractors import Clip, Extractor, Perceptual

CLIP_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda cosine: cosine,  # BK-SDM's and KDC-Diff's: raw, unclamped
    "torchmetrics": lambda cosine: 100 * cosine,  # torchmetrics clamps the mean at 0, not the images
    "clipscore": lambda cosine: 2.5 * cosine.clamp(min=0),  # Hessel et al. 2021
}


def clip_cosines(images: Images, prompts: Sequence[str], clip: Clip) -> Tensor:
    """Return cos(image i, prompt i), (N,). UserError: not as many prompts as images."""
    texts = sorted(set(prompts))
    check(len(texts) > 0, "prompts", 0, "must be one for each image")
    encoded = torch.cat([clip.texts(texts[i : i + 256]) for i in range(0, len(texts), 256)]).cpu()
    place = {text: i for i, text in enumerate(texts)}
    found, start = [], 0
    for part in batches(images):
        own = prompts[start : start + len(part)]
        start += len(part)
        check(len(own) == len(part), "prompts", len(prompts), f"fewer than the images, at least {start}")
        found.append(cosine_similarity(clip.images(part).cpu(), encoded[[place[p] for p in own]], reduction="none"))
    check(start == len(prompts), "prompts", len(prompts), f"more than the {start} images")
    return torch.cat(found)


def clip_score(images: Images, prompts: Sequence[str], clip: Clip, *, scale: str = "cosine") -> Estimate:
    """Say how well images fit their prompts, on one of `CLIP_SCALES`, with a bootstrap interval over images."""
    check(scale in CLIP_SCALES, "scale", scale, f"must be one of {', '.join(CLIP_SCALES)}")
    return mean_of(CLIP_SCALES[scale](clip_cosines(images, prompts, clip)), unit=scale, extractor=clip.name)


# --- LPIPS -------------------------------------------------------------------------------------------------
# What "LPIPS" of a generated set against a real set means, KDC-Diff does not say. Five readings:
#   paired     image i against its own original: text-to-image has none; right for reconstructions
#   cross      random pairs of a generated and a real image: chosen for tables, beside the same of real images
#   diversity  random pairs within a set: a collapsed model scores low; of real images it is cross's baseline
#   within     pairs of one prompt: what noise alone changes
#   nearest    each generated image against the closest training image: near zero is memorisation


def _mean_distance(network: Perceptual, a: Tensor, b: Tensor, reading: str) -> Estimate:
    return mean_of(_distances(network, a, b), unit=reading, extractor=network.name)


def _distances(network: Perceptual, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([network(x, y) for x, y in zip(a.split(64), b.split(64), strict=True)])


def lpips_paired(generated: Tensor, real: Tensor, network: Perceptual) -> Estimate:
    """Measure the mean distance of image i to its own original i: 0 for identical sets."""
    allowed = f"must be one for each of the {len(generated)} generated images"
    check(len(generated) == len(real), "real", len(real), allowed)
    return _mean_distance(network, generated, real, "paired")


def lpips_cross(generated: Tensor, real: Tensor, network: Perceptual, *, pairs: int = 500) -> Estimate:
    """Measure the mean distance of random pairs of a generated and a real image.

    Lay beside it `lpips_diversity` of the real set.
    """
    check(len(generated) > 0 and len(real) > 0, "images", 0, "must be at least one in each set")
    generator = torch.Generator().manual_seed(0)
    i, j = (torch.randint(len(x), (pairs,), generator=generator) for x in (generated, real))
    return _mean_distance(network, generated[i], real[j], "cross")


def lpips_diversity(images: Tensor, network: Perceptual, *, pairs: int = 500) -> Estimate:
    """Measure the mean distance of random pairs of two images of one set; of real images it is cross's baseline."""
    check(len(images) >= 2, "images", len(images), "must be at least 2 for a distance within the set")
    generator = torch.Generator().manual_seed(0)
    i = torch.randint(len(images), (pairs,), generator=generator)
    j = (i + torch.randint(1, len(images), (pairs,), generator=generator)) % len(images)
    return _mean_distance(network, images[i], images[j], "diversity")


def lpips_within(images: Tensor, prompts: Sequence[str], network: Perceptual, *, pairs: int = 500) -> Estimate:
    """Measure the mean distance of two images of one prompt, over all such pairs or so many: what a prompt leaves open.

    UserError: no prompt with two images.
    """
    _, told = np.unique(prompts, return_inverse=True)
    i, j = np.nonzero(np.triu(told[:, None] == told[None, :], 1))
    check(len(i) > 0, "prompts", len(told), "must have one that two images are of")
    if len(i) > pairs:
        taken = np.random.default_rng(0).choice(len(i), pairs, replace=False)
        i, j = i[taken], j[taken]
    return _mean_distance(network, images[i], images[j], "within")


def lpips_nearest(
    generated: Tensor, real: Tensor, network: Perceptual, extractor: Extractor, *, candidates: int = 8
) -> tuple[Estimate, Tensor]:
    """Measure the mean distance to the nearest real image, and return which that is, (N,).

    It is searched among the `candidates` closest by features.
    """
    ok = 1 <= candidates <= len(real)
    check(ok, "candidates", candidates, f"must be between 1 and the {len(real)} real images")
    a, b = (torch.cat([extractor(part).cpu() for part in batches(x)]) for x in (generated, real))
    close = torch.cat([torch.cdist(part, b).topk(candidates, largest=False).indices for part in a.split(256)])  # (N, c)
    distance = torch.stack([_distances(network, generated, real[close[:, c]]) for c in range(candidates)], 1)
    best, place = distance.min(1)
    return mean_of(best, unit="nearest", extractor=network.name), close.gather(1, place[:, None])[:, 0]


def psnr(images: Tensor, reference: Tensor) -> Estimate:
    """Measure each image's peak signal-to-noise ratio against its reference, in dB, averaged over images.

    Both (N, 3, H, W) uint8. UserError: other shapes, or an image equal to its reference, whose ratio has no bound.
    """
    check(images.shape == reference.shape, "images", tuple(images.shape), f"must be {tuple(reference.shape)}")
    a, b = images.float(), reference.float()
    return mean_of(peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3)), unit="dB")
