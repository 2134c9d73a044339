"""Pictures from prompts: seeded image by image, batched, resumable.

    images = sampling.generate(pipeline, ["a photo of a rose"] * 100, seed=0)     # (100, 3, 64, 64) uint8
    report = sampling.generate_to_folder(pipeline, prompts, "artifacts/roses", classes=classes, seed=0)

Image i depends on (seed, i) alone: its first noise and every later draw of an ancestral scheduler come from a
generator of its own, on the CPU whatever the device. The batch size still reaches the last bits, because
matrix kernels sum in an order that depends on it: on CPU a pixel may move by 1/255, never more in our
measurements; equal batches, and a resumed folder, are bit-identical.

The loop is `StableDiffusionPipeline.__call__` without what a hot loop does not need (one prompt encoding per
image, PIL, safety checker): a test holds the two equal.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from kdcdiff.errors import check

BLACK = 2  # an image whose brightest value is at most this, of 255, is black
_PROMPTS_KEPT = 512  # encoded prompts held at a time: 120 MB at SD's size


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of all randomness of image `index` of a run with `seed`."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


def schedulers(pipeline: StableDiffusionPipeline) -> dict[str, type[SchedulerMixin]]:
    """The diffusers schedulers that this pipeline can be sampled with, by class name."""
    known = (getattr(diffusers, cls.__name__, None) for cls in pipeline.scheduler.compatibles)
    usable = (
        cls for cls in known if cls is not None and "_backends" not in vars(cls)
    )  # not a missing package's stand-in
    same_noise = (cls for cls in usable if "beta_schedule" in inspect.signature(cls.__init__).parameters)
    return {cls.__name__: cls for cls in sorted(same_noise, key=lambda cls: cls.__name__)}


def make_scheduler(pipeline: StableDiffusionPipeline, name: str | None = None) -> Any:
    """A fresh scheduler with the pipeline's noise schedule; `name` is a diffusers class, with or without
    "Scheduler".

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

    def __init__(self, pipeline: StableDiffusionPipeline, negative: str | None) -> None:
        self.pipeline = pipeline
        self.known: dict[str, Tensor] = {}
        self.negative = self._encode([negative or ""])[0]

    def _encode(self, prompts: list[str]) -> Tensor:
        device = self.pipeline._execution_device
        return self.pipeline.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)[0]

    def __call__(self, prompts: Sequence[str], guided: bool) -> Tensor:
        """(N, L, D); guided: (2N, L, D), the negative prompt's half first, as diffusers orders them."""
        missing = sorted(set(prompts) - self.known.keys())
        if len(self.known) + len(missing) > _PROMPTS_KEPT:
            self.known.clear()
            missing = sorted(set(prompts))
        if missing:
            self.known.update(zip(missing, self._encode(missing), strict=True))
        wanted = [self.known[prompt] for prompt in prompts]
        return torch.stack([self.negative] * len(wanted) * guided + wanted)


def check_settings(
    prompts: Sequence[str], seed: int, steps: int, guidance: float, batch_size: int, most_steps: int
) -> None:
    check(
        not isinstance(prompts, str) and len(prompts) > 0,
        "prompts",
        prompts,
        "must be a sequence of at least one prompt",
    )
    for prompt in prompts:
        check(isinstance(prompt, str), "prompts", prompt, "must be strings")
    check(isinstance(seed, int) and seed >= 0, "seed", seed, "must be a whole number, 0 or more")
    check(
        isinstance(steps, int) and 1 <= steps <= most_steps,
        "steps",
        steps,
        f"must be between 1 and {most_steps}",
    )
    check(
        0 <= guidance < float("inf"),
        "guidance",
        guidance,
        "must be a number, 0 or more (up to 1: no guidance)",
    )
    check(isinstance(batch_size, int) and batch_size >= 1, "batch_size", batch_size, "must be 1 or more")


