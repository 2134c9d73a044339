"""`kdcdiff continual`: anyone's classes, resumable, with what became of the old ones beside it."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from kdcdiff import cli
from kdcdiff.cli import continual as command
from kdcdiff.data.sources import open_training
from kdcdiff.metrics.forgetting import Record
from kdcdiff.training import continual, replay
from kdcdiff.training.codecs import CODECS

from ..pipelines import make

COLOURS = {"rose": "red", "iris": "blue", "fern": "green"}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "student"
    make("sd-1", [f"a photo of a {name}" for name in COLOURS]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders, and nothing held out: `known` has one class, `new` has two."""
    root = tmp_path_factory.mktemp("photographs")
    for name, colour in COLOURS.items():
        folder = root / ("known" if name == "fern" else "new") / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40 + i, 33), colour).save(folder / f"{i}.png")
    return root


@pytest.fixture
def words(student, photographs, tmp_path):
    return [
        "continual", "--student", str(student), "--data", str(photographs / "new"), "--base",
        str(photographs / "known"), "--classes", "rose", "iris", "--out", str(tmp_path / "taught"), "--steps", "2",
        "--batch", "4", "--capacity", "4", "--images", "2", "--sampler-steps", "2", "--judge-steps", "2", "--device",
        "cpu",
    ]  # fmt: skip


class Killed(BaseException):
    """As a signal would end it."""


def test_a_killed_command_goes_on_and_ends_in_a_pipeline_for_plain_diffusers(words, tmp_path, monkeypatch, capsys):
    add, added = Record.add, []

    def kill_after_the_first_class(record, stage, scores):
        add(record, stage, scores)
        added.append(stage)
        if stage == 0:
            raise Killed

    monkeypatch.setattr(Record, "add", kill_after_the_first_class)
    with pytest.raises(Killed):
        cli.main(words)
    monkeypatch.setattr(Record, "add", lambda record, stage, scores: (add(record, stage, scores), added.append(stage)))
    assert cli.main([*words, "--steps", "3"]) == 2
    assert "steps=2, not 3" in capsys.readouterr().err, "another command's work is not gone on with"
    work = tmp_path / "taught.work"
    (latents,) = (work / "store").glob("latents-*/latents.safetensors")
    latents.write_bytes(latents.read_bytes()[:-1] + b"x")
    assert cli.main(words) == 0 and added == [-1, 0, 1], "nothing is scored twice"
    said = capsys.readouterr()
    assert "is damaged" in said.err and "built  latents" in said.err and "reused judge" in said.err

    taught = StableDiffusionPipeline.from_pretrained(tmp_path / "taught")
    assert taught("a photo of a rose", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)
    rows = [line.split(",") for line in (work / "scores" / "matrix.csv").read_text().splitlines()]
    assert rows[0] == ["after", "fern", "rose", "iris"] and [row[0] for row in rows] == [
        "after",
        "before",
        "rose",
        "iris",
    ]
    filled = [[bool(cell) for cell in row[1:]] for row in rows[1:]]
    assert filled == [[True, False, False], [True, True, False], [True, True, True]]
    sheets = [Image.open(work / "sheets" / f"stage-{k:02d}.png").height for k in range(3)]
    assert sheets[0] < sheets[1] < sheets[2], "a row of pictures for each class that has been seen"
    card = (tmp_path / "taught" / "README.md").read_text()
    assert "| classes | rose, iris |" in card and "| known before | fern |" in card and "| forgetting | " in card
    assert "iris: average accuracy of the new classes" in said.out and "base classes, now" in said.out


def test_the_base_classes_are_in_the_memory_from_the_first_class_on(words, monkeypatch):
    kept = []
    add_class = replay.LatentReplayBuffer.add_class

    def note(buffer, name, *own, **named):
        kept.append(name)
        add_class(buffer, name, *own, **named)

    monkeypatch.setattr(replay.LatentReplayBuffer, "add_class", note)
    monkeypatch.setattr(command, "_scores", lambda drawn, *own: dict.fromkeys(drawn.classes, 1.0))

    def fit(*own, folder, **named):
        folder.mkdir(parents=True)
        kept.append("fit")

    monkeypatch.setattr("kdcdiff.training.continual.fit", fit)
    assert cli.main(words) == 0
    assert kept == ["fern", "fit", "rose", "fit", "iris"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--classes", "fern"], "classes='fern': must be of iris, rose"),
        (["--method", "hope"], "--method: must be one of naive, latent-replay"),
        (["--batch", "1"], "--batch: must be a whole number from 2"),
    ],
)
def test_bad_words_are_one_line(words, tmp_path, capsys, more, line):
    assert cli.main([*words, *more]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "taught").exists()


def test_the_options_are_those_of_the_library():
    assert set(command.METHODS) == set(continual.METHODS) and set(command.POLICIES) == set(replay.POLICIES)
    pictures = {method.codec for method in continual.METHODS.values()}
    assert set(command.CODECS) == CODECS.keys() - pictures and pictures - {""} <= CODECS.keys()


def test_class_folders_need_no_split(photographs):
    assert open_training(str(photographs / "new")).classes == ("iris", "rose")
    assert open_training("flora").base


def test_the_record_by_hand(tmp_path):
    record = Record(tmp_path, ("old",), ("a", "b"))
    record.add(-1, {"old": 0.9})
    record.add(0, {"old": 0.6, "a": 0.8})
    assert record.has(0) and not record.has(1)
    assert record.summary() == {
        "average accuracy of the new classes": 0.8, "base classes, before": 0.9, "base classes, now": 0.6,
        "forgetting": pytest.approx(0.3),
    }  # fmt: skip
    record.add(1, {"old": 0.7, "a": 0.4, "b": 1.0})
    assert record.matrix.shape == (3, 3) and np.isnan(record.matrix[0, 1])
    assert record.summary()["forgetting"] == pytest.approx((0.2 + 0.4) / 2)
    assert record.summary()["average accuracy of the new classes"] == pytest.approx(0.7)
    assert json.loads((tmp_path / "stage-01.json").read_text())["b"] == 1.0
    assert torch.tensor(Record(tmp_path, ("old",), ("a", "b")).matrix).shape == (3, 3), "it is all in the folder"
