"""How much pictures of a personalised pipeline show its subject, and what they were asked for (Ruiz et al. 2023, 4.1).

Both are cosines through the extractor that is named with them: of published ones DINO ViT-S/16 is the paper's. Figures
of two extractors, or of two sets of prompts, are never comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcdiff.data.image_set import batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, mean_of
from kdcdiff.metrics.extractors import Clip, Extractor
from kdcdiff.metrics.similarity import clip_score


def subject_fidelity(drawn: Tensor, subject: Tensor, extractor: Extractor) -> Estimate:
    """Average the cosine of each drawn picture's features with each of the subject's; interval over drawn ones.

    Both (N, 3, H, W) uint8. UserError: no picture of the subject.
    """
    check(len(subject) > 0, "subject", 0, "must be at least one picture")
    ours, theirs = (
        F.normalize(torch.cat([extractor(part).cpu() for part in batches(images)]), dim=1)
        for images in (drawn, subject)
    )
    return mean_of((ours @ theirs.T).mean(1), unit="cosine", extractor=extractor.name)


def prompt_fidelity(drawn: Tensor, prompts: Sequence[str], clip: Clip) -> Estimate:
    """Average the cosine of each drawn picture with its prompt, in which a noun stands without its rare token."""
    return clip_score(drawn, prompts, clip)
