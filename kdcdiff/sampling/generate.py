"""Pictures from prompts: `StableDiffusionPipeline` itself, seeded image by image, in batches.

    images = generate(pipeline, ["a photo of a rose"] * 100, seed=0)     # (100, 3, H, W) uint8

Image i depends on (seed, i) alone: its first noise and every later draw of an ancestral scheduler come from a generator
of its own, on the CPU whatever the device. The batch size still reaches the last bits, because matrix kernels sum in an
order that depends on it: on CPU a pixel may move by 1/255, never more in our measurements; equal batches are
bit-identical. The caller moves the pipeline to its device; images are of the size that its U-Net was trained at unless
another is asked for.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from kdcdiff.data.latents import at_once
from kdcdiff.errors import check
from kdcdiff.process import computing, on_full_gpu

BLACK = 2  # an image whose brightest value is at most this, of 255, is black
MOST = 50  # pictures at a time, however small
OPEN = ("batch_size", "resolution")  # settings that may be left to the pipeline
_PROMPTS_KEPT = 512  # encoded prompts held at a time: 120 MB at SD's size


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are drawn. UserError: a value out of range."""

    seed: int
    steps: int = 25
    guidance: float = 5.0  # the scale of classifier-free guidance; up to 1 there is none
    batch_size: int | None = None  # pictures at a time; None: as many as `most_at_once` says
    resolution: int | None = None  # side in pixels; None: what the pipeline was trained on
    scheduler: str | None = None  # a diffusers class, with or without "Scheduler"; None: the pipeline's own
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 1), ("batch_size", 1), ("resolution", 8)):
            value = getattr(self, name)
            ok = (value is None and name in OPEN) or (isinstance(value, int) and value >= least)
            check(ok, name, value, f"must be a whole number, {least} or more")
        finite = 0 <= self.guidance < float("inf")
        check(finite, "guidance", self.guidance, "must be a number, 0 or more (up to 1: no guidance)")

    def check(self, pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> None:
        """Raise UserError unless `pipeline` can draw `prompts` this way."""
        several = not isinstance(prompts, str) and len(prompts) > 0
        check(several, "prompts", prompts, "must be a sequence of at least one prompt")
        for prompt in prompts:
            check(isinstance(prompt, str), "prompts", prompt, "must be strings")
        most = pipeline.scheduler.config.num_train_timesteps
        check(self.steps <= most, "steps", self.steps, f"must be between 1 and {most}")
        make_scheduler(pipeline, self.scheduler)
        side, whole = self.resolution or 0, max(8, pipeline.vae_scale_factor)
        check(side % whole == 0, "resolution", side, f"must be a multiple of {whole}")

    def batches(self, pipeline: StableDiffusionPipeline, count: int) -> list[range]:
        """Split the numbers of `count` images of `pipeline` into batches."""
        size = self.batch_size or most_at_once(pipeline, self.resolution)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


@on_full_gpu()
def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    progress: bool = True,
    **settings: Any,  # the fields of `Sampling`
) -> Tensor:
    """Draw one image for each prompt, (N, 3, H, W) uint8 on the CPU.

    Non-finite outputs become black; these and black ones are counted and named in a warning. UserError: a setting out
    of range, an unknown scheduler.
    """
    sampling = Sampling(**settings)
    sampling.check(pipeline, prompts)
    parts, faults = [], []
    for _, images, own in stream(pipeline, prompts, sampling, sampling.batches(pipeline, len(prompts)), progress):
        parts.append(images)
        faults += own
    warn_of(faults, range(len(faults)))
    return torch.cat(parts)


def stream(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    batches: Sequence[range],
    progress: bool,
) -> Iterator[tuple[range, Tensor, list[str]]]:
    """Yield the numbers of each batch, its images (n, 3, H, W) uint8 and their faults: "", "not finite" or "black"."""
    drawer = copy.copy(pipeline)  # the same networks, with a scheduler and a progress bar of its own
    drawer.scheduler = make_scheduler(pipeline, sampling.scheduler)
    drawer.set_progress_bar_config(disable=True)
    embed = _Prompts(pipeline)
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        model.eval()
    with tqdm(total=sum(map(len, batches)), desc="generating", unit="img", disable=not progress, mininterval=1) as bar:
        for rows in batches:
            with torch.inference_mode(), computing(pipeline.unet.device):
                latents = drawer(
                    prompt_embeds=embed([prompts[i] for i in rows]),
                    negative_prompt_embeds=embed([sampling.negative_prompt or ""] * len(rows)),
                    generator=[image_generator(sampling.seed, i) for i in rows],
                    num_inference_steps=sampling.steps,
                    guidance_scale=sampling.guidance,
                    height=sampling.resolution,
                    width=sampling.resolution,
                    output_type="latent",  # its own decoding clamps, which would hide infinite values
                ).images
                images, faults = _decode(pipeline, latents)
            yield rows, images, faults
            bar.update(len(rows))


