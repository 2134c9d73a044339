"""How each part of a Stable Diffusion pipeline is trained: CLIP, autoencoder, U-Net; and the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import DenoisingBatch, LatentSet, denoising_batch, draw_rows, encode, encode_set, to_signed
from kdcdiff.models.classifier import Classifier
from kdcdiff.models.pipeline import down_sampling, new_clip, tokenize
from kdcdiff.training.loop import fit
from kdcdiff.training.protocols import KL_WEIGHT, PERCEPTUAL_WEIGHT

# --- CLIP ----------------------------------------------------------------------------------------------------


def train_clip(
    images: ImageSet,
    tokenizer: CLIPTokenizer,
    steps: int,
    batch: int,
    seed: int,
    folder: Path | None,
    describe: str,
    device: str = "cpu",
) -> CLIPModel:
    """Train a small CLIP on `device`, contrastively; pictures of one caption are positives of each other.

    It sees them at its own size.
    """
    model = new_clip(tokenizer, seed)
    nn.Module.to(model, device)  # transformers wraps its own in a way that type checkers do not read
    vision: Any = model.config.vision_config
    images = images.resized(vision.image_size)
    unique = sorted(set(images.captions))
    tokens = tokenize(tokenizer, unique)
    caption_ids = torch.tensor([unique.index(c) for c in images.captions])

    def batch_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = draw_rows(batch, len(images), generator)
        return {"pixels": to_signed(images.images[rows]), "captions": caption_ids[rows]}

    def loss(model: nn.Module, data: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(input_ids=tokens.to(data["pixels"].device)[data["captions"]], pixel_values=data["pixels"])
        same = (data["captions"][:, None] == data["captions"][None, :]).float()
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return value, {}

    fit(
        model,
        loss,
        batch_of,
        steps=steps,
        lr=1e-3,
        seed=seed,
        warmup=100,
        folder=folder,
        checkpoint_every=200,
        describe=describe,
    )
    return model


# --- autoencoder ---------------------------------------------------------------------------------------------


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 on pixels, and L1 on their differences to the right and below, so that thin veins and edges count."""

    def edges(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]

    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))
    return F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.5 * sharp


