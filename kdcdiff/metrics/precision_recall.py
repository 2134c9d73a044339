"""Precision and recall of a set of images (Kynkäänniemi et al. 2019): how real it is, and how much of the real it has.

A picture counts where it lies within a ball around a picture of the other set that reaches to that one's third nearest
neighbour in its own set. torch-fidelity does the geometry; here live the features, the intervals and the names.
"""

from __future__ import annotations

from typing import NamedTuple

from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from kdcdiff.data.image_set import Images, ImageSet
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, proportion
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.metrics.fid_kid import Features, as_features

NEIGHBOURHOOD = 3  # as published
BATCH = 10_000  # rows whose distances are worked out at once


class PrecisionRecall(NamedTuple):
    """`precision`, the share of generated pictures among the real ones; `recall`, of real ones among the generated."""

    precision: Estimate
    recall: Estimate


def precision_recall(
    generated: Images | ImageSet | Features, real: Images | ImageSet | Features, extractor: Extractor | None = None
) -> PrecisionRecall:
    """Measure both (equations 1 and 2 of the paper), on the rows that the features keep.

    Balls shrink as sets grow: compare only at equal n. The intervals are Wilson's for a share of pictures, with the
    balls where they are. UserError: no more than `NEIGHBOURHOOD` images in a set.
    """
    a, b = as_features(generated, real, extractor)
    for name, features in (("generated", a), ("real", b)):
        allowed = f"must be more than {NEIGHBOURHOOD} images for precision and recall"
        check(len(features.rows) > NEIGHBOURHOOD, name, len(features.rows), allowed)
    found = prc_features_to_metric(
        a.rows, b.rows, prc_neighborhood=NEIGHBOURHOOD, prc_batch_size=BATCH, save_cpu_ram=True, verbose=False
    )
    n, m = len(a.rows), len(b.rows)
    return PrecisionRecall(
        proportion(round(found[KEY_METRIC_PRECISION] * n), n, "", a.extractor),
        proportion(round(found[KEY_METRIC_RECALL] * m), m, "", a.extractor),
    )
