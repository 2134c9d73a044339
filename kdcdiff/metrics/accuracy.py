"""Metrics one can trust: every figure is an `Estimate` with its interval, its count and its extractor's name.

    metrics.class_accuracy(images, labels, stack.classifier())            # Wilson interval
    real = metrics.extract(real_images, extractors.features(judge))       # once; cache it with `cached`
    metrics.kid(metrics.extract(images, judge), real)                     # unbiased; may be negative

The arithmetic is torchmetrics', torch-fidelity's, lpips' and scipy's; here live the streaming, the seeds, the
intervals and the conventions, which differ among libraries and are stated at each function. Images are (N, 3,
H, W) uint8, whole or as an iterable of batches: pass bytes, not floats, since rounding moves FID. Read PNG,
not JPEG, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcdiff.data.image_set import Images, batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, proportion

# --- accuracy ----------------------------------------------------------------------------------------------


def name_of(network: nn.Module) -> str:
    """What a network is called beside its figures."""
    return str(getattr(network, "name", type(network).__name__))


def predictions(images: Images, classifier: nn.Module, batch_size: int = 32) -> Tensor:
    """The class that `classifier` (images to logits) sees in each image, (N,) int64."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    with torch.no_grad():
        laid_out = (
            part.to(device).contiguous(memory_format=torch.channels_last) for part in batches(images, batch_size)
        )
        return torch.cat([classifier(part).argmax(1).cpu() for part in laid_out])


def _hits(images: Images, labels: Tensor | Sequence[int], classifier: nn.Module) -> tuple[Tensor, Tensor]:
    predicted, labels = predictions(images, classifier), torch.as_tensor(labels)
    check(
        len(labels) == len(predicted),
        "labels",
        len(labels),
        f"must be one for each of the {len(predicted)} images",
    )
    return predicted == labels, labels


def class_accuracy(images: Images, labels: Tensor | Sequence[int], classifier: nn.Module) -> Estimate:
    """The share of images in which an independent classifier sees the class they were asked for."""
    hits, _ = _hits(images, labels, classifier)
    return proportion(int(hits.sum()), len(hits), extractor=name_of(classifier))


def accuracy_per_class(
    images: Images, labels: Tensor | Sequence[int], classifier: nn.Module, classes: Sequence[str]
) -> dict[str, Estimate]:
    """`class_accuracy` of each class that occurs, by name; `labels` index `classes`, as the classifier's
    outputs do.
    """
    hits, labels = _hits(images, labels, classifier)
    counted = [(name, hits[labels == i]) for i, name in enumerate(classes)]
    return {
        name: proportion(int(own.sum()), len(own), extractor=name_of(classifier)) for name, own in counted if len(own)
    }


def per_class(
    metric: Callable[..., Estimate],
    generated: Tensor,
    generated_labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    classes: Sequence[str],
    *args: Any,
    **own: Any,
) -> dict[str, Estimate]:
    """`metric(generated, real, *args, **own)` within each class that both sets have."""
    rows = {name: (generated_labels == i, real_labels == i) for i, name in enumerate(classes)}
    return {name: metric(generated[a], real[b], *args, **own) for name, (a, b) in rows.items() if a.any() and b.any()}
