"""Class-by-class training: the measures by hand, what each method trains on, and resume after a kill."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from kdcdiff.data.latents import LatentSet
from kdcdiff.errors import UserError
from kdcdiff.metrics.forgetting import (
    average_accuracy,
    average_incremental,
    backward_transfer,
    forgetting,
    forward_transfer,
)
from kdcdiff.models.pipeline import SCHEDULER
from kdcdiff.training import continual
from kdcdiff.training.distill import distillation_loss
from kdcdiff.training.losses import KDCLoss

TINY = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 8), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
ORDER = ("a", "b", "c")
PROGRAM = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from test_continual import ORDER, learn_tiny
learn_tiny(Path(sys.argv[1]), "latent-replay", pause=float(sys.argv[2]))
"""


def latent_set(n: int = 6) -> LatentSet:
    g = torch.Generator().manual_seed(0)
    count = n * len(ORDER)
    return LatentSet(
        mean=torch.randn(count, 2, 4, 4, generator=g), std=torch.full((count, 2, 4, 4), 0.1),
        labels=torch.arange(len(ORDER)).repeat_interleave(n),
        captions=1 + torch.arange(len(ORDER)).repeat_interleave(n),
        prompts=torch.randn(4, 3, 8, generator=g), texts=("", "an a", "a b", "a c"), classes=ORDER,
    )  # fmt: skip


def tiny() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY)


PIXELS = torch.arange(18, dtype=torch.uint8).repeat_interleave(3 * 8 * 8).reshape(18, 3, 8, 8)  # picture i is all i


def encoder(pixels: torch.Tensor) -> torch.Tensor:
    """As an autoencoder would: picture i becomes the latents of row i."""
    return latent_set().mean[pixels[:, 0, 0, 0].long()]


def generate(unet, classes, count):
    return latent_set(count).of_classes(classes)


def learn_tiny(folder, method, pause=0.0, steps=4, after=lambda stage, unet: None, **settings):
    def after_stage(stage, unet):
        time.sleep(pause)
        after(stage, unet)

    unet = tiny()
    given = {"capacity": 6, "pixels": PIXELS, "encoder": encoder, "generate": generate} | settings
    memory = continual.learn(
        unet, latent_set(), ORDER, DDIMScheduler(**SCHEDULER), method, steps=steps, batch=4, lr=1e-3,
        seed=1, folder=folder, after_stage=after_stage, **given,
    )  # fmt: skip
    return unet, memory


# --- measures ------------------------------------------------------------------------------------------------

R = np.array([[0.9, np.nan, np.nan], [0.5, 0.8, np.nan], [0.6, 0.2, 1.0]])


def test_the_measures_by_hand():
    assert average_accuracy(R) == pytest.approx(0.6)
    assert backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.2 - 0.8)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.2)) / 2)
    assert average_incremental(R) == pytest.approx((0.9 + (0.5 + 0.8) / 2 + 0.6) / 3)


def test_forward_transfer_by_hand():
    known = np.array([[0.9, 0.3, np.nan], [0.5, 0.8, 0.1], [0.6, 0.2, 1.0]])
    assert forward_transfer(known, np.array([0.0, 0.1, 0.2])) == pytest.approx((0.2 - 0.1) / 2)


def test_forgetting_counts_from_the_best_and_not_from_the_first_score():
    rising = np.array([[0.2, np.nan, np.nan], [0.9, 0.4, np.nan], [0.5, 0.4, 0.4]])
    assert forgetting(rising) == pytest.approx((0.9 - 0.5 + 0) / 2)
    assert backward_transfer(rising) == pytest.approx((0.5 - 0.2 + 0) / 2)


@pytest.mark.parametrize(("current", "memory", "share"), [(100, 0, 0.0), (100, 100, 0.5), (160, 40, 0.2)])
def test_concatenation_fixes_the_share_of_the_memory(current, memory, share):
    assert continual.replay_share(current, memory) == pytest.approx(share)


# --- what a batch costs --------------------------------------------------------------------------------------


