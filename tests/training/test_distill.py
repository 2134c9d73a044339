"""Distillation of a tiny student: it learns, logs its terms, resumes, and becomes a pipeline by command."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from kdcdiff import cli
from kdcdiff.data import latents
from kdcdiff.data.latents import LatentSet
from kdcdiff.models import surgery
from kdcdiff.models.pipeline import SCHEDULER, load_pipeline
from kdcdiff.training.distill import distill, distill_together
from kdcdiff.training.losses import BKSDMLoss, KDCLoss

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
    log = distill(
        student,
        teacher,
        cache,
        SCHEDULER,
        KDCLoss(alpha=1.0, beta=1.0, gamma=0.0),
        steps=60,
        batch=16,
        lr=3e-3,
        describe="",
    )
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
    words = [
        "distill",
        "--out",
        str(tmp_path / "student"),
        "--steps",
        "2",
        "--batch",
        "4",
        "--per-class",
        "2",
        *("--views", "2", "--sheet-every", "1", "--ema", "0.5", "--accumulate", "2"),
    ]
    assert cli.main(words) == 0
    assert sorted(f.name for f in (tmp_path / "student.work" / "sheets").iterdir()) == [
        "step-0000001.png",
        "step-0000002.png",
    ]
    pipeline = load_pipeline(tmp_path / "student")
    assert pipeline("a daisy", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert len(pipeline.unet.down_blocks) == 3 and not (tmp_path / "student.work" / "pipeline").exists()
    assert cli.main(words) == 2
    assert "out=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "2"], "alpha=2.0: must be between 0 and 1"),
        (["--variant", "bk-sdm-large"], "variant='bk-sdm-large'"),
        (["--teacher", "fauna"], "pipeline='fauna'"),
        (["--data", "/nowhere"], "dataset="),
    ],
)
def test_bad_words_on_the_command_line_leave_nothing(tmp_path, capsys, words, message):
    assert cli.main(["distill", "--out", str(tmp_path / "student"), *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


SHARED = """
import sys
from pathlib import Path
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[2])
from tests.test_distill import SCHEDULER, TINY, tiny_cache
from kdcdiff import distill, surgery
from kdcdiff.losses import KDCLoss
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
