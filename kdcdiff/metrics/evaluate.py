"""Generated images against real ones: what ``kdcdiff evaluate`` does.

For example:

    generated, real = ImageFolder("out"), ImageFolder("photos/test")
    scores = evaluate(generated, real, extractors.features(classifier))
    scores.estimates["kid"], scores.left_out      # {"fid": "generated=40: must be more than 128 ..."}
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdcdiff.data.image_set import Images
from kdcdiff.errors import UserError
from kdcdiff.metrics import fid_kid, similarity
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate
from kdcdiff.metrics.extractors import Clip, Extractor
from kdcdiff.metrics.precision_recall import precision_recall


@dataclass
class Scores:
    """Estimates by metric; `left_out` says of each metric that could not be worked out why."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, metric: Callable[[], Estimate]) -> None:
        """Note what `metric` gives, or why it gives nothing."""
        try:
            self.estimates[name] = metric()
        except UserError as error:
            self.left_out[name] = str(error)

    def table(self) -> str:
        """Lay the scores out as text, a line each."""
        rows = [f"{name:<20} {estimate}" for name, estimate in self.estimates.items()]
        return "\n".join(rows + [f"{name:<20} left out: {reason}" for name, reason in self.left_out.items()])


def evaluate(
    generated: Images,
    real: Images,
    extractor: Extractor,
    *,
    prompts: Sequence[str] | None = None,
    clip: Clip | None = None,
    labels: Tensor | None = None,
    classifier: torch.nn.Module | None = None,
    progress: bool = False,
) -> Scores:
    """Score generated images against real ones through `extractor`: KID, FID, FID at infinity, precision and recall.

    Where the extractor has class logits the inception score joins them, with `prompts` and a `clip` the CLIP score,
    with `labels` and a `classifier` the accuracy. A metric for which the images are too few is left out and says so;
    wrong input (a corrupt image, fewer prompts than images) raises UserError.
    """
    seen = fid_kid.extract(generated, extractor, progress=progress)
    known = fid_kid.extract(real, extractor, progress=progress)
    scores = Scores()
    scores.add("kid", lambda: fid_kid.kid(seen, known))
    scores.add("fid", lambda: fid_kid.fid(seen, known))
    scores.add("fid_infinity", lambda: fid_kid.fid_infinity(seen, known))
    shares = functools.cache(lambda: precision_recall(seen, known))
    scores.add("precision", lambda: shares().precision)
    scores.add("recall", lambda: shares().recall)
    if extractor.head is not None:
        scores.add("inception_score", lambda: fid_kid.inception_score(seen, extractor))
    if prompts is not None and clip is not None and seen.n == 1:
        scores.left_out["clip_score"] = "generated=1: must be at least 2 for an interval"
    elif prompts is not None and clip is not None:
        scores.estimates["clip_score"] = similarity.clip_score(generated, prompts, clip)
    if labels is not None and classifier is not None:
        scores.estimates["class_accuracy"] = class_accuracy(generated, labels, classifier)
    return scores
