"""Class-by-class training: new classes arrive one after another, and the question is what becomes of the old ones.

A method says where a batch's old rows come from (`Method.replay`), whether the previous model speaks for them
(`Method.distill_previous`), and how firmly the weights are held (`Method.ewc_weight`). All share one loop and one
compute budget: the batch size is fixed, old rows take the place of new ones. What is measured is the matrix R[i, j]:
the score on class j after stage i.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.data.latents import DenoisingBatch, LatentSet, add_noise, denoising_batch, draw_rows
from kdcdiff.data.origin import Origin
from kdcdiff.errors import check
from kdcdiff.training.checkpoint import load_whole, save_whole
from kdcdiff.training.loop import Batch, Loss, fit, step_generator
from kdcdiff.training.losses import denoising_loss
from kdcdiff.training.replay import LatentReplayBuffer

AfterStage = Callable[[int, UNet2DConditionModel], None]
Encoder = Callable[[Tensor], Tensor]  # pixels (n, 3, H, W) uint8 -> the means of their latents
Objective = Callable[[Tensor, DenoisingBatch], Tensor]  # (the network's output, the batch) -> a scalar
Generate = Callable[[UNet2DConditionModel, Sequence[str], int], LatentSet]  # so many latents of each class, made by it


@dataclass(frozen=True)
class Method:
    """What holds on to the old classes while a new one is learnt.

    `replay` is where a batch's old rows come from, one of `SOURCES`: ``latents`` (their means) or ``pixels`` of the
    memory, latents ``generated`` by the previous model, or the current class ``relabelled`` as old ones. With
    `distill_previous`, their target is the previous model's output (Li & Hoiem 2017). `ewc_weight` weighs the distance
    to the previous weights by their Fisher information (Kirkpatrick et al. 2017). `joint` trains on every class in one
    stage. `codec` is what a memory of pictures is written in; latents are written as the caller says.
    """

    replay: str = ""
    codec: str = ""
    distill_previous: bool = False
    ewc_weight: float = 0.0
    joint: bool = False


METHODS = {
    "naive": Method(),  # the paper's KDC-Diff-CL
    "latent-replay": Method("latents"),  # the paper's
    "latent-replay-distilled": Method("latents", distill_previous=True),
    "pixel-replay": Method("pixels", codec="raw"),  # what latent replay replaces
    "jpeg-replay": Method("pixels", codec="jpeg"),  # as anyone keeps pictures
    "generative-replay": Method("generated"),  # Shin et al. 2017
    "lwf": Method("relabelled", distill_previous=True),
    "ewc": Method(ewc_weight=300.0),
    "joint": Method(joint=True),  # the ceiling
}


def learn(
    unet: UNet2DConditionModel,  # trained in place
    latents: LatentSet,
    order: Sequence[str],  # the classes, in the order they arrive
    scheduler: DDIMScheduler,
    method: str,
    *,
    base: Sequence[str] = (),  # classes that the network knows before: old from the first stage on
    steps: int,  # optimizer steps per class; joint takes them all in one stage
    batch: int = 32,
    lr: float = 5e-4,
    ema: float = 0.0,  # decay of the average of a stage's weights, with which the stage ends; 0: none
    capacity: int = 0,  # latents in the memory, all classes together; or pictures, for ``pixels``
    policy: str = "reservoir",
    codec: str = "fp16",  # of latents
    share: float | None = None,  # of a batch that is old; None: as if new and old were concatenated
    dropout: float = 0.1,  # of captions
    seed: int = 0,
    folder: Path,  # finished stages and checkpoints; a killed run goes on from them
    origin: Origin | None = None,  # of the latents
    pixels: Tensor | None = None,  # (N, 3, H, W) uint8, the pictures behind `latents`, and
    encoder: Encoder | None = None,  # what encodes them: for ``pixels``
    generate: Generate | None = None,  # for ``generated``
    objective: Objective = lambda prediction, data: denoising_loss(prediction, data.target),  # what a batch costs
    after_stage: AfterStage = lambda stage, unet: None,
) -> int:
    """Train class by class and call `after_stage(stage, unet)` after each; return the memory's size in bytes.

    `after_stage` must be a pure function of the network, for it is called again when a killed run goes on. Raises
    `UserError` on an unknown method or class, a class without latents, and where a method lacks what it needs.
    """
    check(method in METHODS, "method", method, f"must be one of {', '.join(METHODS)}")
    check(len(set(order)) == len(order) > 0, "classes", list(order), "must be at least one class, each once")
    both = sorted(set(base) & set(order))
    check(not both, "classes", both, "are known already, and cannot be learnt as new")
    check(share is None or 0 < share < 1, "share", share, "must lie between 0 and 1")
    kind = METHODS[method]
    needs: dict[str, dict[str, object]] = {
        "pixels": {"pixels": pixels, "encoder": encoder},
        "generated": {"generate": generate},
    }
    for name, given in needs.get(kind.replay, {}).items():
        check(given is not None, name, None, f"{method} needs it")

    unet.to(memory_format=torch.channels_last)
    memory = LatentReplayBuffer(max(capacity, len(base) + len(order)), policy, seed, codec=kind.codec or codec)

    def remember(name: str) -> None:
        own = latents.of_classes([name])
        check(len(own) > 0, "class", name, "has no training latents")
        kept = own.mean
        if kind.replay == "pixels" and pixels is not None:
            kept = pixels[latents.labels == latents.classes.index(name)]
        texts = [latents.texts[i] for i in own.captions.tolist()]
        prompts = {latents.texts[i]: latents.prompts[i] for i in own.captions.unique().tolist()}
        memory.add_class(name, kept, texts, prompts, origin)

    remembers = kind.replay in ("latents", "pixels")
    for name in base if remembers else ():
        remember(name)
    total = steps * len(order) if kind.joint else steps
    for stage, names in enumerate([(*base, *order)] if kind.joint else [(name,) for name in order]):
        current, seen = latents.of_classes(names), (*base, *order[:stage])
        check(len(current) > 0, "class", names[0], "has no training latents")
        finished = folder / f"stage-{stage:02d}.safetensors"
        if finished.is_file() and (whole := load_whole(finished)) is not None:
            unet.load_state_dict(whole[1])
        else:
            asked = seen and (kind.distill_previous or kind.replay == "generated")
            previous = copy.deepcopy(unet).eval().requires_grad_(False) if asked else None
            what = Known(latents, current, seen, memory, capacity, previous, encoder, generate)
            replay = SOURCES[kind.replay](what) if kind.replay and seen else None
            part = replay_share(len(current), len(memory) or capacity) if share is None else share
            old = min(batch - 1, max(1, round(batch * part))) if replay else 0
            before = latents.of_classes(seen[-1:] if stage else seen)  # what the network was trained on last
            ewc = EWC(unet, before, scheduler, seed) if kind.ewc_weight and seen else None
            fit(
                unet,
                _loss(objective, old, previous if kind.distill_previous else None, ewc, kind.ewc_weight),
                _batches(current, batch - old, replay, old, stage * steps, scheduler, dropout),
                steps=total, lr=lr, ema=ema, warmup=min(20, total), schedule="cosine" if kind.joint else "constant",
                seed=seed * 1009 + stage, folder=folder / finished.stem, checkpoint_every=200,
                describe=f"{method}: {names[0] if len(names) == 1 else 'all classes'}",
            )  # fmt: skip
            save_whole(unet.state_dict(), finished, {"stage": str(stage)})
        if remembers:
            remember(names[0])
        after_stage(stage, unet)
    return memory.nbytes


# --- a stage's batches and what they cost --------------------------------------------------------------------


def replay_share(current: int, memory: int) -> float:
    """Return the share of a batch that comes from the memory when both are concatenated, equation (5)."""
    return memory / (current + memory) if memory else 0.0


def _batches(
    current: LatentSet,
    new: int,
    replay: Replay | None,
    old: int,
    first: int,  # the number of the stage's first step, for the memory
    scheduler: DDIMScheduler,
    dropout: float,
) -> Batch:
    """Draw `new` rows of the current class and after them `old` ones from `replay`, noised; captions are dropped."""

    def batch_of(step: int, generator: torch.Generator) -> DenoisingBatch:
        rows = draw_rows(new, len(current), generator)
        clean, prompts = current.sample(rows, generator), current.prompts[current.captions[rows]]
        if replay and old:
            more, theirs = replay(old, first + step, generator)
            clean, prompts = torch.cat([clean, more]), torch.cat([prompts, theirs])
        keep = torch.rand(len(clean), generator=generator) >= dropout
        empty = current.prompts[0]  # the empty caption's
        return add_noise(clean, torch.where(keep[:, None, None], prompts, empty), scheduler, generator)

    return batch_of


def _loss(
    objective: Objective, old: int, previous: UNet2DConditionModel | None, ewc: EWC | None, ewc_weight: float
) -> Loss:
    """Ask for a batch's objective, its last `old` rows with the output of `previous` for target, and for `ewc`."""

    def loss(model: nn.Module, data: DenoisingBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if previous is not None and old:
            with torch.no_grad():
                said = previous(data.noisy[-old:], data.timestep[-old:], data.prompt[-old:], return_dict=False)[0]
            data = replace(data, target=torch.cat([data.target[:-old], said]))
        value = objective(model(data.noisy, data.timestep, data.prompt, return_dict=False)[0], data)
        return value + ewc_weight * ewc.distance() if ewc else value, {"objective": value}

    return loss


class EWC:
    """The distance of the weights to where they were, by the Fisher information that they had there.

    Elastic weight consolidation (Kirkpatrick et al. 2017, equation 3). A diagonal estimate: squared gradients of the
    denoising loss on the class just learnt, `latents`, over 16 batches of 8, scaled to a mean of one.
    """

    def __init__(self, unet: UNet2DConditionModel, latents: LatentSet, scheduler: DDIMScheduler, seed: int) -> None:
        self.live = [p for p in unet.parameters() if p.requires_grad]
        self.centre = [p.detach().clone() for p in self.live]
        self.fisher = [torch.zeros_like(p) for p in self.live]
        for step in range(16):
            generator = step_generator(seed, step)
            rows = draw_rows(8, len(latents), generator)
            data = denoising_batch(latents, rows, scheduler, generator).to(unet.device)
            error = denoising_loss(unet(data.noisy, data.timestep, data.prompt, return_dict=False)[0], data.target)
            for total, gradient in zip(self.fisher, torch.autograd.grad(error, self.live), strict=True):
                total += gradient.square()
        mean = sum(float(f.sum()) for f in self.fisher) / sum(f.numel() for f in self.fisher)
        self.fisher = [f / max(mean, 1e-20) for f in self.fisher]

    def distance(self) -> Tensor:
        """Return the weighted mean of the squared change of a weight, a scalar."""
        parts = [(f * (p - c).square()).sum() for f, p, c in zip(self.fisher, self.live, self.centre, strict=True)]
        return torch.stack(parts).sum() / sum(c.numel() for c in self.centre)


# --- where old rows come from --------------------------------------------------------------------------------

Replay = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""(n, step, generator) -> the clean latents (n, C, h, w) and the prompts (n, tokens, width) of n old rows."""


class Known(NamedTuple):
    """What a source of old rows can draw on when a stage begins."""

    latents: LatentSet  # of all classes
    current: LatentSet  # of the class to learn
    seen: Sequence[str]  # the classes before it
    memory: LatentReplayBuffer
    capacity: int
    previous: UNet2DConditionModel | None  # the network as the stage before left it
    encoder: Encoder | None
    generate: Generate | None


def _from_memory(known: Known, encoder: Encoder | None = None) -> Replay:
    """Replay what the memory holds, equation (4): latents, or pictures that `encoder` encodes anew each time."""

    def rows(n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kept = known.memory.sample(n, step=step)
        assert kept.prompts is not None
        return encoder(kept.latents) if encoder else kept.latents, kept.prompts

    return rows


def _from_previous(known: Known) -> Replay:
    """Replay what the previous model makes of the old classes, as much as the memory would hold (Shin et al. 2017)."""
    assert known.generate is not None and known.previous is not None
    made = known.generate(known.previous, known.seen, max(1, known.capacity // len(known.seen)))

    def rows(n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = draw_rows(n, len(made), generator)
        return made.sample(drawn, generator), made.prompts[made.captions[drawn]]

    return rows


def _from_current(known: Known) -> Replay:
    """Replay the current class under the captions of old ones (Li & Hoiem 2017)."""
    old, current = known.latents.of_classes(known.seen), known.current

    def rows(n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        captions = old.captions[draw_rows(n, len(old), generator)]
        return current.sample(draw_rows(n, len(current), generator), generator), old.prompts[captions]

    return rows


SOURCES: dict[str, Callable[[Known], Replay]] = {
    "latents": _from_memory,
    "pixels": lambda known: _from_memory(known, known.encoder),
    "generated": _from_previous,
    "relabelled": _from_current,
}
