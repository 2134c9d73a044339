"""The loop: resume to the bit after a real kill, accumulation, averages, schedules, and what stops it."""

import json
import os
import random
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
from kdcdiff.training.loop import SCHEDULES, fit, step_generator

PROGRAM = """
import sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from kdcdiff.training.loop import fit
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


def test_a_run_killed_at_random_moments_ends_bit_identical_to_an_unbroken_one(tmp_path):
    assert start(tmp_path / "whole", 24, 0.0).wait() == 0
    moments, kills = random.Random(0), 0
    checkpoint = tmp_path / "broken" / "checkpoint" / "step-0000005.safetensors"
    while kills < 3:
        broken = start(tmp_path / "broken", 24, 0.15)  # at least 3.6 s of steps, a checkpoint every 0.75 s
        deadline = time.monotonic() + 120
        while not checkpoint.parent.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 1.2))
        if broken.poll() is not None:
            break  # it came to its end between two kills
        os.kill(broken.pid, signal.SIGKILL)
        assert broken.wait() == -signal.SIGKILL and not (tmp_path / "broken" / "end.safetensors").exists()
        kills += 1
    assert kills, "at least one kill took place"
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


def test_randomness_of_a_step_depends_on_seed_and_step_alone():
    draw = lambda *words: torch.rand(4, generator=step_generator(*words)).tolist()  # noqa: E731
    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(seed, step)) for seed in (0, 1, 2, 2**31 - 1) for step in range(3)}) == 12


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
        ({"keep": 0}, "keep=0: must be 1 or more"),
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


def test_the_first_bad_step_is_named_and_nothing_bad_is_kept(tmp_path):
    """The loss is read every 50 steps only; the step that broke is known all the same."""
    steps = iter(range(1, 100))

    def breaks(model, data, generator):
        return squared(model, data, generator)[0] * (float("nan") if next(steps) == 7 else 1), {}

    with pytest.raises(UserError, match=r"at step 7: .* last good checkpoint: step-0000006"):
        fit(linear(), breaks, batch, steps=20, lr=1e-2, folder=tmp_path, checkpoint_every=2, describe="")
    assert max(f.name for f in (tmp_path / "checkpoint").iterdir()) == "step-0000006.safetensors"


def test_the_gradient_norm_of_each_term_is_that_of_its_own_backward(tmp_path):
    def two(model, data, generator):
        terms = {"near": squared(model, data, generator)[0], "size": model.weight.square().sum()}
        return terms["near"] + 3 * terms["size"], terms

    model = linear()
    expected = (2 * model.weight.norm()).item()  # d/dw |w|^2
    log = fit(model, two, batch, steps=2, lr=1e-2, norms_every=1, describe="")
    assert log[0]["size.gradient"] == pytest.approx(expected, rel=1e-5)
    assert log[0].keys() == {"step", "loss", "near", "size", "near.gradient", "size.gradient"}
    same = linear()
    fit(same, two, batch, steps=2, lr=1e-2, describe="")
    assert torch.equal(model.weight, same.weight), "measuring changes nothing"


def test_checkpoints_by_the_clock_and_watchers_by_the_step(tmp_path):
    seen = []
    settings = {"checkpoint_minutes": 1e-9, "keep": 3, "watch": seen.append, "watch_every": 3}
    fit(linear(), squared, batch, steps=7, lr=1e-2, folder=tmp_path, describe="", **settings)
    assert sorted(f.name[8:12] for f in (tmp_path / "checkpoint").iterdir()) == ["0005", "0006", "0007"]
    assert seen == [3, 6]


def test_a_tracker_of_accelerates_sees_what_the_log_sees(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = fit(linear(), squared, batch, steps=4, lr=1e-2, folder=tmp_path, log_every=2, trackers=["tensorboard"])
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.*")).parent))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(r["step"], pytest.approx(r["loss"])) for r in log]
