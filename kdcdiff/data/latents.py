"""The latents cache: pictures and captions as a denoiser reads them, encoded once.

The autoencoder's mean and standard deviation are kept and sampled anew at every step, so training on the cache is
training on the pictures: the step touches neither the autoencoder nor the text encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kdcdiff.data.image_set import ImageSet
from kdcdiff.errors import check
from kdcdiff.models.pipeline import tokenize


def to_signed(images: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) from uint8 to [-1, 1], in channels-last memory: the layout that convolutions like best."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def draw_rows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`count` row numbers below `size`, with replacement, (count,)."""
    return torch.randint(size, (count,), generator=generator)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Scaled latents of `images` (N, 3, H, W) uint8 as mean and standard deviation, each (N, C, H/8, W/8)."""
    posteriors = [vae.encode(to_signed(part).to(vae.device, vae.dtype)).latent_dist for part in images.split(batch)]
    scale = vae.config.scaling_factor
    return torch.cat([p.mean for p in posteriors]).contiguous() * scale, torch.cat(
        [p.std for p in posteriors]
    ).contiguous() * scale


def origin_of(vae: AutoencoderKL) -> Origin:
    """What makes this autoencoder's latents its own: a checksum of its weights, and its scaling factor."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.float().contiguous().cpu().numpy().tobytes())
    return Origin(digest.hexdigest()[:16], vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> Tensor:
    """Images (N, 3, H, W) uint8 of scaled `latents` (N, C, h, w)."""
    scale = vae.config.scaling_factor
    parts = [vae.decode(part.to(vae.device, vae.dtype) / scale).sample for part in latents.split(batch)]
    return ((torch.cat(parts).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()


@torch.no_grad()
def embed(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Prompt embeddings (N, tokens, width): the last hidden state, as Stable Diffusion reads it."""
    return torch.cat(
        [text_encoder(part.to(text_encoder.device))[0] for part in tokenize(tokenizer, captions).split(256)]
    )


@dataclass(frozen=True)
class LatentSet:
    """`mean`, `std` (N, C, h, w), scaled; `labels` (N,) into `classes`; `captions` (N,) rows of `prompts`
    (P, tokens, width).

    `texts` are the captions behind `prompts`; row 0 is the empty one, which caption dropout takes.
    """

    mean: Tensor
    std: Tensor
    labels: Tensor
    captions: Tensor
    prompts: Tensor
    texts: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mean)

    def of_classes(self, names: Sequence[str]) -> LatentSet:
        """The rows of these classes."""
        for name in names:
            check(name in self.classes, "class", name, f"must be one of {', '.join(self.classes)}")
        wanted = torch.tensor([self.classes.index(n) for n in names])
        rows = torch.isin(self.labels, wanted).nonzero()[:, 0]
        return replace(
            self,
            mean=self.mean[rows],
            std=self.std[rows],
            labels=self.labels[rows],
            captions=self.captions[rows],
        )

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of the latents of `rows`, (len(rows), C, h, w)."""
        return self.mean[rows] + self.std[rows] * torch.randn(len(rows), *self.mean.shape[1:], generator=generator)

    def save(self, folder: Path) -> None:
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "std", "labels", "captions", "prompts")}
        save_file(tensors, folder / "latents.safetensors")
        (folder / "latents.json").write_text(json.dumps({"classes": self.classes, "texts": self.texts}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> LatentSet:
        """Memory-mapped: rows are read from disk when they are used."""
        words = json.loads((folder / "latents.json").read_text())
        return cls(
            **load_file(folder / "latents.safetensors"),
            texts=tuple(words["texts"]),
            classes=tuple(words["classes"]),
        )


def encode_set(pipeline: StableDiffusionPipeline, images: ImageSet) -> LatentSet:
    """The latents cache of `images` for `pipeline`."""
    mean, std = encode(pipeline.vae, images.images)
    texts = ("", *sorted(set(images.captions)))
    place = {text: i for i, text in enumerate(texts)}
    captions = torch.tensor([place[c] for c in images.captions])
    return LatentSet(
        mean,
        std,
        images.labels,
        captions,
        embed(pipeline.text_encoder, pipeline.tokenizer, texts),
        texts,
        images.classes,
    )


@dataclass(frozen=True)
class DenoisingBatch:
    """A denoiser's batch: `noisy` and `target` (N, C, h, w), `timestep` (N,), `prompt` (N, tokens, width)."""

    noisy: Tensor
    target: Tensor
    timestep: Tensor
    prompt: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> DenoisingBatch:
        return DenoisingBatch(*(t.to(device, non_blocking=non_blocking) for t in self._tensors()))

    def __getitem__(self, rows: slice) -> DenoisingBatch:
        return DenoisingBatch(*(t[rows] for t in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.noisy, self.target, self.timestep, self.prompt

    def __len__(self) -> int:
        return len(self.noisy)


def add_noise(clean: Tensor, prompt: Tensor, scheduler: DDIMScheduler, generator: torch.Generator) -> DenoisingBatch:
    """Noise `clean` (N, C, h, w) to random timesteps; the target is what the scheduler's prediction type asks for."""
    noise = torch.randn(clean.shape, generator=generator)
    timestep = draw_rows(len(clean), scheduler.config.num_train_timesteps, generator)
    noisy = scheduler.add_noise(clean, noise, timestep)
    targets = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: scheduler.get_velocity(clean, noise, timestep),
        "sample": lambda: clean,
    }
    target = targets[scheduler.config.prediction_type]()
    return DenoisingBatch(noisy.contiguous(memory_format=torch.channels_last), target, timestep, prompt)


def denoising_batch(
    latents: LatentSet, rows: Tensor, scheduler: DDIMScheduler, generator: torch.Generator, dropout: float = 0.1
) -> DenoisingBatch:
    """A training batch of `rows`: fresh latents, fresh noise, captions dropped with probability `dropout`."""
    keep = torch.rand(len(rows), generator=generator) >= dropout
    return add_noise(
        latents.sample(rows, generator), latents.prompts[latents.captions[rows] * keep], scheduler, generator
    )


# --- the buffer ----------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Where latents come from: those of another autoencoder, or scaled otherwise, mean something else."""

    autoencoder: str
    scaling_factor: float
