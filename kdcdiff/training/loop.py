"""The one training loop. Everything that learns in this project, learns here.

The loop knows nothing of what it trains: `loss` maps (model, batch, generator) to a scalar and named terms, `batch`
maps (step, generator) to tensors. All randomness of a step comes from a generator seeded by (seed, step), so a run that
is killed and continued from its last checkpoint sees the very numbers of an unbroken one, and no RNG state has to be
saved. `batch` gives the whole step's batch; with several processes each takes its share of the rows, so the same seed
is the same run on any number of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm

from kdcdiff.errors import UserError, check
from kdcdiff.process import Stopped, compute_dtype, on_full_gpu, stop_put_off
from kdcdiff.training.checkpoint import EMA, CheckpointFolder, restore, training_state

Terms = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, Terms]]
Batch = Callable[[int, torch.Generator], Any]

SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] after warm-up -> factor of the learning rate
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


def precision_of(device: torch.device) -> str:
    """Name the mixed precision in which a device computes, as accelerate does."""
    return {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[compute_dtype(device)]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Make the randomness of one step: a CPU generator seeded by (seed, step)."""
    return torch.Generator().manual_seed(seed * 1_000_003 * 10_000_019 % 2**63 + step)


@contextlib.contextmanager
def _log(path: Path | None, keep_bytes: int) -> Iterator[Callable[[dict[str, Any]], int]]:
    """Open a JSONL log, cut back to `keep_bytes`, so that no step stands in it twice; rows go to what is yielded."""
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


def _logged(path: Path, size: int) -> list[dict[str, Any]]:
    """Read the first `size` bytes of a log. UserError: they are no longer what they were when they were written."""
    try:
        text = path.read_bytes()[:size]
        check(len(text) == size and text.endswith(b"\n"), "log", str(path), "is cut short")
        return [json.loads(row) for row in text.splitlines()]
    except (OSError, ValueError) as error:
        told = f"does not go with the checkpoint beside it ({error}); remove the folder to train anew"
        raise UserError(f"log={str(path)!r}: {told}") from None


