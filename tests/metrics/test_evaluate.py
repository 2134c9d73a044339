"""Folders against folders: the command line's figures, and its one clear line for bad input."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import kdcdiff  # noqa: F401  (first: it repairs torchvision)
from kdcdiff.cli import parser_for
from kdcdiff.data.image_folder import ImageFolder
from kdcdiff.errors import UserError
from kdcdiff.metrics import evaluate, extractors, fid_kid, similarity
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.precision_recall import precision_recall
from kdcdiff.models.classifier import Classifier
from kdcdiff.models.pipeline import new_clip, train_tokenizer
from kdcdiff.sampling.folder import _rewrite, write

from .conftest import draw

CLASSES = ("rose", "tulip")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(CLASSES, width=8).eval()


@pytest.fixture(scope="module")
def clip():
    tokenizer = train_tokenizer(["a photo of a rose", "a blue tulip"], size=560)
    return new_clip(tokenizer, seed=0).eval(), tokenizer


@pytest.fixture
def folders(tmp_path):
    """Generated images with their table, and real ones in class folders."""
    names = [CLASSES[i % 2] for i in range(30)]
    files = [f"{name}/{i:06d}.png" for i, name in enumerate(names)]
    pairs = zip(files, names, strict=True)
    rows = [{"file_name": file, "text": f"a photo of a {name}", "class": name} for file, name in pairs]
    write(draw(30, 0), tmp_path / "made", rows)
    for i, image in enumerate(draw(25, 1, 40, 220)):
        path = tmp_path / "real" / CLASSES[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "made", tmp_path / "real"


def command(folders, **own):
    words = ["evaluate", *map(str, folders)]
    for name, value in own.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    arguments = parser_for("evaluate").parse_args(words)
    return arguments.run(arguments)


def test_the_command_reports_what_the_library_measures(folders, classifier, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdcdiff.models.classifier.load_classifier", lambda name: classifier)
    monkeypatch.setattr("kdcdiff.models.pipeline.load_clip", lambda name: clip)
    assert command(folders, json=tmp_path / "figures.json", device="cpu", batch_size=8) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    made, real = (torch.cat(list(ImageFolder(folder))) for folder in folders)
    labels = torch.tensor([0] * 15 + [1] * 15)
    wanted = {
        "kid": fid_kid.kid(made, real, extractors.features(classifier)),
        **precision_recall(made, real, extractors.features(classifier))._asdict(),
        "inception_score": fid_kid.inception_score(made, extractors.features(classifier)),
        "clip_score": similarity.clip_score(made, ImageFolder(folders[0]).prompts(), extractors.Clip(*clip)),
        "class_accuracy": class_accuracy(made, labels, classifier),
    }
    assert written["estimates"].keys() == wanted.keys()
    for name, estimate in wanted.items():
        assert written["estimates"][name]["value"] == pytest.approx(estimate.value, rel=1e-4, abs=1e-7)
    assert written["left_out"]["fid"].startswith("generated=30: must be more than 128 images")
    out = capsys.readouterr().out
    assert "class_accuracy" in out and "fid                  left out: generated=30" in out


def test_the_command_has_a_second_eye(folders, clip, tmp_path, monkeypatch):
    """Another network and objective: the same distances, and nothing that needs class logits."""
    monkeypatch.setattr("kdcdiff.models.pipeline.load_clip", lambda name: clip)
    assert command(folders, extractor="flora-clip", json=tmp_path / "figures.json", device="cpu") == 0
    written = json.loads((tmp_path / "figures.json").read_text())["estimates"]
    made, real = (torch.cat(list(ImageFolder(folder))) for folder in folders)
    seen = extractors.embeddings(extractors.Clip(*clip))
    assert list(written) == ["kid", "precision", "recall"] and written["kid"]["extractor"] == "own CLIP"
    assert written["kid"]["value"] == pytest.approx(fid_kid.kid(made, real, seen).value, rel=1e-4, abs=1e-7)
    with pytest.raises(UserError, match="extractor='own CLIP': has no class logits"):
        seen.logits(seen(made[:2]))


def spoil(folders, how):
    victim = folders[0] / "tulip" / "000003.png"
    if how == "corrupt":
        victim.write_bytes(victim.read_bytes()[:200])
    elif how == "not an image":
        victim.write_text("no picture")
    elif how == "size":
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(victim)
    elif how == "prompts":
        rows = list(csv.DictReader((folders[0] / "metadata.csv").open()))
        _rewrite(folders[0], [row for row in rows if row["file_name"] != "tulip/000003.png"])


@pytest.mark.parametrize(
    "how,line",
    [
        ("corrupt", r"image='.*tulip/000003.png': cannot be read \("),
        ("not an image", r"image='.*tulip/000003.png': cannot be read \("),
        ("size", r"image='.*tulip/000003.png': is 64x32; the first one is 64x64, and all must have one size"),
        ("prompts", r"metadata.csv='.*made': has 29 rows for 30 images; 000003.png has no prompt"),
    ],
)
def test_a_spoilt_folder_is_one_clear_line(folders, classifier, clip, monkeypatch, how, line):
    monkeypatch.setattr("kdcdiff.models.classifier.load_classifier", lambda name: classifier)
    monkeypatch.setattr("kdcdiff.models.pipeline.load_clip", lambda name: clip)
    spoil(folders, how)
    with pytest.raises(UserError, match=line) as error:
        command(folders, device="cpu")
    assert "\n" not in str(error.value)


def test_bad_arguments_are_one_clear_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folder='.*empty': must hold images"):
        command((tmp_path / "empty", folders[1]))
    with pytest.raises(UserError, match="folder='.*nowhere': must be a folder of images"):
        command((tmp_path / "nowhere", folders[1]))
    with pytest.raises(
        UserError,
        match="--extractor: must be one of flora, garden, flora-clip, garden-clip, inception, dino-vit-s-16, not 'vgg'",
    ):
        command(folders, extractor="vgg", device="cpu")
    with pytest.raises(UserError, match="inception.safetensors"):
        command(folders, extractor="inception", device="cpu")


def test_evaluate_with_enough_images_has_every_metric(classifier):
    features = extractors.features(classifier)
    scores = evaluate.evaluate(draw(410, 3), draw(420, 4, 30, 200), features)
    distances, shares = ["kid", "fid", "fid_infinity"], ["precision", "recall"]
    assert scores.left_out == {} and list(scores.estimates) == [*distances, *shares, "inception_score"]
    assert all(estimate.extractor == "own classifier" for estimate in scores.estimates.values())
    assert scores.estimates["fid_infinity"].value < scores.estimates["fid"].value
