"""The latents cache: pictures and captions as a denoiser reads them, encoded once.

The autoencoder's mean and standard deviation are kept and sampled anew at every step, so training on the cache is
training on the pictures: the step touches neither the autoencoder nor the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kdcdiff.data.image_set import ImageSet, rows_of
from kdcdiff.models.noise import noised, velocity
from kdcdiff.models.pipeline import down_sampling, tokenize
from kdcdiff.process import computing


def to_signed(images: Tensor) -> Tensor:
    """Scale pixels (N, 3, H, W) from uint8 to [-1, 1], in channels-last memory: the layout that convolutions like."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def draw_rows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw `count` row numbers below `size` with replacement, (count,) int64."""
    return torch.randint(size, (count,), generator=generator)


PIXELS = {"cuda": 2**23}  # at once through an autoencoder: its widest activations are hundreds of bytes a pixel
PIXELS_ELSEWHERE = 2**18


def at_once(pixels: int, device: torch.device) -> int:
    """Say how many pictures of so many pixels each go through an autoencoder together on a device."""
    return max(1, PIXELS.get(device.type, PIXELS_ELSEWHERE) // pixels)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode `images` (N, 3, H, W) uint8: mean and standard deviation of their scaled latents.

    Each is (N, C, h, w) float32 on the CPU, wherever the autoencoder is and in whatever dtype it computes.
    """
    means, stds = [], []
    for part in images.split(at_once(images.shape[-2] * images.shape[-1], vae.device)):
        with computing(vae.device):
            posterior = vae.encode(to_signed(part).to(vae.device, vae.dtype)).latent_dist
        means.append(posterior.mean.float().cpu())
        stds.append(posterior.std.float().cpu())
    scale = vae.config.scaling_factor
    return torch.cat(means).contiguous() * scale, torch.cat(stds).contiguous() * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled `latents` (N, C, h, w) to images (N, 3, H, W) uint8 on the CPU."""
    scale, images = vae.config.scaling_factor, []
    pixels = latents.shape[-2] * latents.shape[-1] * down_sampling(vae) ** 2
    for part in latents.split(at_once(pixels, vae.device)):
        with computing(vae.device):
            decoded = vae.decode(part.to(vae.device, vae.dtype) / scale).sample
        images.append(((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(images).contiguous()


@torch.no_grad()
def embed(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Embed captions to (N, tokens, width) float32 on the CPU: the last hidden state, as Stable Diffusion reads it."""
    tokens = tokenize(tokenizer, captions).split(256)
    with computing(text_encoder.device):
        return torch.cat([text_encoder(part.to(text_encoder.device))[0].float().cpu() for part in tokens])


@dataclass(frozen=True)
class LatentSet:
    """`mean`, `std` (N, C, h, w), scaled; `labels` (N,) into `classes`; `captions` (N,) into `prompts`.

    `prompts` (P, tokens, width) are the embeddings of `texts`; row 0 is the empty one, which caption dropout takes.
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
        """Take the rows of these classes; `classes` stays whole."""
        return self.subset(rows_of(self.labels, self.classes, names))

    def subset(self, rows: Tensor) -> LatentSet:
        """Take the rows of these numbers, (n,) int64, or where (N,) bool is True; `prompts` stay whole."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("mean", "std", "labels", "captions")})

    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the latents of `rows` once, (len(rows), C, h, w)."""
        return self.mean[rows] + self.std[rows] * torch.randn(len(rows), *self.mean.shape[1:], generator=generator)

    def prompts_of(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Take the embeddings of the captions of `rows`, (n, tokens, width); the empty one's where `keep` is False."""
        return self.prompts[self.captions[rows] * keep]

    def save(self, folder: Path) -> None:
        """Write the cache to `folder`, as safetensors and JSON."""
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "std", "labels", "captions", "prompts")}
        save_file(tensors, folder / "latents.safetensors")
        (folder / "latents.json").write_text(json.dumps({"classes": self.classes, "texts": self.texts}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> LatentSet:
        """Read a cache that `save` wrote; memory-mapped: rows are read from disk when they are used."""
        fields: dict[str, Any] = load_file(folder / "latents.safetensors")
        words = json.loads((folder / "latents.json").read_text())
        fields |= {name: tuple(texts) for name, texts in words.items()}
        return cls(**fields)


class Rows(Protocol):
    """What training draws from: a `LatentSet`, or `kdcdiff.data.shards.ShardedLatents`."""

    def __len__(self) -> int: ...
    def sample(self, rows: Tensor, generator: torch.Generator) -> Tensor: ...
    def prompts_of(self, rows: Tensor, keep: Tensor) -> Tensor: ...


def encode_set(pipeline: StableDiffusionPipeline, images: ImageSet) -> LatentSet:
    """Encode pictures and captions by `pipeline`'s autoencoder and text encoder: float32, on the CPU."""
    mean, std = encode(pipeline.vae, images.images)
    texts = ("", *sorted(set(images.captions)))
    place = {text: i for i, text in enumerate(texts)}
    captions = torch.tensor([place[c] for c in images.captions])
    prompts = embed(pipeline.text_encoder, pipeline.tokenizer, texts)
    return LatentSet(mean, std, images.labels, captions, prompts, texts, images.classes)


@dataclass(frozen=True)
class DenoisingBatch:
    """A denoiser's batch: `noisy` and `target` (N, C, h, w), `timestep` (N,), `prompt` (N, tokens, width)."""

    noisy: Tensor
    target: Tensor
    timestep: Tensor
    prompt: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> DenoisingBatch:
        return DenoisingBatch(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def __getitem__(self, rows: slice) -> DenoisingBatch:
        return DenoisingBatch(*(t[rows] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """List the fields."""
        return self.noisy, self.target, self.timestep, self.prompt

    def __len__(self) -> int:
        return len(self.noisy)


def draw_timesteps(count: int, levels: int, generator: torch.Generator, even: bool = False) -> Tensor:
    """Draw `count` time steps below `levels`, (count,) int64, each uniform.

    `even` spaces a batch's evenly (Kingma et al. 2021, appendix I.1), which calms the gradient.
    """
    if not even:
        return draw_rows(count, levels, generator)
    places = (torch.rand((), generator=generator) + torch.arange(count) / count) % 1
    return (places * levels).long().clamp(max=levels - 1)


def add_noise(
    clean: Tensor, prompt: Tensor, scheduler: DDIMScheduler, generator: torch.Generator, even: bool = False
) -> DenoisingBatch:
    """Noise `clean` (N, C, h, w) to random timesteps; the target is what the scheduler's prediction type asks for."""
    noise = torch.randn(clean.shape, generator=generator)
    timestep = draw_timesteps(len(clean), scheduler.config.num_train_timesteps, generator, even)
    noisy = noised(scheduler, clean, noise, timestep)
    targets = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: velocity(scheduler, clean, noise, timestep),
        "sample": lambda: clean,
    }
    target = targets[scheduler.config.prediction_type]()
    return DenoisingBatch(noisy.contiguous(memory_format=torch.channels_last), target, timestep, prompt)


def denoising_batch(
    latents: Rows,
    rows: Tensor,
    scheduler: DDIMScheduler,
    generator: torch.Generator,
    dropout: float = 0.1,
    even: bool = False,
) -> DenoisingBatch:
    """Make a training batch of `rows`: fresh latents, fresh noise, captions dropped with probability `dropout`.

    `even` is as `draw_timesteps` has it.
    """
    keep = torch.rand(len(rows), generator=generator) >= dropout
    clean = latents.sample(rows, generator)
    return add_noise(clean, latents.prompts_of(rows, keep), scheduler, generator, even)
