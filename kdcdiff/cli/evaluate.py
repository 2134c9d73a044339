"""`kdcdiff evaluate`: a folder of generated images against a folder of real ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from kdcdiff.data.image_folder import ImageFolder
from kdcdiff.errors import check
from kdcdiff.metrics import extractors
from kdcdiff.metrics.evaluate import evaluate
from kdcdiff.metrics.extractors import Clip, Extractor
from kdcdiff.metrics.published import published
from kdcdiff.models.classifier import load_classifier
from kdcdiff.models.pipeline import load_clip


def run(arguments: argparse.Namespace) -> int:
    """``kdcdiff evaluate``."""
    generated, real = (ImageFolder(folder, arguments.batch_size) for folder in (arguments.generated, arguments.real))
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check(device == "cpu" or torch.cuda.is_available(), "device", device, "must be cpu here: no GPU is visible")
    own: dict[str, object] = {}
    if arguments.extractor == "flora":
        classifier = load_classifier().to(device)
        extractor = extractors.features(classifier)
        clip = Clip(*load_clip()).to(device)
        names = generated.classes()
        if names and set(names) <= set(classifier.classes):
            labels = torch.tensor([classifier.classes.index(name) for name in names])
            own = {"labels": labels, "classifier": classifier}
    else:
        extractor = published(arguments.extractor, arguments.weights)
        check(
            isinstance(extractor, Extractor),
            "extractor",
            arguments.extractor,
            "must give image features: inception or dino-vit-s-16",
        )
        extractor, clip = extractor.to(device), None
    prompts = generated.prompts() if clip else None
    print(
        f"{len(generated)} generated and {len(real)} real images through {extractor.name} on {device}",
        file=sys.stderr,
    )
    figures = evaluate(generated, real, extractor, prompts=prompts, clip=clip, progress=True, **own)  # type: ignore[arg-type]
    print(figures.table())
    if arguments.json:
        rows = {name: vars(estimate) for name, estimate in figures.estimates.items()}
        Path(arguments.json).write_text(
            json.dumps({"estimates": rows, "left_out": figures.left_out}, indent=1), encoding="utf-8"
        )
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("generated", help="folder of generated images; prompts and classes from its metadata.csv")
    parser.add_argument("real", help="folder of real images of the same size")
    parser.add_argument(
        "--extractor",
        default="flora",
        help="flora (in-domain, 64x64), inception or dino-vit-s-16 (default: flora)",
    )
    parser.add_argument("--weights", help="folder of a published extractor's safetensors and checksums.json")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    parser.add_argument("--json", help="also write the figures to this file")
