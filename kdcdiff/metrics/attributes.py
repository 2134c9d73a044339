"""Attribute compliance: of pictures asked for by attributes, the share that shows what was asked, each and all of it.

For example:

    asked = requests("flora", flora.BASE, 4)  # kdcdiff.data.attributes; half of them new
    images = generate(pipeline, [request.prompt for request in asked], seed=0)
    compliance(images, asked, load_reader())  # {"colour": Estimate, ..., "all": Estimate}
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdcdiff.data.attributes import Request
from kdcdiff.data.image_set import Images, batches
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, proportion
from kdcdiff.models.attribute_reader import AttributeReader

BATCH = 32  # images at a time: on a CPU their activations stay in its cache
ALL = "all"


@torch.no_grad()
def read(images: Images, reader: AttributeReader) -> list[dict[str, str]]:
    """Return the most likely value of each attribute in each image."""
    device, found = next(reader.parameters()).device, []
    for part in batches(images, BATCH):
        logits = reader(part.to(device).contiguous(memory_format=torch.channels_last))
        rows = zip(*(logits[name].argmax(1).tolist() for name in reader.attributes), strict=True)
        found += [{n: v[k] for (n, v), k in zip(reader.attributes.items(), row, strict=True)} for row in rows]
    return found


def compliance(images: Images, asked: Sequence[Request], reader: AttributeReader) -> dict[str, Estimate]:
    """Return the share of images that show what was asked for, by attribute and for ``all``, with Wilson's interval.

    An attribute counts where it was asked for. UserError: not as many images as requests, an attribute that the reader
    does not know.
    """
    for name in sorted({name for request in asked for name in request.wanted}):
        check(name in reader.attributes, "attribute", name, f"must be one of {', '.join(reader.attributes)}")
    seen = read(images, reader)
    check(len(seen) == len(asked), "images", len(seen), f"must be one for each of the {len(asked)} requests")
    right = [{n: shows[n] == v for n, v in r.wanted.items()} for shows, r in zip(seen, asked, strict=True)]
    right = [own | {ALL: all(own.values())} for own in right]
    hits = {name: [own[name] for own in right if name in own] for name in (*reader.attributes, ALL)}
    return {name: proportion(sum(own), len(own), extractor="attribute reader") for name, own in hits.items() if own}