def most_at_once(pipeline: StableDiffusionPipeline, resolution: int | None = None) -> int:
    """Say how many pictures are drawn together where nobody says: few enough for the memory of an autoencoder."""
    sides = pipeline.unet.config.sample_size
    high, wide = (sides, sides) if isinstance(sides, int) else sides
    pixels = resolution**2 if resolution else high * wide * pipeline.vae_scale_factor**2
    return min(MOST, at_once(pixels, pipeline.unet.device))


def image_generator(seed: int, index: int) -> torch.Generator:
    """Make the source of all randomness of image `index` of a run with `seed`."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


def schedulers(pipeline: StableDiffusionPipeline) -> dict[str, type[SchedulerMixin]]:
    """Return the diffusers schedulers that this pipeline can be sampled with, by class name."""
    known = (getattr(diffusers, cls.__name__, None) for cls in pipeline.scheduler.compatibles)
    usable = (cls for cls in known if cls is not None and "_backends" not in vars(cls))  # no missing package's stand-in
    same_noise = (cls for cls in usable if "beta_schedule" in inspect.signature(cls.__init__).parameters)
    return {cls.__name__: cls for cls in sorted(same_noise, key=lambda cls: cls.__name__)}


def make_scheduler(pipeline: StableDiffusionPipeline, name: str | None = None) -> Any:
    """Make a scheduler with the pipeline's noise schedule; `name` is a diffusers class, with or without "Scheduler".

    UserError: no such scheduler, or none that this pipeline's configuration fits.
    """
    config = dict(pipeline.scheduler.config)
    if name is None:
        return type(pipeline.scheduler).from_config(config)
    known = schedulers(pipeline)
    full = name if name in known else f"{name}Scheduler"
    check(full in known, "scheduler", name, f"must be one of {', '.join(known)}")
    if "skip_prk_steps" in inspect.signature(known[full].__init__).parameters:
        config.setdefault("skip_prk_steps", True)  # PNDM as Stable Diffusion ships it; its warm-up needs many steps
    return known[full].from_config(config)


class _Prompts:
    """Text embeddings (L, D) by prompt: each unique prompt is encoded once, a bounded number is kept."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embed `prompts`, (N, L, D), on the pipeline's device."""
        missing = sorted(set(prompts) - self.known.keys())
        if len(self.known) + len(missing) > _PROMPTS_KEPT:
            self.known.clear()
            missing = sorted(set(prompts))
        if missing:
            device = self.pipeline._execution_device
            encoded = self.pipeline.encode_prompt(missing, device, 1, do_classifier_free_guidance=False)[0]
            self.known.update(zip(missing, encoded, strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])


def _decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> tuple[Tensor, list[str]]:
    """Decode scaled latents (N, C, h, w) to images (N, 3, H, W) uint8 on the CPU, and name each image's fault.

    Rounds as diffusers does.
    """
    scaled = latents.to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor
    pixels = pipeline.vae.decode(scaled, return_dict=False)[0].float()
    images = ((pixels / 2 + 0.5).clamp(0, 1).nan_to_num(0.0) * 255).round().to(torch.uint8).cpu()
    finite = pixels.isfinite().flatten(1).all(1).tolist()
    dark = (images.flatten(1).amax(1) <= BLACK).tolist()
    return images, ["not finite" if not f else "black" if d else "" for f, d in zip(finite, dark, strict=True)]


def warn_of(faults: Sequence[str], names: Sequence[int] | Sequence[str]) -> None:
    """Warn of each kind of fault: how many images have it, and the names of the first."""
    for fault in ("not finite", "black"):
        named = [str(name) for name, own in zip(names, faults, strict=True) if own == fault]
        if named:
            listed = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
            warnings.warn(f"{len(named)} of {len(faults)} generated images are {fault}: {listed}", stacklevel=3)
