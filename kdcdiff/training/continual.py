"""Class-by-class training: new classes arrive one after another, and the question is what becomes of the old ones.

A method says where a batch's old rows come from (`Method.recall`), whether the previous model speaks for them
(`Method.keep`), and how firmly the weights are held (`Method.anchor`). All share one loop and one compute budget: the
batch size is fixed, old rows take the place of new ones. What is measured is the matrix R[i, j]: the score on class j
after stage i.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcdiff.data.latents import DenoisingBatch, LatentSet, Origin, add_noise, denoising_batch, draw_rows
from kdcdiff.errors import check
from kdcdiff.training.loop import fit, step_generator
from kdcdiff.training.losses import denoising_loss
from kdcdiff.training.replay import LatentReplayBuffer

AfterStage = Callable[[int, UNet2DConditionModel], None]
Encoder = Callable[[Tensor], Tensor]  # pixels (n, 3, H, W) uint8 -> the means of their latents
Objective = Callable[[Tensor, DenoisingBatch], Tensor]  # (the network's output, the batch) -> a scalar
Dreamer = Callable[[UNet2DConditionModel, Sequence[str], int], LatentSet]  # so many self-made latents of each class


@dataclass(frozen=True)
class Method:
    """What holds on to the old classes while a new one is learnt.

    `recall` is where a batch's old rows come from: ``latents`` (their means) or ``pixels`` of the memory, ``dreams`` of
    the previous model, or the current class ``relabelled`` as old ones. With `keep`, their target is the previous
    model's output (Li & Hoiem 2017). `anchor` weighs the distance to the previous weights by their Fisher information
    (Kirkpatrick et al. 2017). `joint` trains on every class in one stage.
    """

    recall: str = ""
    keep: bool = False
    anchor: float = 0.0
    joint: bool = False


METHODS = {
    "naive": Method(),  # the paper's KDC-Diff-CL
    "latent-replay": Method(recall="latents"),  # the paper's
    "latent-replay-distilled": Method(recall="latents", keep=True),
    "pixel-replay": Method(recall="pixels"),  # what latent replay replaces
    "generative-replay": Method(recall="dreams"),  # Shin et al. 2017
    "lwf": Method(recall="relabelled", keep=True),
    "ewc": Method(anchor=300.0),
    "joint": Method(joint=True),  # the ceiling
}


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
    ema: float = 0.0,  # decay of the average of a stage's weights, with which the stage ends; 0: none
    capacity: int = 0,  # latents in the memory, all classes together; or pictures, for ``pixels``
    policy: str = "reservoir",
    codec: str = "fp16",
    share: float | None = None,  # of a batch that is old; None: as if new and old were concatenated
    dropout: float = 0.1,
    seed: int = 0,
    folder: Path,  # finished stages and snapshots; a killed run goes on from them
    origin: Origin | None = None,  # of the latents
    pixels: Tensor | None = None,  # (N, 3, H, W) uint8, the pictures behind `latents`, and
    encoder: Encoder | None = None,  # what encodes them: for ``pixels``
    dreamer: Dreamer | None = None,  # for ``dreams``
    objective: Objective = lambda prediction, data: denoising_loss(prediction, data.target),  # what a batch costs
    after_stage: AfterStage = lambda stage, unet: None,
) -> int:
    """Train class by class and call `after_stage(stage, unet)` after each; return the memory's size in bytes.

    `after_stage` must be a pure function of the network, for it is called again when a killed run goes on.
    """
    check(method in METHODS, "method", method, f"must be one of {', '.join(METHODS)}")
    check(len(set(order)) == len(order) > 0, "classes", list(order), "must be at least one class, each once")
    check(share is None or 0 < share < 1, "share", share, "must lie between 0 and 1")
    kind = METHODS[method]
    check(
        kind.recall != "pixels" or (pixels is not None and encoder is not None), "pixels", None, f"{method} needs them"
    )
    check(kind.recall != "dreams" or dreamer is not None, "dreamer", None, f"{method} needs one")
    unet.to(memory_format=torch.channels_last)
    stored = kind.recall in ("latents", "pixels")
    kept = "raw" if kind.recall == "pixels" else codec
    memory = LatentReplayBuffer(max(capacity, len(order)), policy=policy, seed=seed, codec=kept)
    empty = latents.prompts[0]  # of the empty caption, which dropout takes
    for stage, names in enumerate([tuple(order)] if kind.joint else [(name,) for name in order]):
        current = latents.of_classes(names)
        check(len(current) > 0, "class", names[0], "has no training latents")
        asked = stage and (kind.keep or kind.recall == "dreams")
        previous = copy.deepcopy(unet).eval().requires_grad_(False) if asked else None
        finished = folder / f"stage-{stage:02d}.safetensors"
        if finished.is_file():
            unet.load_state_dict(load_file(finished))
        else:
            recall = _recall(kind.recall, memory, current, latents, order[:stage], previous, encoder, dreamer, capacity)
            part = replay_share(len(current), len(memory) or capacity) if share is None else share
            old = min(batch - 1, max(1, round(batch * part))) if stage and recall else 0

            def batch_of(
                step: int, generator: torch.Generator, current: LatentSet = current, recall: Recall | None = recall,
                old: int = old, stage: int = stage,
            ) -> DenoisingBatch:  # fmt: skip
                rows = draw_rows(batch - old, len(current), generator)
                clean, prompts = current.sample(rows, generator), current.prompts[current.captions[rows]]
                if recall and old:
                    more, theirs = recall(old, stage * steps + step, generator)
                    clean, prompts = torch.cat([clean, more]), torch.cat([prompts, theirs])
                keep = torch.rand(batch, generator=generator) >= dropout
                return add_noise(clean, torch.where(keep[:, None, None], prompts, empty), scheduler, generator)

            anchor = (
                _Anchor(unet, latents.of_classes(order[stage - 1 : stage]), scheduler, seed)
                if kind.anchor and stage
                else None
            )

            def loss(
                model: nn.Module, data: DenoisingBatch, generator: torch.Generator, old: int = old,
                previous: UNet2DConditionModel | None = previous, anchor: _Anchor | None = anchor,
            ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
                if kind.keep and previous is not None and old:
                    with torch.no_grad():
                        spoken = previous(
                            data.noisy[-old:], data.timestep[-old:], data.prompt[-old:], return_dict=False
                        )[0]
                    data = replace(data, target=torch.cat([data.target[:-old], spoken]))
                value = objective(model(data.noisy, data.timestep, data.prompt, return_dict=False)[0], data)
                return value + (kind.anchor * anchor.distance() if anchor else 0.0), {"objective": value}

            total = steps * len(order) if kind.joint else steps
            fit(
                unet, loss, batch_of, steps=total, lr=lr, ema=ema, warmup=min(20, total),
                schedule="cosine" if kind.joint else "constant",
                seed=seed * 1009 + stage,
                folder=folder / f"stage-{stage:02d}", checkpoint_every=200,
                describe=f"{method}: {names[0] if len(names) == 1 else 'all classes'}",
            )  # fmt: skip
            partial = finished.with_suffix(".partial")
            save_file({k: v.contiguous() for k, v in unet.state_dict().items()}, partial)
            partial.rename(finished)
        if stored:
            texts = [latents.texts[i] for i in current.captions.tolist()]
            prompts = {latents.texts[i]: latents.prompts[i] for i in current.captions.unique().tolist()}
            rows = torch.isin(latents.labels, torch.tensor([latents.classes.index(names[0])])).nonzero()[:, 0]
            what = pixels[rows] if kind.recall == "pixels" and pixels is not None else current.mean
            memory.add_class(names[0], what, texts, prompts, origin)
        after_stage(stage, unet)
    return memory.nbytes


# --- where old rows come from --------------------------------------------------------------------------------

Recall = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]  # (n, step, generator) -> clean, prompts


def _recall(
    kind: str,
    memory: LatentReplayBuffer,
    current: LatentSet,
    latents: LatentSet,
    seen: Sequence[str],
    previous: UNet2DConditionModel | None,
    encoder: Encoder | None,
    dreamer: Dreamer | None,
    capacity: int,
) -> Recall | None:
    """What `Method.recall` names, once there is something to recall."""
    if not kind or not seen:
        return None

    def from_memory(n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        old = memory.sample(n, step=step)
        assert old.prompts is not None
        clean = encoder(old.latents) if kind == "pixels" and encoder else old.latents
        return clean, old.prompts

    if kind in ("latents", "pixels"):
        return from_memory
    own = latents.of_classes(seen)
    if kind == "dreams":
        assert dreamer is not None and previous is not None
        own = dreamer(previous, seen, max(1, capacity // len(seen)))

    def from_set(n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = draw_rows(n, len(own), generator)
        prompts = own.prompts[own.captions[rows]]
        if kind == "dreams":
            return own.sample(rows, generator), prompts
        return current.sample(draw_rows(n, len(current), generator), generator), prompts  # relabelled: captions only

    return from_set


class _Anchor:
    """The distance of the weights to where they were, by the Fisher information that they had there.

    A diagonal estimate: squared gradients of the denoising loss on the class just learnt, scaled to a mean of one.
    """

    def __init__(
        self, unet: UNet2DConditionModel, latents: LatentSet, scheduler: DDIMScheduler, seed: int, batches: int = 16
    ) -> None:
        self.live = [p for p in unet.parameters() if p.requires_grad]
        self.centre = [p.detach().clone() for p in self.live]
        self.weight = [torch.zeros_like(p) for p in self.live]
        for k in range(batches):
            generator = step_generator(seed, k)
            data = denoising_batch(latents, draw_rows(8, len(latents), generator), scheduler, generator)
            error = denoising_loss(unet(data.noisy, data.timestep, data.prompt, return_dict=False)[0], data.target)
            for total, gradient in zip(self.weight, torch.autograd.grad(error, self.live), strict=True):
                total += gradient.square()
        mean = sum(float(w.sum()) for w in self.weight) / sum(w.numel() for w in self.weight)
        self.weight = [w / max(mean, 1e-20) for w in self.weight]

    def distance(self) -> Tensor:
        """A scalar: the weighted mean of the squared change of a weight."""
        parts = [(w * (p - c).square()).sum() for w, p, c in zip(self.weight, self.live, self.centre, strict=True)]
        return torch.stack(parts).sum() / sum(c.numel() for c in self.centre)