def perceptual_distance(perceptual_net: Classifier, output: Tensor, target: Tensor) -> Tensor:
    """LPIPS's form (Zhang et al. 2018): squared distance of unit features, summed over stages. Signed images."""
    with torch.no_grad():
        wanted = perceptual_net.maps((target + 1) / 2)
    pairs = zip(perceptual_net.maps((output + 1) / 2), wanted, strict=True)
    return torch.stack([(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean() for a, b in pairs]).sum()


def vary(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, and exposure on a third of the batch: (N, 3, H, W) in [-1, 1]."""
    flip = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
    exposure = 0.6 + 0.6 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    exposure[len(pixels) // 3 :] = 1
    return ((pixels + 1) * exposure - 1).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def train_autoencoder(
    vae: AutoencoderKL,
    images: Tensor,
    perceptual_net: Classifier | None,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    folder: Path | None,
    kl_weight: float = KL_WEIGHT,
    perceptual_weight: float = PERCEPTUAL_WEIGHT,
    decoder_only: bool = False,
    describe: str = "autoencoder",
) -> None:
    """Train `vae` in place on `images` (N, 3, H, W) uint8, then set its scaling factor: latents have unit deviation.

    `perceptual_net` adds its distance to the loss. `decoder_only` leaves the latents what they are, so that a U-Net
    that was trained on them keeps its meaning.
    """
    coding = nn.ModuleList([vae.encoder, vae.quant_conv]).requires_grad_(not decoder_only)
    vae.to(memory_format=torch.channels_last)
    down = down_sampling(vae)

    class Reconstruct(nn.Module):
        """Encode, sample, decode as one call, so that a wrapper sees it."""

        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            with torch.set_grad_enabled(not decoder_only):
                posterior = self.vae.encode(pixels).latent_dist
            kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
            return self.vae.decode(posterior.mean + posterior.std * noise).sample, kl

    def batch_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = vary(to_signed(images[draw_rows(batch, len(images), generator)]), generator)
        noise = torch.randn(
            batch, vae.config.latent_channels, *(s // down for s in pixels.shape[2:]), generator=generator
        )
        return {"pixels": pixels, "noise": noise}

    def loss(model: nn.Module, data: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        output, kl = model(data["pixels"], data["noise"])
        reconstruction = reconstruction_loss(output, data["pixels"])
        if perceptual_net is None:
            return reconstruction + kl_weight * kl, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        perceptual = perceptual_distance(perceptual_net.to(output.device), output, data["pixels"])
        terms = {"reconstruction": reconstruction.detach(), "perceptual": perceptual.detach(), "kl": kl.detach()}
        return reconstruction + perceptual_weight * perceptual + kl_weight * kl, terms

    fit(
        Reconstruct(),
        loss,
        batch_of,
        steps=steps,
        lr=lr,
        seed=seed,
        warmup=100,
        folder=folder,
        checkpoint_every=200,
        describe=describe,
        weight_decay=0.0,
    )
    coding.requires_grad_(True)
    sample = images[:: max(1, len(images) // 512)]
    vae.register_to_config(scaling_factor=1.0)
    deviation = encode(vae, sample)[0].std()
    vae.register_to_config(scaling_factor=round(1 / deviation.item(), 4))


# --- U-Net ---------------------------------------------------------------------------------------------------


def train_unet(
    pipeline: StableDiffusionPipeline,
    latents: LatentSet,
    *,
    steps: int,
    batch: int,
    lr: float,
    dropout: float,
    ema: float,
    seed: int,
    folder: Path | None,
    even: bool = False,
    inner_steps: int = 0,
    describe: str = "unet",
) -> None:
    """Denoising training on cached latents and prompt embeddings; the pipeline's U-Net is trained in place.

    `even` spaces the time steps of a batch. After `inner_steps` (0: all) the stages that see the fewest places stay as
    they are, so that what reads them goes on needing them; `book/teachers.md` has the trainings that show it.
    """
    unet = pipeline.unet.to(memory_format=torch.channels_last)
    inner = nn.ModuleList([unet.down_blocks[-1], unet.mid_block, unet.up_blocks[0]] if inner_steps else [])

    def batch_of(step: int, generator: torch.Generator) -> DenoisingBatch:
        inner.requires_grad_(step < inner_steps)
        rows = draw_rows(batch, len(latents), generator)
        return denoising_batch(latents, rows, pipeline.scheduler, generator, dropout, even)

    def loss(model: nn.Module, data: DenoisingBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        output = model(data.noisy, data.timestep, data.prompt, return_dict=False)[0]
        return F.mse_loss(output, data.target), {}

    fit(
        unet,
        loss,
        batch_of,
        steps=steps,
        lr=lr,
        seed=seed,
        warmup=min(300, steps // 10),
        ema=ema,
        folder=folder,
        checkpoint_every=250,
        describe=describe,
    )
    inner.requires_grad_(True)


# --- classifier ----------------------------------------------------------------------------------------------


def soften_half(pixels: Tensor, low: int, high: int, generator: torch.Generator) -> None:
    """Resample every other picture of `pixels` (N, 3, H, W) to a side in [low, high) and back, in place.

    A judge that has seen soft pictures does not take softness for a trait of what they show.
    """
    side = int(torch.randint(low, high, (1,), generator=generator))
    soft = F.interpolate(pixels[::2], side, mode="bilinear", antialias=True)
    pixels[::2] = F.interpolate(soft, pixels.shape[-2:], mode="bicubic")


def train_classifier(
    images: ImageSet, steps: int, batch: int, seed: int, folder: Path | None, describe: str = "classifier",
    device: str | torch.device = "cpu", side: int | None = None,
) -> Classifier:  # fmt: skip
    """Train on `device` with cross-entropy, on real images under flips, shifts, exposure and blur.

    It never sees a generated or decoded image. With `side` it sees all at that size, now and later.

    Half of each batch is resampled to a random lower resolution and back, so that shape and colour decide, and not the
    finest line: what reads generated pictures must not mistake softness for another class.
    """
    torch.manual_seed(seed)
    model = Classifier(images.classes, side=side).to(device)
    images = images if side is None else images.resized(side)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch_of(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = draw_rows(batch, len(images), generator)
        pixels = images.images[rows].float() / 255
        flip = torch.rand(batch, generator=generator) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        height, width = pixels.shape[2:]
        shift = min(height, width) // 12  # pixels at most
        y, x = torch.randint(0, 2 * shift + 1, (2,), generator=generator).flip(0).tolist()
        pixels = F.pad(pixels, (shift,) * 4, mode="replicate")[:, :, y : y + height, x : x + width]
        pixels = pixels * (0.8 + 0.4 * torch.rand(batch, 1, 1, 1, generator=generator))
        width = pixels.shape[-1]
        soften_half(pixels, width // 4, width * 3 // 4, generator)
        return {
            "pixels": pixels.clamp(0, 1).contiguous(memory_format=torch.channels_last),
            "labels": images.labels[rows],
        }

    def loss(model: nn.Module, data: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(model(data["pixels"]), data["labels"], label_smoothing=0.05), {}

    fit(
        model,
        loss,
        batch_of,
        steps=steps,
        lr=2e-3,
        seed=seed,
        warmup=100,
        weight_decay=0.05,
        folder=folder,
        checkpoint_every=250,
        describe=describe,
    )
    return model.requires_grad_(False)


# --- a teacher for other pictures ----------------------------------------------------------------------------


def fine_tune(
    pipeline: StableDiffusionPipeline,
    images: ImageSet,
    *,
    perceptual_net_steps: int,
    autoencoder_steps: int,
    unet_steps: int,
    batch: int,
    seed: int,
    folder: Path,
) -> None:
    """Fit the pipeline to other pictures, in place: first its autoencoder, then its U-Net on the new latents."""
    if autoencoder_steps:
        perceptual_net = train_classifier(
            images, perceptual_net_steps, 64, seed, folder / "perceptual-net", "perceptual net", pipeline.device
        )
        train_autoencoder(
            pipeline.vae,
            images.images,
            perceptual_net,
            steps=autoencoder_steps,
            batch=16,
            lr=1e-3,
            seed=seed,
            folder=folder / "autoencoder",
        )
    latents = encode_set(pipeline, images)
    train_unet(
        pipeline,
        latents,
        steps=unet_steps,
        batch=batch,
        lr=5e-4,
        dropout=0.1,
        ema=0.99,
        seed=seed,
        folder=folder / "unet",
        describe="teacher",
    )
