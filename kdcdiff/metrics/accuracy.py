"""Whether an independent classifier sees in each image what it was asked to show.

For example:

    class_accuracy(images, labels, load_classifier())            # an `Estimate` with Wilson's interval
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcdiff.data.image_set import Images, batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, proportion

BATCH = 32  # images at a time: on a CPU their activations stay in its cache


@torch.no_grad()
def predictions(images: Images, classifier: nn.Module) -> Tensor:
    """Return the class that `classifier` (images to logits) sees in each image, (N,) int64."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    laid_out = (part.to(device).contiguous(memory_format=torch.channels_last) for part in batches(images, BATCH))
    return torch.cat([classifier(part).argmax(1).cpu() for part in laid_out])


def class_accuracy(images: Images, labels: Tensor | Sequence[int], classifier: nn.Module) -> Estimate:
    """Return the share of images in which `classifier` sees their label, with Wilson's interval.

    UserError: not as many labels as images.
    """
    predicted, labels = predictions(images, classifier), torch.as_tensor(labels)
    check(len(labels) == len(predicted), "labels", len(labels), f"must be one for each of the {len(predicted)} images")
    name = str(getattr(classifier, "name", type(classifier).__name__))
    return proportion(int((predicted == labels).sum()), len(labels), extractor=name)
