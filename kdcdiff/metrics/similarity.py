"""How alike an image is to its prompt (CLIP score), to real images (CLIP-I, DINO), to the eye (LPIPS), or to
its original after a codec (PSNR).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.data.image_set import Images, batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, mean_of
from kdcdiff.metrics.extractors import Clip, Extractor, Perceptual
from kdcdiff.metrics.fid_kid import Features, both

# --- text and image similarity -----------------------------------------------------------------------------

CLIP_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda cosine: cosine,  # BK-SDM's and KDC-Diff's: raw, unclamped
    "torchmetrics": lambda cosine: 100 * cosine,  # torchmetrics clamps the mean at 0, not the images
    "clipscore": lambda cosine: 2.5 * cosine.clamp(min=0),  # Hessel et al. 2021
}


def clip_cosines(images: Images, prompts: Sequence[str], clip: Clip | tuple[CLIPModel, CLIPTokenizer]) -> Tensor:
    """cos(image i, prompt i), (N,). UserError: not as many prompts as images."""
    clip = clip if isinstance(clip, Clip) else Clip(*clip)
    texts = sorted(set(prompts))
    check(len(texts) > 0, "prompts", 0, "must be one for each image")
    encoded = torch.cat([clip.texts(texts[i : i + 256]) for i in range(0, len(texts), 256)]).cpu()
    place = {text: i for i, text in enumerate(texts)}
    found, start = [], 0
    for part in batches(images):
        own = prompts[start : start + len(part)]
        check(
            len(own) == len(part),
            "prompts",
            len(prompts),
            f"fewer than the images, at least {start + len(part)}",
        )
        found.append(cosine_similarity(clip.images(part).cpu(), encoded[[place[p] for p in own]], reduction="none"))
        start += len(part)
    check(start == len(prompts), "prompts", len(prompts), f"more than the {start} images")
    return torch.cat(found)


def clip_score(
    images: Images,
    prompts: Sequence[str],
    clip: Clip | tuple[CLIPModel, CLIPTokenizer],
    *,
    scale: str = "cosine",
    seed: int = 0,
) -> Estimate:
    """How well images fit their prompts, on one of `CLIP_SCALES`, with a bootstrap interval over images."""
    check(scale in CLIP_SCALES, "scale", scale, f"must be one of {', '.join(CLIP_SCALES)}")
    clip = clip if isinstance(clip, Clip) else Clip(*clip)
    values = CLIP_SCALES[scale](clip_cosines(images, prompts, clip))
    return mean_of(values, unit=scale, extractor=clip.name)


def image_similarity(
    generated: Images | Features,
    real: Images | Features,
    extractor: Extractor | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """CLIP-I or DINO, by extractor: the mean cosine over all pairs of a generated and a real image
    (DreamBooth 2023).

    By linearity each generated image's mean over the real ones is one product; the interval is over generated
    images. Use it within a class, by `per_class`.
    """
    a, b = both(generated, real, extractor)
    unit_a, unit_b = (torch.nn.functional.normalize(f.rows.double()) for f in (a, b))
    return mean_of(unit_a @ unit_b.mean(0), unit="cosine", extractor=a.extractor)


# --- LPIPS -------------------------------------------------------------------------------------------------
# What "LPIPS" of a generated set against a real set means, KDC-Diff does not say. Four readings:
#   paired     image i against its own original: text-to-image has none; right for reconstructions
#   cross      random pairs of a generated and a real image: chosen for tables, beside the same of real images
#   diversity  random pairs within a set: a collapsed model scores low; of real images it is cross's baseline
#   nearest    each generated image against the closest training image: near zero is memorisation


def _distances(network: Perceptual, a: Tensor, b: Tensor, batch_size: int = 64) -> Tensor:
    return torch.cat([network(x, y) for x, y in zip(a.split(batch_size), b.split(batch_size), strict=True)])


def lpips_paired(generated: Tensor, real: Tensor, network: Perceptual, *, seed: int = 0) -> Estimate:
    """Mean distance of image i to its own original i: 0 for identical sets."""
    check(
        len(generated) == len(real),
        "real",
        len(real),
        f"must be one for each of the {len(generated)} generated images",
    )
    return mean_of(
        _distances(network, generated, real),
        unit="paired",
        extractor=network.name,
    )


def lpips_cross(
    generated: Tensor,
    real: Tensor,
    network: Perceptual,
    *,
    pairs: int = 500,
    seed: int = 0,
) -> Estimate:
    """Mean distance of random pairs of a generated and a real image. Lay beside it `lpips_diversity` of the
    real set.
    """
    check(len(generated) > 0 and len(real) > 0, "images", 0, "must be at least one in each set")
    generator = torch.Generator().manual_seed(seed)
    i, j = (torch.randint(len(x), (pairs,), generator=generator) for x in (generated, real))
    return mean_of(
        _distances(network, generated[i], real[j]),
        unit="cross",
        extractor=network.name,
    )


def lpips_diversity(images: Tensor, network: Perceptual, *, pairs: int = 500, seed: int = 0) -> Estimate:
    """Mean distance of random pairs of two different images of one set; of real images it is `lpips_cross`'s
    baseline.
    """
    check(len(images) >= 2, "images", len(images), "must be at least 2 for a distance within the set")
    generator = torch.Generator().manual_seed(seed)
    i = torch.randint(len(images), (pairs,), generator=generator)
    j = (i + torch.randint(1, len(images), (pairs,), generator=generator)) % len(images)
    return mean_of(
        _distances(network, images[i], images[j]),
        unit="diversity",
        extractor=network.name,
    )


def lpips_nearest(
    generated: Tensor,
    real: Tensor,
    network: Perceptual,
    extractor: Extractor,
    *,
    candidates: int = 8,
    seed: int = 0,
) -> tuple[Estimate, Tensor]:
    """Mean distance to the nearest real image, and which that is, (N,): searched among the `candidates`
    closest by features.
    """
    check(
        1 <= candidates <= len(real),
        "candidates",
        candidates,
        f"must be between 1 and the {len(real)} real images",
    )
    a, b = (torch.cat([extractor(part).cpu() for part in batches(x)]) for x in (generated, real))
    close = torch.cat([torch.cdist(part, b).topk(candidates, largest=False).indices for part in a.split(256)])  # (N, c)
    distance = torch.stack([_distances(network, generated, real[close[:, c]]) for c in range(candidates)], 1)
    best, place = distance.min(1)
    return mean_of(best, unit="nearest", extractor=network.name), close.gather(1, place[:, None])[:, 0]


# --- pixels ------------------------------------------------------------------------------------------------


def psnr(images: Tensor, reference: Tensor, *, seed: int = 0) -> Estimate:
    """Peak signal-to-noise ratio of each image against its reference, in dB, averaged over images. Both (N, 3,
    H, W) uint8. UserError: other shapes, or an image equal to its reference, whose ratio has no bound.
    """
    check(images.shape == reference.shape, "images", tuple(images.shape), f"must be {tuple(reference.shape)}")
    dims = (1, 2, 3)
    values = peak_signal_noise_ratio(images.float(), reference.float(), data_range=255.0, reduction="none", dim=dims)
    return mean_of(values, unit="dB")
