"""DreamBooth (Ruiz et al. 2023): a pipeline learns one subject from a few pictures, under a word that meant nothing.

What the pipeline made of the subject's class before, it goes on learning beside the subject: without that, every flower
becomes this flower. Only the U-Net learns, whole or by LoRA (Hu et al. 2021); the loop is `loop.fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.data.image_set import caption_of
from kdcdiff.data.latents import DenoisingBatch, LatentSet, denoising_batch, draw_rows
from kdcdiff.errors import check
from kdcdiff.training.loop import fit
from kdcdiff.training.losses import denoising_loss

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention, as diffusers' own script


@dataclass(frozen=True)
class Subject:
    """A rare `token` that is to name the subject, and the `noun` of its class."""

    token: str
    noun: str

    @property
    def caption(self) -> str:
        """Caption a picture of the subject: ``a photo of a sks flower``."""
        return caption_of(f"{self.token} {self.noun}")

    @property
    def prior(self) -> str:
        """Caption a picture of its class: ``a photo of a flower``."""
        return caption_of(self.noun)


def learn_subject(
    unet: UNet2DConditionModel,  # trained in place
    subject: LatentSet,  # a few pictures under the subject's caption
    prior: LatentSet,  # what the pipeline drew of the class before, under the class's caption
    scheduler: DDIMScheduler,
    *,
    steps: int,
    batch: int = 2,  # latents of the subject in a step, and as many of the prior
    lr: float = 5e-6,
    prior_weight: float = 1.0,  # lambda of equation (2)
    seed: int = 0,
    folder: Path,  # checkpoints; a killed run goes on from them
    describe: str = "personalizing",
) -> list[dict[str, float]]:
    """Train `unet` by equation (2) of Ruiz et al., and return the log: step, loss, and both of its terms.

    Subject and prior alternate in a batch, so that processes that share it have some of each. UserError: no latents.
    """
    for name, latents in (("subject", subject), ("prior", prior)):
        check(len(latents) > 0, name, 0, "must be at least one picture")

    def batch_of(step: int, generator: torch.Generator) -> DenoisingBatch:
        halves = [
            denoising_batch(own, draw_rows(batch, len(own), generator), scheduler, generator, dropout=0.0)
            for own in (subject, prior)
        ]
        columns = zip(*(half.tensors() for half in halves), strict=True)
        return DenoisingBatch(*(torch.stack(pair, 1).flatten(0, 1) for pair in columns))

    def loss(model: nn.Module, data: DenoisingBatch, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        made = model(data.noisy, data.timestep, data.prompt, return_dict=False)[0]
        terms = {
            "subject": denoising_loss(made[0::2], data.target[0::2]),
            "prior": denoising_loss(made[1::2], data.target[1::2]),
        }
        return terms["subject"] + prior_weight * terms["prior"], terms

    return fit(
        unet, loss, batch_of, steps=steps, lr=lr, schedule="constant", seed=seed, folder=folder, checkpoint_every=100,
        describe=describe,
    )  # fmt: skip


# --- LoRA ----------------------------------------------------------------------------------------------------


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Freeze `unet` and put an adapter of this rank beside every attention's projections, by peft; it alone learns."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS))


def take_lora(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the adapter's weights, as diffusers names them, and add them to `unet`'s own, which is plain again."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    kept = {name: value.detach().clone() for name, value in weights.items()}
    unet.fuse_lora()
    unet.unload_lora()
    return kept