def test_the_objective_is_asked_for_every_batch_of_every_class(tmp_path):
    seen = []

    def objective(prediction, data):
        seen.append(prediction.shape == data.target.shape)
        return (prediction - data.target).abs().mean()

    other, _ = learn_tiny(tmp_path / "a", "naive", objective=objective)
    plain, _ = learn_tiny(tmp_path / "b", "naive")
    assert seen == [True] * 4 * len(ORDER)
    assert not torch.equal(other.conv_in.weight, plain.conv_in.weight)


def test_a_class_by_class_student_hears_its_teacher(tmp_path):
    student, teacher = tiny(), tiny()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    scheduler = DDIMScheduler(**SCHEDULER)
    with distillation_loss({"": (student, KDCLoss(beta=0.5))}, teacher, scheduler) as price:
        continual.learn(
            student, latent_set(), ORDER, scheduler, "latent-replay", steps=2, batch=4, capacity=6, folder=tmp_path,
            objective=lambda prediction, data: price([prediction], data)[0],
        )  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()), "the teacher is only asked"
    assert not torch.equal(student.conv_in.weight, teacher.conv_in.weight)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for net in (student, teacher) for m in net.modules())
    assert hooks == 0, "the taps are gone"


def test_a_class_ends_with_the_average_of_its_weights(tmp_path):
    averaged, _ = learn_tiny(tmp_path / "a", "naive", ema=0.9)
    last, _ = learn_tiny(tmp_path / "b", "naive")
    moved = [(net.conv_in.weight - tiny().conv_in.weight).norm() for net in (averaged, last)]
    assert 0 < moved[0] < moved[1], "it lies between the start and the end"
    stored = load_file(tmp_path / "a" / "stage-02.safetensors")["conv_in.weight"]
    assert torch.equal(stored, averaged.conv_in.weight), "and the next class starts from it"


# --- methods -------------------------------------------------------------------------------------------------


def test_methods_part_ways_only_when_there_is_something_to_replay(tmp_path):
    weights: dict[str, list[torch.Tensor]] = {}
    for method in ("naive", "latent-replay"):
        seen = weights.setdefault(method, [])
        after = lambda stage, unet, seen=seen: seen.append(unet.conv_in.weight.detach().clone())  # noqa: E731
        learn_tiny(tmp_path / method, method, after=after)
    naive, replay = weights.values()
    assert torch.equal(naive[0], replay[0]) and not torch.equal(naive[1], replay[1])


def test_what_is_known_before_is_old_from_the_first_class_on(tmp_path):
    ends, heard = {}, {}
    for method in ("naive", "latent-replay", "ewc"):
        unet, first = tiny(), heard.setdefault(method, [])
        after = lambda stage, unet, first=first: first.append(unet.conv_in.weight.detach().clone())  # noqa: E731
        ends[method] = continual.learn(
            unet, latent_set(), ("b", "c"), DDIMScheduler(**SCHEDULER), method, base=("a",), steps=2, batch=4, lr=1e-3,
            capacity=6, folder=tmp_path / method, after_stage=after,
        )  # fmt: skip
    assert not torch.equal(heard["naive"][0], heard["latent-replay"][0]), "the base class is replayed"
    assert not torch.equal(heard["naive"][0], heard["ewc"][0]), "and held by its Fisher information"
    assert ends["latent-replay"] == 6 * 2 * 4 * 4 * 2 and ends["naive"] == 0
    with pytest.raises(UserError, match="are known already"):
        continual.learn(
            tiny(), latent_set(), ("a",), DDIMScheduler(**SCHEDULER), "naive", base=("a",), steps=1, folder=tmp_path
        )


def test_the_memory_is_paid_for_by_replay_alone(tmp_path):
    assert learn_tiny(tmp_path / "n", "naive")[1] == 0
    assert learn_tiny(tmp_path / "r", "latent-replay")[1] == 6 * 2 * 4 * 4 * 2  # rows x channels x 4 x 4 x fp16


def ended(folder, method, **settings) -> torch.Tensor:
    return learn_tiny(folder, method, **settings)[0].conv_in.weight.detach()


def test_every_method_learns_and_ends_elsewhere(tmp_path):
    names = [method for method in continual.METHODS if method != "jpeg-replay"]  # below: of these pictures it is exact
    ends = {method: ended(tmp_path / method, method, steps=6) for method in names}
    assert all(end.isfinite().all() for end in ends.values())
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.equal(ends[one], ends[other]), (one, other)


