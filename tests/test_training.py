"""The loop: resume to the bit after a real kill, accumulation, averages, schedules, and what stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdcdiff.errors import UserError
from kdcdiff.training import SCHEDULES, fit, step_generator

PROGRAM = """
import sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from kdcdiff.training import fit
torch.set_num_threads(1)
folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))
def batch(step, generator):
    return {"x": torch.randn(8, 6, generator=generator)}
def loss(model, data, generator):
    time.sleep(pause)
    value = F.mse_loss(model(data["x"]), torch.randn(8, 2, generator=generator) + data["x"][:, :2])
    return value, {"size": model(data["x"]).square().mean()}
settings = dict(seed=4, warmup=3, ema=0.9, folder=folder, checkpoint_every=5, log_every=2, describe="")
fit(model, loss, batch, steps=steps, lr=1e-2, **settings)
save_file(model.state_dict(), folder / "end.safetensors")
"""


def start(folder: Path, steps: int, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(steps), str(pause)])


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 1)


def batch(step, generator):
    return {"x": torch.randn(4, 3, generator=generator)}


def squared(model, data, generator):
    return (model(data["x"]) - data["x"].sum(1, keepdim=True)).square().mean(), {}


def test_a_killed_run_ends_bit_identical_to_an_unbroken_one(tmp_path):
    assert start(tmp_path / "whole", 24, 0.0).wait() == 0
    broken = start(tmp_path / "broken", 24, 0.15)
    checkpoint = tmp_path / "broken" / "checkpoint" / "step-0000010.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(broken.pid, signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL and not (tmp_path / "broken" / "end.safetensors").exists()
    assert start(tmp_path / "broken", 24, 0.0).wait() == 0
    whole, again = (load_file(tmp_path / name / "end.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 12


def test_it_learns_and_logs_each_term(tmp_path):
    def loss(model, data, generator):
        value, _ = squared(model, data, generator)
        return value, {"half": value.detach() / 2}

    model = linear()
    log = fit(model, loss, batch, steps=200, lr=3e-2, folder=tmp_path, log_every=50, describe="")
    assert [row["step"] for row in log] == [50, 100, 150, 200] and log[-1]["loss"] < log[0]["loss"]
    assert all(row["half"] == pytest.approx(row["loss"] / 2) for row in log)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log
    assert not model.training


def test_a_run_of_no_steps_changes_nothing():
    model, same = linear(), linear()
    assert fit(model, squared, batch, steps=0, lr=1e-3, describe="") == []
    assert torch.equal(model.weight, same.weight)


def test_accumulated_micro_batches_equal_one_big_batch():
    def half(step, generator):  # micro-batch `step` of 4 rows; two make the big one
        return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(step))}

    def whole(step, generator):
        return {"x": torch.cat([half(2 * step, None)["x"], half(2 * step + 1, None)["x"]])}

    small, big = linear(), linear()
    fit(small, squared, half, steps=5, lr=1e-2, accumulate=2, describe="")
    fit(big, squared, whole, steps=5, lr=1e-2, describe="")
    assert torch.allclose(small.weight, big.weight, atol=1e-6)


def test_the_average_is_what_remains_and_follows_its_formula():
    live: list[torch.Tensor] = []

    def watch(model, data, generator):
        live.append(model.weight.detach().clone())
        return squared(model, data, generator)

    plain, averaged = linear(), linear()
    fit(plain, watch, batch, steps=6, lr=1e-2, describe="")
    weights = [*live[1:], plain.weight.detach()]  # after each step
    fit(averaged, squared, batch, steps=6, lr=1e-2, ema=0.5, describe="")
    shadow = linear().weight.detach().clone()
    for step, weight in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * weight
    assert torch.allclose(averaged.weight, shadow, atol=1e-6)


def test_several_students_in_one_run_are_clipped_one_by_one():
    """A ModuleList's children share a batch and nothing else: each ends as if trained alone."""

    def both(models, data, generator):
        return torch.stack([squared(m, data, generator)[0] * s for m, s in zip(models, (1, 50), strict=True)]).sum(), {}

    pair = nn.ModuleList([linear(), linear()])
    fit(pair, both, batch, steps=4, lr=1e-2, clip=0.1, describe="")
    for scale, member in zip((1, 50), pair, strict=True):
        alone = linear()
        fit(
            alone,
            lambda m, d, g, s=scale: (squared(m, d, g)[0] * s, {}),
            batch,
            steps=4,
            lr=1e-2,
            clip=0.1,
            describe="",
        )
        assert torch.allclose(alone.weight, member.weight, atol=1e-6)


def test_schedules_begin_at_the_peak_and_end_where_they_say():
    assert [s(0.0) for s in SCHEDULES.values()] == [1.0, 1.0, 1.0]
    ends = {name: round(s(1.0), 9) for name, s in SCHEDULES.items()}
    assert ends == {"constant": 1.0, "linear": 0.0, "cosine": 0.0}


def test_randomness_of_a_step_depends_on_seed_step_and_rank_alone():
    draw = lambda *words: torch.rand(4, generator=step_generator(*words)).tolist()  # noqa: E731
    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, step, rank)) for seed in range(3) for step in range(3) for rank in range(3)}) == 27


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_learns_in_each_precision_of_this_machine(precision):
    model = linear()
    log = fit(model, squared, batch, steps=100, lr=3e-2, precision=precision, log_every=100, describe="")
    assert log[-1]["loss"] < 0.1 and model.weight.dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_with_one_line(tmp_path):
    def explode(model, data, generator):
        return model(data["x"]).sum() * float("nan"), {}

    with pytest.raises(UserError, match="loss=nan at step 1: must be finite; last good checkpoint: none"):
        fit(
            linear(),
            explode,
            batch,
            steps=3,
            lr=1e-2,
            log_every=1,
            folder=tmp_path,
            checkpoint_every=1,
            describe="",
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps=-1: must be 0 or more"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"accumulate": 0}, "accumulate=0: must be 1 or more"),
        ({"schedule": "step"}, "schedule='step': must be one of constant, linear, cosine"),
        ({"ema": 1.0}, "ema=1.0: a decay in"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        fit(linear(), squared, batch, **{"steps": 1, "lr": 1e-2, "describe": ""} | settings)


def test_the_newest_two_checkpoints_stay_and_hold_no_pickle(tmp_path):
    fit(linear(), squared, batch, steps=9, lr=1e-2, folder=tmp_path, checkpoint_every=2, ema=0.9, describe="")
    names = sorted(f.name for f in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-0000006.safetensors", "step-0000008.safetensors"]
    state = load_file(tmp_path / "checkpoint" / names[-1])
    assert {"model.weight", "ema.weight", "optimizer.0.exp_avg", "optimizer.0.step"} <= state.keys()
