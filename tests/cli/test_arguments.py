"""One vocabulary for all commands, and refusals before anything heavy is imported."""

import argparse
import json
import subprocess
import sys

import pytest

from kdcdiff import cli
from kdcdiff.cli import arguments
from kdcdiff.errors import UserError


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (arguments.whole(1), {"1": 1, "20": 20}, ["0", "-1", "1.5", "many", "nan"]),
        (arguments.seed, {"0": 0}, ["-1", "2147483648"]),
        (arguments.positive, {"1e-4": 1e-4}, ["0", "-1", "inf", "nan", "x"]),
        (arguments.weight, {"0": 0.0, "2": 2.0}, ["-0.1", "inf", "nan"]),
        (arguments.fraction, {"0": 0.0, "1": 1.0}, ["-0.1", "1.1", "nan"]),
        (arguments.decay, {"0": 0.0, "0.999": 0.999}, ["1", "-0.1"]),
        (arguments.one_of("a", "b"), {"a": "a"}, ["c", ""]),
        (arguments.pipeline, {"flora": "flora", "owner/name": "owner/name"}, ["fauna", "/nowhere/x", "a/b/c", ""]),
        (arguments.unet, {"flora": "flora", "owner/name": "owner/name"}, ["fauna", "net.safetensors"]),
        (
            arguments.dataset,
            {"flora": "flora", "garden": "garden", "oxford-102": "oxford-102"},
            ["fauna", "/nowhere", ""],
        ),
    ],
)
def test_values_are_taken_or_refused_by_what_they_must_be(kind, good, bad):
    for text, value in good.items():
        assert kind(text) == value and type(kind(text)) is type(value)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="must be|must hold"):
            kind(text)


def test_paths_must_be_new_or_there(tmp_path):
    assert arguments.new_path(str(tmp_path / "new")) == tmp_path / "new"
    assert arguments.folder(str(tmp_path)) == tmp_path
    with pytest.raises(argparse.ArgumentTypeError, match="must not exist yet"):
        arguments.new_path(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="must be a folder of images"):
        arguments.folder(str(tmp_path / "new"))
    assert arguments.unet(str(tmp_path)) == str(tmp_path)
    with pytest.raises(argparse.ArgumentTypeError, match="has no model_index.json; must be flora"):
        arguments.pipeline(str(tmp_path))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert arguments.device_of(argparse.Namespace(device=None)) == "cpu"
    with pytest.raises(UserError, match="device='cuda': must be cpu here"):
        arguments.device_of(argparse.Namespace(device="cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert arguments.device_of(argparse.Namespace(device=None)) == "cuda"


REFUSED = [
    (["distill", "--out", "new", "--steps", "-1"], "--steps: must be a whole number from 1, not '-1'"),
    (["distill", "--out", "new", "--protocol", "bk-sdm", "--alpha", "1"], "--alpha: belongs to --objective kdc-diff"),
    (
        ["distill", "--out", "new", "--teacher", "fauna"],
        "--teacher: pipeline='fauna': not found; must be flora, garden, a pi",
    ),
    (["distill", "--out", "new", "--device", "tpu"], "--device: must be one of cpu, cuda, not 'tpu'"),
    (["distill"], "the following arguments are required: --out"),
    (
        ["shrink", "fauna", "--variant", "original"],
        "teacher: pipeline='fauna': not found; must be flora, garden, a pipeline or ",
    ),
    (["shrink", "flora", "--variant", "original"], "out=None: name a new folder with --out"),
    (["generate", "flora", "--prompts", "a rose", "--out", "new", "--steps", "0"], "--steps: must be a whole number"),
    (["generate", "flora", "--prompts", "nowhere.csv", "--out", "new"], "prompts='nowhere.csv': must be an existing"),
    (["complexity", "original", "--calls", "-1"], "--calls: must be a whole number from 0, not '-1'"),
    (["evaluate", "/nowhere", "/nowhere"], "generated: folder='/nowhere': must be a folder of images"),
    (["run", "--profile", "big"], "--profile: profile='big': must be one of smoke, mini, full, paper"),
    (["run", "--dataset", "/nowhere"], "--dataset: dataset='/nowhere': must be flora, garden, oxford-102"),
    (["claims", "--verdict", "maybe"], "--verdict: invalid choice: 'maybe'"),
    (["pretrain", "--unet-steps", "0"], "--unet-steps: must be a whole number from 1, not '0'"),
    (["build", "--rot", "."], "unrecognized arguments: --rot ."),
    (["distil"], "COMMAND: invalid choice: 'distil'"),
    ([], "the following arguments are required: COMMAND"),
]
PROGRAM = """
import contextlib, io, json, sys
from kdcdiff import cli
told = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(words)
    told.append([code, said.getvalue(), "torch" in sys.modules])
print(json.dumps(told))
"""


def test_what_is_wrong_is_one_line_and_costs_no_import(tmp_path):
    words = json.dumps([words for words, _ in REFUSED])
    done = subprocess.run([sys.executable, "-c", PROGRAM, words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for (words, line), (code, said, heavy) in zip(REFUSED, json.loads(done.stdout), strict=True):
        assert code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1, (words, said)
        assert not heavy, words
    assert not list(tmp_path.iterdir())


def test_every_command_that_computes_takes_a_device():
    for command in ("generate", "distill", "evaluate", "complexity", "continual", "encode", "pretrain", "run"):
        assert "--device" in cli.parser_for(command)._subparsers._group_actions[0].choices[command].format_help()