def test_pixels_of_the_same_rows_are_the_same_memory(tmp_path):
    """An autoencoder that does not change makes replay of pixels that of latents, but for their half precision."""
    latent, pixel = (ended(tmp_path / m, m, steps=6, capacity=18) for m in ("latent-replay", "pixel-replay"))
    assert torch.allclose(latent, pixel, atol=1e-3)
    assert not torch.allclose(latent, ended(tmp_path / "n", "naive", steps=6), atol=1e-3)


def test_jpegs_are_paid_for_by_the_row_and_replayed_as_pixels_are(tmp_path):
    """A picture of one colour loses nothing as JPEG, so both memories of pictures teach the same."""
    ends = {method: learn_tiny(tmp_path / method, method, steps=1) for method in ("pixel-replay", "jpeg-replay")}
    assert [memory for _, memory in ends.values()] == [6 * 3 * 8 * 8, 6 * (512 + 3 * 8 * 8 // 16)]
    pixel, jpeg = (unet.conv_in.weight for unet, _ in ends.values())
    assert torch.equal(pixel, jpeg)


def test_ewc_holds_the_weights(tmp_path, monkeypatch):
    moved = {}
    for weight in (0.0, 1e6):
        monkeypatch.setitem(continual.METHODS, "ewc", continual.Method(ewc_weight=weight or 1e-12))
        seen = []
        after = lambda stage, unet, seen=seen: seen.append(unet.conv_in.weight.detach().clone())  # noqa: E731
        learn_tiny(tmp_path / str(weight), "ewc", steps=8, after=after)
        moved[weight] = (seen[2] - seen[0]).norm()
    assert moved[1e6] < 0.5 * moved[0.0]


def test_the_share_of_old_rows_can_be_chosen(tmp_path):
    more, fewer = (ended(tmp_path / str(s), "latent-replay", share=s) for s in (0.75, 0.25))
    assert not torch.equal(more, fewer)
    with pytest.raises(UserError, match="share=1.0: must lie between 0 and 1"):
        learn_tiny(tmp_path / "x", "latent-replay", share=1.0)


@pytest.mark.parametrize(
    ("method", "missing"), [("pixel-replay", "encoder"), ("jpeg-replay", "pixels"), ("generative-replay", "generate")]
)
def test_what_a_method_needs_is_asked_for(tmp_path, method, missing):
    with pytest.raises(UserError, match=f"{method} needs"):
        learn_tiny(tmp_path, method, **{missing: None})


def test_joint_training_takes_one_stage_and_the_same_compute(tmp_path):
    stages = []
    learn_tiny(tmp_path, "joint", after=lambda stage, unet: stages.append(stage))
    assert stages == [0]
    logged = (tmp_path / "stage-00" / "log.jsonl").read_text().splitlines()
    assert '"step": 12' in logged[-1]


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path):
    words = [sys.executable, "-c", PROGRAM]
    here = os.path.dirname(__file__)
    unet, _ = learn_tiny(tmp_path / "whole", "latent-replay")
    run = subprocess.Popen([*words, str(tmp_path / "broken"), "30", here])
    first, deadline = tmp_path / "broken" / "stage-00.safetensors", time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (tmp_path / "broken" / "stage-02.safetensors").exists()
    assert subprocess.run([*words, str(tmp_path / "broken"), "0", here]).returncode == 0
    ends = [load_file(tmp_path / name / "stage-02.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert torch.equal(ends[0]["conv_in.weight"], unet.conv_in.weight)


def test_an_unknown_method_or_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="method='hope': must be one of naive, latent-replay"):
        learn_tiny(tmp_path, "hope")
    with pytest.raises(UserError, match="class='d': must be one of a, b, c"):
        continual.learn(tiny(), latent_set(), ("d",), DDIMScheduler(**SCHEDULER), "naive", steps=1, folder=tmp_path)
    with pytest.raises(UserError, match="must be at least one class, each once"):
        continual.learn(
            tiny(),
            latent_set(),
            ("a", "a"),
            DDIMScheduler(**SCHEDULER),
            "naive",
            steps=1,
            folder=tmp_path,
        )
