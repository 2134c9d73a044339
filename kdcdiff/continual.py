"""Class-by-class training, with and without latent replay, and the measures of forgetting.

One class after the other (`learn`); what distinguishes the methods is which rows a stage may train on:

    naive          the current class alone
    latent-replay  the current class and the memory, concatenated: equation (5) of KDC-Diff; the memory then takes a
                   sample of the class, equation (4)
    joint          every class at once, at the same total compute: the ceiling

Measures follow the matrix R of shape (stages, classes): R[i, j] is the score on class j after stage i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcdiff.errors import check
from kdcdiff.latents import LatentSet, Noised, draw_rows, noised
from kdcdiff.replay import LatentReplayBuffer
from kdcdiff.training import fit

AfterStage = Callable[[int, UNet2DConditionModel], None]


@dataclass(frozen=True)
class Method:
    """What a stage trains on besides its class."""

    replay: bool = False  # the memory of earlier classes
    joint: bool = False  # every class, in one stage


METHODS = {"naive": Method(), "latent-replay": Method(replay=True), "joint": Method(joint=True)}


def replay_share(current: int, memory: int) -> float:
    """The share of a batch that comes from the memory when both are concatenated, equation (5)."""
    return memory / (current + memory) if memory else 0.0


def learn(
    unet: UNet2DConditionModel,  # trained in place
    latents: LatentSet,
    order: Sequence[str],  # the classes, in the order they arrive
    scheduler: DDIMScheduler,
    method: str,
    *,
    steps: int,  # optimizer steps per class; joint takes them all in one stage
    batch: int = 32,
    lr: float = 5e-4,
    capacity: int = 0,  # latents in the memory, all classes together
    policy: str = "reservoir",
    dropout: float = 0.1,
    seed: int = 0,
    folder: Path,  # finished stages and checkpoints; a killed run goes on from them
    after_stage: AfterStage = lambda stage, unet: None,
) -> int:
    """Train class by class and call `after_stage(stage, unet)` after each; return the memory's size in bytes.

    `after_stage` must be a pure function of the network, for it is called again when a killed run goes on.
    """
    check(method in METHODS, "method", method, f"must be one of {', '.join(METHODS)}")
    check(len(set(order)) == len(order) > 0, "classes", list(order), "must be at least one class, each once")
    kind = METHODS[method]
    unet.to(memory_format=torch.channels_last)
    memory = LatentReplayBuffer(max(capacity, len(order)), policy=policy, seed=seed)
    place = {text: i for i, text in enumerate(latents.texts)}
    turns = [tuple(order)] if kind.joint else [(name,) for name in order]
    channels = latents.mean.shape[1]
    for stage, names in enumerate(turns):
        current = latents.of_classes(names)
        check(len(current) > 0, "class", names[0], "has no training latents")
        replayed = round(batch * replay_share(len(current), len(memory))) if kind.replay else 0

        def batch_of(
            step: int,
            generator: torch.Generator,
            current: LatentSet = current,
            replayed: int = replayed,
            stage: int = stage,
        ) -> Noised:
            rows = draw_rows(batch - replayed, len(current), generator)
            clean, captions = current.sample(rows, generator), current.captions[rows]
            if replayed:
                old = memory.sample(replayed, step=stage * steps + step)
                stored = old.latents.float()  # mean and standard deviation, concatenated on channels
                fresh = torch.randn(replayed, channels, *stored.shape[2:], generator=generator)
                clean = torch.cat([clean, stored[:, :channels] + stored[:, channels:] * fresh])
                captions = torch.cat([captions, torch.tensor([place[c] for c in old.captions])])
            keep = torch.rand(batch, generator=generator) >= dropout
            return noised(clean, latents.prompts[captions * keep], scheduler, generator)

        finished = folder / f"stage-{stage:02d}.safetensors"
        if finished.is_file():
            unet.load_state_dict(load_file(finished))
        else:
            total = steps * len(order) if kind.joint else steps
            fit(
                unet,
                _denoise,
                batch_of,
                steps=total,
                lr=lr,
                warmup=min(20, total),
                schedule="cosine" if kind.joint else "constant",
                seed=seed * 1009 + stage,
                folder=folder / f"stage-{stage:02d}",
                checkpoint_every=200,
                describe=f"{method}: {names[0] if len(names) == 1 else 'all classes'}",
            )
            partial = finished.with_suffix(".partial")
            save_file({k: v.contiguous() for k, v in unet.state_dict().items()}, partial)
            partial.rename(finished)
        if kind.replay:
            texts = [latents.texts[i] for i in current.captions.tolist()]
            memory.add_class(names[0], torch.cat([current.mean, current.std], 1), texts)
        after_stage(stage, unet)
    return memory.nbytes if kind.replay else 0


def _denoise(model: nn.Module, data: Noised, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    return F.mse_loss(model(data.noisy, data.timestep, data.prompt, return_dict=False)[0], data.target), {}


# --- measures ------------------------------------------------------------------------------------------------
# R is (stages, classes) with R[i, j] the score on class j after stage i; higher is better; only j <= i is read.


def average_accuracy(R: np.ndarray) -> float:
    """ACC: the mean over all classes of the score after the last stage (Lopez-Paz & Ranzato 2017)."""
    return float(np.mean(R[-1]))


def backward_transfer(R: np.ndarray) -> float:
    """BWT: the mean over j < T of R[T, j] - R[j, j]; negative when later classes hurt (Lopez-Paz & Ranzato 2017)."""
    last = len(R) - 1
    return float(np.mean([R[last, j] - R[j, j] for j in range(last)]))


def forgetting(R: np.ndarray) -> float:
    """The mean over j < T of max over i < T of R[i, j], minus R[T, j] (Chaudhry et al. 2018)."""
    last = len(R) - 1
    return float(np.mean([np.max(R[j:last, j]) - R[last, j] for j in range(last)]))


def interval(
    R: np.ndarray, shots: int, measure: Callable[[np.ndarray], float], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of `measure(R)`, whose entries are shares of `shots` pictures each.

    Each entry is drawn from its posterior under Jeffreys' prior, Beta(hits + 1/2, misses + 1/2). It covers which
    pictures were drawn from a trained model, not which model another seed would have given.
    """
    rng, hits = np.random.default_rng(seed), np.nan_to_num(R) * shots
    values = [measure(rng.beta(hits + 0.5, shots - hits + 0.5)) for _ in range(draws)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
