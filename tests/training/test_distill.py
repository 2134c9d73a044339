"""Distillation of a tiny student: it learns, logs its terms, resumes, and becomes a pipeline by command."""

import copy
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from kdcdiff import cli
from kdcdiff.cli.distill import SETTINGS, WEIGHTS
from kdcdiff.data import flora, latents
from kdcdiff.data.latents import LatentSet
from kdcdiff.errors import UserError
from kdcdiff.models import surgery
from kdcdiff.models.pipeline import SCHEDULER, load_pipeline
from kdcdiff.training.distill import _DTYPES, OBJECTIVES, distill, distill_together
from kdcdiff.training.loop import SCHEDULES
from kdcdiff.training.losses import LABELS, READINGS, BKSDMLoss, KDCLoss
from kdcdiff.training.protocols import PROTOCOLS

from ..conftest import REPO

TINY = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 2,
    "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY)


def tiny_cache() -> LatentSet:
    g = torch.Generator().manual_seed(0)
    return LatentSet(
        mean=torch.randn(24, 2, 4, 4, generator=g), std=torch.full((24, 2, 4, 4), 0.1),
        labels=torch.zeros(24, dtype=torch.long),
        captions=torch.ones(24, dtype=torch.long),
        prompts=torch.randn(2, 3, 8, generator=g), texts=("", "x"), classes=("x",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache():
    return tiny_cache()


SCHEDULER = DDIMScheduler(**SCHEDULER)


def distance(student, teacher, cache) -> float:
    batch = latents.denoising_batch(cache, torch.arange(24), SCHEDULER, torch.Generator().manual_seed(9), 0.0)
    with torch.no_grad():
        outputs = [net(batch.noisy, batch.timestep, batch.prompt, return_dict=False)[0] for net in (student, teacher)]
    return F.mse_loss(*outputs).item()


def test_a_student_comes_closer_to_its_teacher_and_the_teacher_stays(teacher, cache):
    before_weights = [p.clone() for p in teacher.parameters()]
    student = surgery.shrink(teacher, "bk-sdm-base").requires_grad_(True)
    before = distance(student, teacher, cache)
    objective = KDCLoss(alpha=1.0, beta=1.0, gamma=0.0)
    log = distill(student, teacher, cache, SCHEDULER, objective, steps=60, batch=16, lr=3e-3, describe="")
    assert distance(student, teacher, cache) < 0.5 * before
    terms = {"soft", "hard", "feature", "mse"}
    assert {"step", "loss", *terms} == set(log[-1])
    assert all(torch.equal(a, b) for a, b in zip(before_weights, teacher.parameters(), strict=True))
    assert not any(m._forward_hooks for m in (*student.modules(), *teacher.modules()))


def test_students_of_one_run_end_as_if_each_had_been_alone(teacher, cache):
    objectives = {"kdc": KDCLoss(), "bk": BKSDMLoss(), "task": BKSDMLoss(0, 0)}
    variants = {"kdc": "kdc-described", "bk": "bk-sdm-base", "task": "kdc-described"}
    fresh = {name: surgery.shrink(teacher, variant) for name, variant in variants.items()}
    settings = {"steps": 4, "batch": 4, "lr": 1e-3, "warmup": 2, "norms_every": 2, "describe": ""}
    together = {name: (copy.deepcopy(unet), objectives[name]) for name, unet in fresh.items()}
    log = distill_together(together, teacher, cache, SCHEDULER, **settings)
    assert {"kdc.soft", "bk.output", "task.mse", "kdc.soft.gradient", "bk.feature.gradient"} <= log[-1].keys()
    for name, unet in fresh.items():
        alone = copy.deepcopy(unet)
        own = distill(alone, teacher, cache, SCHEDULER, objectives[name], **settings)
        assert own[-1]["mse"] == pytest.approx(log[-1][f"{name}.mse"], rel=1e-4)
        pairs = zip(alone.parameters(), together[name][0].parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize(
    "settings",
    [{"checkpointing": True}, {"precision": "bf16"}, {"snr_gamma": 5.0}, {"accumulate": 2}, {"schedule": "constant"}],
    ids=str,
)
def test_it_learns_in_every_mode(teacher, cache, settings):
    own, student = copy.deepcopy(teacher), surgery.shrink(teacher, "kdc-described")
    before = distance(student, teacher, cache)
    distill(student, own, cache, SCHEDULER, BKSDMLoss(), steps=40, batch=8, lr=3e-3, warmup=2, describe="", **settings)
    assert distance(student, teacher, cache) < 0.7 * before


@pytest.mark.parametrize("term", ["alpha", "beta", "gamma"])
def test_each_weight_changes_what_is_learnt(teacher, cache, term):
    ends = []
    for value in (0.1, 0.9):
        student = surgery.shrink(teacher, "kdc-described").requires_grad_(True)
        objective = KDCLoss(**{"alpha": 0.5, "beta": 0.5, "gamma": 0.5} | {term: value})
        distill(student, teacher, cache, SCHEDULER, objective, steps=3, batch=4, lr=1e-3, describe="")
        ends.append(student.conv_in.weight.detach())
    assert not torch.equal(*ends)


def test_a_second_call_goes_on_from_the_last_checkpoint(teacher, cache, tmp_path):
    def trained(folder, steps, every):
        student = surgery.shrink(teacher, "kdc-described").requires_grad_(True)
        distill(
            student, teacher, cache, SCHEDULER, KDCLoss(), steps=steps, batch=4, lr=1e-3, warmup=2, folder=folder,
            checkpoint_every=every, describe="",
        )  # fmt: skip
        return student

    whole = trained(tmp_path / "whole", 8, 0)
    trained(tmp_path / "broken", 8, 4)
    (tmp_path / "broken" / "checkpoint" / "step-0000008.safetensors").unlink()  # as if it had been killed after 4
    again = trained(tmp_path / "broken", 8, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_command_writes_a_pipeline_that_plain_diffusers_runs(tmp_path, capsys):
    words = ["distill", "--out", str(tmp_path / "student"), "--steps", "2", "--batch", "4", "--per-class", "2"]
    words += ["--views", "2", "--sheet-every", "1", "--ema", "0.5", "--accumulate", "2", "--device", "cpu"]
    assert cli.main(words) == 0
    sheets = sorted(f.name for f in (tmp_path / "student.work" / "sheets").iterdir())
    assert sheets == ["step-0000001.png", "step-0000002.png"]
    pipeline = load_pipeline(tmp_path / "student")
    assert pipeline("a daisy", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert len(pipeline.unet.down_blocks) == 3
    card = (tmp_path / "student" / "README.md").read_text()
    assert "kdc-described: a student of flora" in card and "not been retrained" not in card
    assert "| objective | kdc-diff: alpha 0.9, beta 0.1, gamma 1.0, temperature 4.0, reading all, label" in card
    assert "24 images, 2 views of each" in card and "| steps | 2 |" in card and "| seed | 0 |" in card
    assert "| losses at the end | loss " in card and "feature " in card
    assert cli.main(words) == 2
    assert "--out: path=" in capsys.readouterr().err


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Runs the command up to the training; returns what that was called with, and the classes that it would see."""

    def command(*words):
        seen = {}

        def stop(student, teacher, latents, scheduler, objective, **settings):
            seen.update(settings, objective=objective, classes=latents.classes)
            raise UserError("stopped")

        monkeypatch.setattr("kdcdiff.training.distill.distill", stop)
        base = ["distill", "--out", str(tmp_path / "student"), "--per-class", "1", "--device", "cpu"]
        assert cli.main([*base, *words]) == 2
        return seen

    return command


def test_each_protocol_has_its_own_objective(told):
    seen = told("--protocol", "bk-sdm")
    assert seen["objective"] == BKSDMLoss() and (seen["steps"], seen["batch"], seen["accumulate"]) == (50_000, 64, 4)
    seen = told("--protocol", "bk-sdm", "--objective", "kdc-diff", "--alpha", "0.5", "--label", "argmax", "--lr", "1")
    assert seen["objective"] == KDCLoss(alpha=0.5, label="argmax") and (seen["lr"], seen["batch"]) == (1.0, 64)
    assert told("--protocol", "bk-sdm", "--feature-weight", "0.2")["objective"] == BKSDMLoss(feature=0.2)
    assert told()["objective"] == KDCLoss()


def test_it_never_trains_on_a_novel_class(told, capsys):
    assert told()["classes"] == flora.BASE
    assert told("--classes", "rose", "daisy")["classes"] == ("rose", "daisy")
    capsys.readouterr()
    assert told("--classes", flora.NOVEL[0]) == {}
    assert f"error: classes='{flora.NOVEL[0]}': must be of {flora.BASE[0]}, " in capsys.readouterr().err


def test_the_options_are_those_of_the_library():
    """The command line says them again, so that it can refuse without importing torch."""
    for objective, options in WEIGHTS.items():
        own = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[objective])}
        assert own == {field: type(own[field])(text.rpartition("(")[2][:-1]) for field, _, text in options.values()}
    for names, known in (("reading", READINGS), ("label", LABELS)):
        for name in known:
            assert WEIGHTS["kdc-diff"][f"--{names}"][1](name) == name
    for names, known in (("schedule", SCHEDULES), ("precision", _DTYPES)):
        for name in known:
            assert SETTINGS[names][0](name) == name
    assert all(protocol["objective"] in OBJECTIVES for protocol in PROTOCOLS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "2"], "--alpha: must be a number from 0 to 1, not '2'"),
        (["--steps", "-1"], "--steps: must be a whole number from 1, not '-1'"),
        (["--reading", "none"], "--reading: must be one of all, space, channels, not 'none'"),
        (["--variant", "bk-sdm-large"], "variant='bk-sdm-large'"),
        (["--teacher", "fauna"], "pipeline='fauna'"),
        (["--data", "/nowhere"], "dataset="),
        (["--protocol", "bk-sdm", "--alpha", "0.5"], "--alpha: belongs to --objective kdc-diff"),
        (["--output-weight", "1"], "--output-weight: belongs to --objective bk-sdm"),
        (["--protocol", "kdc-diff", "--device", "cpu"], "precision='fp16': needs a GPU"),
    ],
)
def test_bad_words_on_the_command_line_leave_nothing(tmp_path, capsys, words, message):
    assert cli.main(["distill", "--out", str(tmp_path / "student"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and not list(tmp_path.iterdir())


SHARED = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[2])
from tests.training.test_distill import SCHEDULER, TINY, tiny_cache
from kdcdiff.models import surgery
from kdcdiff.training import distill
from kdcdiff.training.losses import KDCLoss
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = UNet2DConditionModel(**TINY)
student = surgery.shrink(teacher, "kdc-described").requires_grad_(True)
settings = dict(steps=6, batch=4, lr=1e-3, warmup=2, accumulate=2, ema=0.9, checkpoint_every=3, describe="")
distill.distill(student, teacher, tiny_cache(), SCHEDULER, KDCLoss(), folder=Path(sys.argv[1]), **settings)
state = PartialState()
if state.is_main_process:
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, sys.argv[1] + ".safetensors")
    Path(sys.argv[1] + ".backend").write_text(f"{state.backend} {state.num_processes}")
"""


def test_two_processes_distil_the_single_processs_student(tmp_path):
    """`accelerate launch` with gloo on the CPU: the same global batch, half of it on each; taps on the bare networks.

    accelerate's own flag for several processes on a CPU asks for mpirun; its launcher for several devices needs
    nothing, and ACCELERATE_USE_CPU keeps it off them.
    """
    program = tmp_path / "program.py"
    program.write_text(SHARED)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    free = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"ACCELERATE_USE_CPU": "true"}
    for count, words in ((1, ["--cpu"]), (2, ["--multi_gpu", "--main_process_port", "0"])):
        done = subprocess.run(
            [*launch, "--num_processes", str(count), *words, str(program), str(tmp_path / str(count)), str(REPO)],
            env=free,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    torch.manual_seed(0)
    start = surgery.shrink(UNet2DConditionModel(**TINY), "kdc-described").state_dict()
    way, apart = (sum(((a[k] - b[k]) ** 2).sum() for k in a) ** 0.5 for a, b in ((one, start), (one, two)))
    assert apart < 0.01 * way, "Adam turns the last bit of a gradient near zero into a step; nothing else may differ"
    assert (tmp_path / "2" / "checkpoint" / "step-0000006.safetensors").is_file()
    assert (tmp_path / "2.backend").read_text() == "gloo 2"
