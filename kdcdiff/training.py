"""The one training loop. Everything that learns in this project, learns here.

The loop knows nothing of what it trains: `loss` maps (model, batch, generator) to a scalar and named terms, `batch`
maps (step, generator) to tensors. All randomness of a step comes from a generator seeded by (seed, rank, step), so a
run that is killed and continued from its last checkpoint sees the very numbers of an unbroken one, and no RNG state
has to be saved. A checkpoint is one safetensors file (weights, optimizer moments, EMA) and one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdcdiff.errors import UserError, check

Terms = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, Terms]]
Batch = Callable[[int, torch.Generator], Any]

SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] after warm-up -> factor of the learning rate
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The randomness of one step on one process: a CPU generator seeded by (seed, rank, step)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + rank) * 10_000_019 + step)


class EMA:
    """Exponential moving average of a module's parameters, with the usual ramp: min(decay, (1 + t) / (10 + t))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        check(0 <= decay < 1, "ema", decay, "a decay in [0, 1); 0 turns it off")
        self.decay = decay
        self.live = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.live.values()), weight)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(self.shadow[name])


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None) -> dict[str, Tensor]:
    """Everything that a run must remember, flat: what `_restore` reads."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
    if ema is not None:
        state |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    return {k: v.detach().contiguous() for k, v in state.items()}


def _restore(state: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA | None) -> None:
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            like = parameters[int(index)]
            # fused AdamW walks raw memory: a moment must lie in its parameter's layout, channels-last or not
            laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            slots.setdefault(int(index), {})[name] = laid_out
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if ema is not None:
        for name, shadow in ema.shadow.items():
            shadow.copy_(state[f"ema.{name}"])


def _save_checkpoint(folder: Path, step: int, state: dict[str, Tensor], log_bytes: int) -> None:
    """Write `step`'s checkpoint beside the last one, make it the newest by a rename, then drop the older."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:07d}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(state, partial, metadata={"step": str(step), "log_bytes": str(log_bytes)})
    with open(partial, "rb") as f:
        os.fsync(f.fileno())
    os.replace(partial, target)
    for old in sorted(folder.glob("step-*.safetensors"))[:-2]:
        old.unlink()


def _newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*.safetensors"), default=None)