@on_full_gpu()
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
    precision: str | None = None,  # accelerate's mixed precision: no, fp16 or bf16; None: as the device computes
    folder: Path | None = None,  # holds checkpoint/ and log.jsonl; None keeps nothing
    checkpoint_every: int = 0,  # steps between checkpoints; 0: by the clock alone
    checkpoint_minutes: float = 0.0,  # and after so many minutes; 0: by steps alone
    keep: int = 2,  # checkpoints
    log_every: int = 50,  # steps between log lines: the only places that wait for the device
    norms_every: int = 0,  # steps between measurements of each term's gradient norm (one more backward each); 0: never
    trackers: Sequence[str] = (),  # of accelerate's, beside the log: tensorboard, wandb, ...
    watch: Callable[[int], None] | None = None,  # is called with the number of steps done, on the main process
    watch_every: int = 0,  # steps between such calls
    describe: str = "training",  # the progress bar's title; empty hides it
) -> list[dict[str, float]]:
    """Train `model` in place, on the device where it lies; return the log: step, loss, each term, gradient norms.

    Continues from `folder`'s newest checkpoint where there is one. Raises `UserError` on a loss that was not finite,
    naming the first such step and the last good checkpoint; none is ever written after it. A signal that asks the
    process to end is heeded at the end of a step, after a checkpoint (`Stopped`).
    """
    check(steps >= 0, "steps", steps, "must be 0 or more")
    check(lr > 0, "lr", lr, "must be above 0")
    check(accumulate >= 1, "accumulate", accumulate, "must be 1 or more")
    check(keep >= 1, "keep", keep, "must be 1 or more")
    check(0 <= ema < 1, "ema", ema, "a decay in [0, 1); 0 turns it off")
    check(schedule in SCHEDULES, "schedule", schedule, f"must be one of {', '.join(SCHEDULES)}")
    device = next(model.parameters()).device
    # accelerate keeps a process's first precision and device; the next run may want others
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision=precision_of(device) if precision is None else precision, cpu=device.type != "cuda",
        device_placement=False, log_with=list(trackers) or None, project_dir=folder,
    )  # fmt: skip
    if trackers:
        accelerator.init_trackers("training")
    averaged = EMA(model, ema) if ema else None  # of the student itself, before anything wraps it
    fused = all(p.is_floating_point() for p in model.parameters())
    bare = torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    groups = list(model) if isinstance(model, nn.ModuleList) else [model]

    learnt = model, bare, averaged, accelerator.scaler  # what a checkpoint holds
    checkpoints = CheckpointFolder(folder / "checkpoint" if folder else None, keep)
    start, log_bytes, state = checkpoints.load() or (0, 0, None)
    if state is not None:
        restore(state, *learnt)
    del state  # a second copy of it all
    log_path = folder / "log.jsonl" if folder is not None and accelerator.is_main_process else None
    rows = _logged(log_path, log_bytes) if log_path and log_bytes else []

    wrapped, optimizer = accelerator.prepare(model, bare)
    failed = torch.full((), -1, device=device)  # the first step whose loss was not finite: no one waits

    def stop_if_failed() -> None:
        if (step := int(failed)) >= 0:
            last = checkpoints.newest.name if checkpoints.newest else "none"
            raise UserError(f"loss={value.item()} at step {step}: must be finite; last good checkpoint: {last}")

    model.train()
    shown = bool(describe) and accelerator.is_main_process
    bar = tqdm(total=steps, initial=start, desc=describe, mininterval=1, disable=not shown)
    with _log(log_path, log_bytes) as write, stop_put_off() as stop_asked:
        clock, saved, images = time.perf_counter(), time.perf_counter(), 0
        for step in range(start, steps):
            done, norms = step + 1, {}
            progress = (step - warmup) / max(1, steps - warmup)
            factor = done / warmup if step < warmup else SCHEDULES[schedule](progress)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            for micro in range(accumulate):
                last = micro == accumulate - 1
                generator = step_generator(seed, step * accumulate + micro)
                data = _share(batch(step * accumulate + micro, generator), accelerator, device)
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped), accelerator.autocast():
                    value, terms = loss(wrapped, data, generator)
                    if last and norms_every and done % norms_every == 0:
                        norms = _gradient_norms(terms, model)
                    accelerator.backward(value / accumulate)
                images += _size(data) * accelerator.num_processes
                failed = torch.where((failed < 0) & ~value.detach().isfinite(), done, failed)
            if clip:
                for group in groups:
                    accelerator.clip_grad_norm_(group.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if averaged is not None:
                averaged.update(step)
            if done % log_every == 0 or done == steps or norms:
                stop_if_failed()
                row = {"step": done, "loss": value.item()} | {k: v.item() for k, v in (*terms.items(), *norms.items())}
                speed = f"{images / (time.perf_counter() - clock):.0f}"
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "step"} | {"img/s": speed})
                clock, images = time.perf_counter(), 0
                rows.append(row)
                log_bytes = write(row)
                accelerator.log({k: v for k, v in row.items() if k != "step"}, step=done)
            bar.update()
            due = checkpoint_every > 0 and done % checkpoint_every == 0
            due = due or (checkpoint_minutes > 0 and time.perf_counter() - saved > 60 * checkpoint_minutes)
            stop = stop_asked()  # by a signal: the step is over, and a checkpoint keeps it
            due = due or (stop is not None and accelerator.num_processes == 1)
            if due and checkpoints.folder and accelerator.is_main_process:
                stop_if_failed()
                checkpoints.save(done, training_state(*learnt), log_bytes)
                saved = time.perf_counter()
            if stop is not None:
                raise Stopped(stop)
            if watch is not None and watch_every and done % watch_every == 0 and accelerator.is_main_process:
                model.eval()
                watch(done)
                model.train()
    bar.close()
    if trackers:
        accelerator.end_training()
    if averaged is not None:
        averaged.copy_to_module()
    model.eval()
    return rows


def _gradient_norms(terms: Terms, model: nn.Module) -> dict[str, Tensor]:
    """Measure each term's gradient for the parameters of `model`: `<term>.gradient`, its norm, unweighted."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        if term.requires_grad:
            found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norms[f"{name}.gradient"] = nn.utils.get_total_norm([g for g in found if g is not None])
    return norms


def _share(data: Any, accelerator: Accelerator, device: torch.device) -> Any:
    """Take this process's rows of a batch (a tensor, a mapping, anything that takes a slice) to `device`."""
    if (world := accelerator.num_processes) > 1:
        size = _size(data)
        check(size % world == 0, "batch", size, f"must be a multiple of the number of processes, {world}")
        rows = slice(accelerator.process_index * size // world, (accelerator.process_index + 1) * size // world)
        data = {k: v[rows] for k, v in data.items()} if isinstance(data, Mapping) else data[rows]
    return send_to_device(data, device, non_blocking=True)


def _size(data: Any) -> int:
    """Count the samples in a batch: its length, or that of a mapping's first value."""
    return len(next(iter(data.values()))) if isinstance(data, Mapping) else len(data)