@torch.inference_mode()
def _denoise(
    pipeline: StableDiffusionPipeline,
    scheduler: Any,
    prompt: Tensor,
    generators: list[torch.Generator],
    *,
    steps: int,
    guidance: float,
    guided: bool,
) -> Tensor:
    """Latents, in the U-Net's units, (N, C, h, w), from prompt embeddings (N or 2N, L, D)."""
    unet, device = pipeline.unet, pipeline._execution_device
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, unet.config.in_channels, height, width)
    scheduler.set_timesteps(steps, device=device)
    noise = [torch.randn(shape, generator=g) for g in generators]  # each image's own, so the batch cannot matter
    latents = torch.cat(noise).to(device, prompt.dtype) * scheduler.init_noise_sigma
    accepted = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if "generator" in accepted else {}
    for t in scheduler.timesteps:
        both = torch.cat([latents, latents]) if guided else latents
        output = unet(scheduler.scale_model_input(both, t), t, encoder_hidden_states=prompt, return_dict=False)[0]
        if guided:
            without, conditioned = output.chunk(2)
            output = without + guidance * (conditioned - without)
        latents = scheduler.step(output, t, latents, **extra, return_dict=False)[0]
    return latents


@torch.inference_mode()
def _decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) uint8 on the CPU, rounded as diffusers does, and which were finite (N,) bool."""
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0].float()
    finite = pixels.isfinite().flatten(1).all(1)
    unit = (pixels / 2 + 0.5).clamp(0, 1).nan_to_num(0.0)
    return (unit * 255).round().to(torch.uint8).cpu(), finite.cpu()


def stream(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    batches: Sequence[range],
    *,
    seed: int,
    steps: int,
    guidance: float,
    scheduler: str | None,
    negative_prompt: str | None,
    progress: bool,
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """What `generate` and its like run on: each batch of image numbers with images (n, 3, H, W) uint8, and
    which were finite (n,).
    """
    sampler = make_scheduler(pipeline, scheduler)
    guided = guidance > 1
    encode = _Prompts(pipeline, negative_prompt)
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        model.eval()
    with tqdm(total=sum(map(len, batches)), desc="generating", unit="img", disable=not progress, mininterval=1) as bar:
        for numbers in batches:
            embedded = encode([prompts[i] for i in numbers], guided)
            generators = [image_generator(seed, i) for i in numbers]
            latents = _denoise(pipeline, sampler, embedded, generators, steps=steps, guidance=guidance, guided=guided)
            images, finite = _decode(pipeline, latents)
            yield numbers, images, finite
            bar.update(len(numbers))


def split(count: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = 25,
    guidance: float = 5.0,
    batch_size: int = 50,
    scheduler: str | None = None,
    negative_prompt: str | None = None,
    progress: bool = True,
) -> Tensor:
    """One image per prompt, (N, 3, H, W) uint8 on the CPU. Image i depends on (seed, i) alone.

    `guidance` is classifier-free guidance's scale; up to 1 there is none. Non-finite outputs become black;
    these and black ones are counted and named in a warning. UserError: a setting out of range, an unknown
    scheduler.
    """
    check_settings(prompts, seed, steps, guidance, batch_size, pipeline.scheduler.config.num_train_timesteps)
    parts, broken = [], []
    for numbers, images, finite in stream(
        pipeline,
        prompts,
        split(len(prompts), batch_size),
        seed=seed,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        negative_prompt=negative_prompt,
        progress=progress,
    ):
        parts.append(images)
        broken += [i for i, ok in zip(numbers, finite.tolist(), strict=True) if not ok]
    images = torch.cat(parts)
    _warn(len(images), broken, [i for i in black(images) if i not in set(broken)])
    return images


def black(images: Tensor) -> list[int]:
    """The numbers of the images, (N, 3, H, W) uint8, that are black."""
    return (images.flatten(1).amax(1) <= BLACK).nonzero()[:, 0].tolist()


def _warn(count: int, broken: Sequence[int | str], dark: Sequence[int | str]) -> None:
    for names, what in ((broken, "not finite"), (dark, "black")):
        if names:
            listed = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
            warnings.warn(f"{len(names)} of {count} generated images are {what}: {listed}", stacklevel=3)
