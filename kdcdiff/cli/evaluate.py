"""`kdcdiff evaluate`: a folder of generated images against a folder of real ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import one_of, whole
from kdcdiff.models.shipped import SHIPPED

PUBLISHED = ("inception", "dino-vit-s-16")
EXTRACTORS = (*SHIPPED, *(f"{name}-clip" for name in SHIPPED), *PUBLISHED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    generated = "folder of generated images; prompts and classes from its metadata.csv"
    add("generated", type=arguments.folder, help=generated)
    add("real", type=arguments.folder, help="folder of real images; of the same size unless --resolution is given")
    extractors = f"{', '.join(EXTRACTORS)} (default: %(default)s, an in-domain classifier)"
    add("--extractor", type=one_of(*EXTRACTORS), default="flora", help=extractors)
    add("--weights", help="folder of a published extractor's safetensors and checksums.json")
    arguments.add_resolution(
        parser, "the centre squares to which all images are brought", "their own, which must be one"
    )
    add("--batch-size", type=whole(1), default=256, help="images at a time (default: %(default)s)")
    arguments.add_device(parser)
    add("--json", type=Path, help="also write the scores to this file")


def run(args: argparse.Namespace) -> int:
    import torch

    from kdcdiff.data.image_folder import ImageFolder
    from kdcdiff.metrics import extractors
    from kdcdiff.metrics.evaluate import evaluate
    from kdcdiff.metrics.extractors import Clip
    from kdcdiff.metrics.published import published
    from kdcdiff.models.classifier import load_classifier
    from kdcdiff.models.pipeline import load_clip

    device = arguments.device_of(args)
    read = {"batch_size": args.batch_size, "size": args.resolution}
    generated, real = (ImageFolder(folder, **read) for folder in (args.generated, args.real))
    own: dict[str, object] = {}
    domain = args.extractor.removesuffix("-clip")
    if args.extractor in SHIPPED:
        classifier = load_classifier(domain).to(device)
        extractor = extractors.features(classifier)
        own = {"prompts": generated.prompts(), "clip": Clip(*load_clip(domain)).to(device)}
        names = generated.classes()
        if names and set(names) <= set(classifier.classes):
            labels = torch.tensor([classifier.classes.index(name) for name in names])
            own |= {"labels": labels, "classifier": classifier}
    elif domain in SHIPPED:
        extractor = extractors.embeddings(Clip(*load_clip(domain)).to(device))
    else:
        extractor = published(args.extractor, args.weights).to(device)
    said = f"{len(generated)} generated and {len(real)} real images through {extractor.name} on {device}"
    print(said, file=sys.stderr)
    scores = evaluate(generated, real, extractor, progress=True, **own)  # type: ignore[arg-type]
    print(scores.table())
    if args.json:
        rows = {name: vars(estimate) for name, estimate in scores.estimates.items()}
        told = json.dumps({"estimates": rows, "left_out": scores.left_out}, indent=1)
        args.json.write_text(told, encoding="utf-8")
    return 0