def _metadata(path: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        return {k: int(v) for k, v in f.metadata().items()}


@contextlib.contextmanager
def _log(path: Path | None, keep_bytes: int) -> Iterator[Callable[[dict[str, Any]], int]]:
    """A JSONL log that is cut back to `keep_bytes` on resume, so that no step stands in it twice."""
    if path is None:
        yield lambda row: 0
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as f:
        f.truncate(keep_bytes)

        def write(row: dict[str, Any]) -> int:
            f.seek(0, os.SEEK_END)
            f.write(json.dumps(row).encode() + b"\n")
            f.flush()
            return f.tell()

        yield write


def fit(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    *,
    steps: int,  # optimizer steps in all
    lr: float,  # peak learning rate of AdamW
    seed: int = 0,  # of everything random in the run
    schedule: str = "cosine",  # after warm-up: constant, linear or cosine
    warmup: int = 0,  # steps of linear warm-up
    weight_decay: float = 0.01,  # AdamW's
    betas: tuple[float, float] = (0.9, 0.99),  # AdamW's
    clip: float = 1.0,  # gradient norm, of each child of `model` when that is a ModuleList; 0 turns it off
    accumulate: int = 1,  # micro-batches a step; `batch` is asked for each
    ema: float = 0.0,  # decay; the averaged weights are in `model` at the end
    precision: str = "no",  # accelerate's mixed precision: no, fp16 or bf16
    folder: Path | None = None,  # holds checkpoint/ and log.jsonl; None keeps nothing
    checkpoint_every: int = 0,  # steps; 0 writes no checkpoint
    log_every: int = 50,  # steps between log lines: the only places that wait for the device
    describe: str = "training",  # the progress bar's title; empty hides it
) -> list[dict[str, float]]:
    """Train `model` in place; return the log: step, loss, each term, images/s.

    Continues from `folder`'s newest checkpoint where there is one. Raises `UserError` on a loss that is not finite,
    naming the step and the last good checkpoint.
    """
    check(steps >= 0, "steps", steps, "must be 0 or more")
    check(lr > 0, "lr", lr, "must be above 0")
    check(accumulate >= 1, "accumulate", accumulate, "must be 1 or more")
    check(schedule in SCHEDULES, "schedule", schedule, f"must be one of {', '.join(SCHEDULES)}")
    AcceleratorState._reset_state()  # accelerate keeps a process's first precision; the next run may want another
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=1)
    averaged = EMA(model, ema) if ema else None  # of the student itself, before anything wraps it
    fused = all(p.is_floating_point() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    groups = list(model) if isinstance(model, nn.ModuleList) else [model]

    start, log_bytes, rows = 0, 0, []
    checkpoints = folder / "checkpoint" if folder is not None else None
    if checkpoints is not None and (newest := _newest_checkpoint(checkpoints)) is not None:
        _restore(load_file(newest), model, optimizer, averaged)
        start, log_bytes = _metadata(newest)["step"], _metadata(newest)["log_bytes"]
    log_path = folder / "log.jsonl" if folder is not None else None
    if log_path is not None and log_bytes:
        rows = [json.loads(line) for line in log_path.read_bytes()[:log_bytes].splitlines()]

    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if averaged is not None:
        averaged.shadow = {k: v.to(accelerator.device) for k, v in averaged.shadow.items()}
    model.train()
    bar = tqdm(
        total=steps,
        initial=start,
        desc=describe,
        disable=not describe or not accelerator.is_main_process,
        mininterval=1,
    )
    with _log(log_path if accelerator.is_main_process else None, log_bytes) as write:
        clock, images = time.perf_counter(), 0
        for step in range(start, steps):
            progress = (step - warmup) / max(1, steps - warmup)
            factor = (step + 1) / warmup if step < warmup else SCHEDULES[schedule](progress)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            for micro in range(accumulate):
                generator = step_generator(seed, step * accumulate + micro, accelerator.process_index)
                data = batch(step * accumulate + micro, generator)
                sync = contextlib.nullcontext() if micro == accumulate - 1 else accelerator.no_sync(wrapped)
                with sync, accelerator.autocast():
                    value, terms = loss(wrapped, data, generator)
                    accelerator.backward(value / accumulate)
                images += _batch_size(data)
            if clip:
                for group in groups:
                    accelerator.clip_grad_norm_(group.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update(step)
            done = step + 1
            if done % log_every == 0 or done == steps:
                row = {
                    "step": done,
                    "loss": value.item(),
                    **{k: v.item() for k, v in terms.items()},
                }  # sync: every log_every steps
                if not math.isfinite(row["loss"]):
                    last = _newest_checkpoint(checkpoints) if checkpoints else None
                    raise UserError(
                        f"loss={row['loss']} at step {done}: must be finite; "
                        f"last good checkpoint: {last.name if last else 'none'}"
                    )
                seconds = time.perf_counter() - clock
                bar.set_postfix(
                    {k: f"{v:.4g}" for k, v in row.items() if k != "step"} | {"img/s": f"{images / seconds:.0f}"}
                )
                clock, images = time.perf_counter(), 0
                rows.append(row)
                log_bytes = write(row)
            bar.update()
            if (
                checkpoints is not None
                and checkpoint_every
                and (done % checkpoint_every == 0)
                and accelerator.is_main_process
            ):
                _save_checkpoint(checkpoints, done, _state(model, optimizer.optimizer, averaged), log_bytes)
    bar.close()
    if averaged is not None:
        averaged.copy_to_module()
    model.eval()
    return rows


def _batch_size(data: Any) -> int:
    """The number of samples in a batch: its length, or that of a mapping's first value."""
    return len(next(iter(data.values()))) if isinstance(data, Mapping) else len(data)
