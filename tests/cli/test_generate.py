"""`kdcdiff generate`: the step between `distill` and `evaluate`."""

import csv

import numpy as np
import pytest
from PIL import Image

from kdcdiff import cli
from kdcdiff.errors import UserError
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.sampling import generate as sampling
from kdcdiff.sampling.prompts import read_prompts

from ..conftest import tiny_pipeline

PROMPTS = ["a photo of a rose", "a photo of a blue tulip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline's folder."""
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipeline(PROMPTS).save_pretrained(path)
    return path


def table(folder):
    return list(csv.DictReader((folder / "metadata.csv").open()))


def test_prompts_are_words_lines_or_rows(tmp_path):
    (tmp_path / "a.txt").write_text("a rose\n\n  a tulip \n")
    (tmp_path / "b.csv").write_text("file_name,text,class\nx.png,an iris,iris\ny.png,a leaf,\n")
    words = ["a daisy, red", str(tmp_path / "a.txt"), str(tmp_path / "b.csv")]
    pairs = [("a daisy, red", ""), ("a rose", ""), ("a tulip", ""), ("an iris", "iris"), ("a leaf", "")]
    assert read_prompts(words) == pairs


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("none.txt", None, "must be an existing file"),
        ("empty.txt", "\n", "must hold at least one prompt"),
        ("bare.csv", "prompt\na rose\n", "must have a column text"),
        ("empty.csv", "", "must have a column text"),
        ("up.csv", "text,class\na rose,../x\n", "class='../x': must be a name that a folder can have"),
        ("dots.csv", "text,class\na rose,..\n", "class='..': must be a name that a folder can have"),
    ],
)
def test_a_file_without_prompts_is_one_clear_line(tmp_path, name, text, line):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=line) as error:
        read_prompts([str(tmp_path / name)])
    assert "\n" not in str(error.value)


def test_a_csv_becomes_a_folder_that_goes_on(folder, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.csv", tmp_path / "out"
    prompts.write_text("text,class\n" + "".join(f"{p},{p.split()[-1]}\n" for p in PROMPTS))
    words = ["generate", str(folder), "--prompts", str(prompts), "--per-prompt", "2", "--out", str(out)]
    words += ["--steps", "2", "--guidance", "4", "--batch-size", "2", "--seed", "3", "--device", "cpu"]
    assert cli.main(words) == 0
    assert "4 pictures in" in (said := capsys.readouterr().out) and "4 of them drawn now on cpu" in said
    assert [row["file_name"] for row in table(out)] == [
        "rose/000000.png",
        "rose/000001.png",
        "tulip/000002.png",
        "tulip/000003.png",
    ]
    assert [row["text"] for row in table(out)] == [p for p in PROMPTS for _ in range(2)]
    (out / "tulip" / "000003.png").unlink()
    assert cli.main(words) == 0 and "2 of them drawn now" in capsys.readouterr().out
    assert cli.main([*words, "--guidance", "5"]) == 2
    assert "guidance=4.0, not 5.0" in capsys.readouterr().err


def test_the_options_reach_the_pipeline(folder, tmp_path):
    out = tmp_path / "out"
    words = ["generate", str(folder), "--prompts", *PROMPTS, "--out", str(out), "--steps", "2", "--seed", "7"]
    assert cli.main([*words, "--scheduler", "EulerAncestralDiscrete", "--negative-prompt", "tulip"]) == 0
    assert [(row["scheduler"], row["seed"]) for row in table(out)] == [("EulerAncestralDiscreteScheduler", "7")] * 2
    settings = {"seed": 7, "steps": 2, "scheduler": "EulerAncestralDiscrete", "negative_prompt": "tulip"}
    wanted = sampling.generate(load_pipeline(folder), PROMPTS, progress=False, **settings)
    for row, image in zip(table(out), wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / row["file_name"])), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("words", "line"),
    [(["--steps", "5000"], "steps=5000: must be between 1 and 1000"), (["--scheduler", "Best"], "scheduler='Best'")],
)
def test_what_only_the_pipeline_knows_is_refused_before_a_file_is_made(folder, tmp_path, capsys, words, line):
    out = tmp_path / "out"
    assert cli.main(["generate", str(folder), "--prompts", "a rose", "--out", str(out), *words]) == 2
    assert line in capsys.readouterr().err and not out.exists()
