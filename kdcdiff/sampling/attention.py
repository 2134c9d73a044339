"""Where a word looks: cross-attention maps (KDC-Diff, Figure 5), and how well they cover the subject.

    seen = attention.generate(pipeline, ["a photo of a red rose"], ["rose"], seed=0)
    seen.images, seen.maps                           # (1, 3, H, W) uint8, (1, 1, H, W)
    maps = attention.of_images(pipeline, flora.images, flora.captions, subjects, seed=0)
    attention.coverage(maps[:, 0], flora.masks)      # (N,): 0.5 is chance, 1 a perfect outline

Each cross-attention layer keeps its own processor, whose output goes on unchanged; the softmax is worked out a second
time beside it, for the recorder. So images are bit-identical with and without recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from scipy.stats import rankdata
from torch import Tensor
from transformers import CLIPTokenizer

from kdcdiff.data.latents import at_once, encode
from kdcdiff.errors import UserError, check
from kdcdiff.models.noise import noised
from kdcdiff.process import computing
from kdcdiff.sampling.generate import Sampling, image_generator, stream

Words = Sequence[str | Sequence[str]]  # for each prompt a word, or several; as many for each
LEVELS = (0.3, 0.5, 0.7)  # of noise on given images: shares of the training timesteps


def token_places(tokenizer: CLIPTokenizer, prompt: str, word: str) -> list[int]:
    """Find the tokens that spell `word` (or several words), its first time: their places in the padded prompt.

    UserError: it does not occur, or only where the prompt is cut.
    """
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    wanted = tokenizer(word, add_special_tokens=False).input_ids
    for start in range(len(ids) - len(wanted) + 1):
        if wanted and ids[start : start + len(wanted)] == wanted:
            return list(range(start, start + len(wanted)))
    raise UserError(
        f"word={word!r}: must occur in the prompt {prompt!r}, among its first {tokenizer.model_max_length} tokens"
    )


def _token_weights(tokenizer: CLIPTokenizer, prompts: Sequence[str], words: Words) -> Tensor:
    """Weigh each word's tokens so that their mean is taken: (N, K, L)."""
    check(len(words) == len(prompts), "words", len(words), f"must be one entry for each of the {len(prompts)} prompts")
    listed = [[own] if isinstance(own, str) else list(own) for own in words]
    even = len({len(own) for own in listed}) == 1 and bool(listed[0])
    check(even, "words", words, "must be as many for each prompt, at least one")
    weights = torch.zeros(len(prompts), len(listed[0]), tokenizer.model_max_length)
    for i, (prompt, own) in enumerate(zip(prompts, listed, strict=True)):
        for k, word in enumerate(own):
            places = token_places(tokenizer, prompt, word)
            weights[i, k, places] = 1 / len(places)
    return weights


class Recorder:
    """Sums of the attention that N images' words get, by layer name: (N, K, h, w) at each layer's own resolution.

    `weights` (N, K, L) are each word's tokens, `aspect` is an image's height over its width. Of a guided batch (2N) the
    conditioned half is read.
    """

    def __init__(self, weights: Tensor, aspect: float = 1.0) -> None:
        self.weights, self.aspect = weights, aspect
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, layer: str, probabilities: Tensor) -> None:
        """Add the `probabilities` (N, heads, Q, L) of one layer in one call."""
        weights = self.weights.to(probabilities.device)
        words = torch.einsum("nql,nkl->nkq", probabilities.mean(1).float(), weights)
        words = words.unflatten(2, (round((words.shape[2] * self.aspect) ** 0.5), -1))
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(words)) + words
        self.counts[layer] = self.counts.get(layer, 0) + 1

    def maps(self, size: tuple[int, int]) -> Tensor:
        """Average over calls and layers, each layer bilinearly resized: (N, K, H, W) on the CPU."""
        means = (self.sums[name] / self.counts[name] for name in self.sums)
        resized = [F.interpolate(mean, size, mode="bilinear", align_corners=False) for mean in means]
        return torch.stack(resized).mean(0).cpu()


class _Beside:
    """A processor that calls the layer's own and shows the recorder the same attention."""

    def __init__(self, own: Any, layer: str, recorder: Recorder) -> None:
        self.own, self.layer, self.recorder = own, layer, recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        n = len(self.recorder.weights)
        query, key = attn.to_q(hidden_states[-n:]), attn.to_k(encoder_hidden_states[-n:])
        scores = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
        self.recorder.add(self.layer, scores.unflatten(0, (n, attn.heads)))
        return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)


@contextmanager
def recording(unet: UNet2DConditionModel, recorder: Recorder) -> Iterator[Recorder]:
    """Let `recorder` see every cross-attention of `unet` while it lasts; the layers' processors are put back after."""
    own = dict(unet.attn_processors)
    beside = dict(own)
    for name in own:
        if (layer := name.removesuffix(".processor")).endswith("attn2"):
            beside[name] = _Beside(own[name], layer, recorder)
    unet.set_attn_processor(beside)
    try:
        yield recorder
    finally:
        unet.set_attn_processor(own)


@dataclass(frozen=True)
class Seen:
    """Generated images (N, 3, H, W) uint8 and the maps of their words (N, K, H, W)."""

    images: Tensor
    maps: Tensor


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    words: Words,
    *,
    progress: bool = True,
    **settings: Any,  # the fields of `Sampling`
) -> Seen:
    """Draw the very images of `sampling.generate`, with the attention of each prompt's words recorded."""
    sampling = Sampling(**settings)
    sampling.check(pipeline, prompts)
    weights = _token_weights(pipeline.tokenizer, prompts, words)
    size = pipeline.unet.config.sample_size
    aspect = 1.0 if isinstance(size, int) or sampling.resolution else size[0] / size[1]
    images, maps = [], []
    for rows in sampling.batches(pipeline, len(prompts)):
        with recording(pipeline.unet, Recorder(weights[rows.start : rows.stop], aspect)) as recorder:
            ((_, own, _),) = stream(pipeline, prompts, sampling, [rows], progress)
        images.append(own)
        maps.append(recorder.maps((own.shape[-2], own.shape[-1])))
    return Seen(torch.cat(images), torch.cat(maps))


@torch.inference_mode()
def of_images(
    pipeline: StableDiffusionPipeline,
    images: Tensor,
    prompts: Sequence[str],
    words: Words,
    *,
    seed: int,
    batch_size: int | None = None,
) -> Tensor:
    """Record the words' maps (N, K, H, W) while the U-Net denoises images (N, 3, H, W) uint8 under their captions.

    Each image is noised to each of `LEVELS` with noise of its own; one call each. This is how a map meets a true mask:
    generated images have none.
    """
    count = len(images)
    check(count == len(prompts) > 0, "prompts", len(prompts), f"must be one for each of the {count} images")
    weights = _token_weights(pipeline.tokenizer, prompts, words)
    scheduler, device, height, width = pipeline.scheduler, pipeline._execution_device, *images.shape[-2:]
    found, batch_size = [], batch_size or at_once(height * width, device)
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        clean = encode(pipeline.vae, images[rows.start : rows.stop])[0].to(device)
        embedded = pipeline.encode_prompt([prompts[i] for i in rows], device, 1, do_classifier_free_guidance=False)[0]
        generators = [image_generator(seed, i) for i in rows]
        with recording(pipeline.unet, Recorder(weights[rows.start : rows.stop], height / width)) as recorder:
            for level in LEVELS:
                noise = torch.cat([torch.randn(1, *clean.shape[1:], generator=g) for g in generators]).to(clean)
                t = torch.full((len(clean),), int(level * scheduler.config.num_train_timesteps), device=device)
                with computing(device):
                    pipeline.unet(noised(scheduler, clean, noise, t), t, encoder_hidden_states=embedded)
        found.append(recorder.maps((height, width)))
    return torch.cat(found)


# --- numbers and pictures -----------------------------------------------------------------------------------


def coverage(maps: Tensor, masks: Tensor) -> Tensor:
    """Measure how well maps (N, H, W) cover subjects, masks (N, H, W) bool or uint8 (255: subject): (N,) in [0, 1].

    The area under the ROC curve: the chance that a pixel of the subject has more of the word's attention than one of
    the background. 0.5 is no relation; free of scale and of threshold. UserError: a mask that is empty or full.
    """
    alike = maps.shape == masks.shape and maps.dim() == 3
    check(alike, "masks", tuple(masks.shape), f"must have the maps' shape (N, H, W), {tuple(maps.shape)}")
    subject = (masks if masks.dtype == torch.bool else masks > 127).flatten(1).numpy()
    inside = subject.sum(1)
    outside = subject.shape[1] - inside
    for i in np.flatnonzero((inside == 0) | (outside == 0)):
        raise UserError(f"masks={int(i)!r}: this image's mask must have both subject and background")
    ranks = rankdata(maps.flatten(1).numpy(), axis=1)  # ties share their mean rank
    return torch.from_numpy(((ranks * subject).sum(1) - inside * (inside + 1) / 2) / (inside * outside))


def grayscale(maps: Tensor) -> Tensor:
    """Stretch each map (..., H, W) to its own range: uint8, black the least and white the most attended."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)


def overlay(images: Tensor, maps: Tensor, strength: float = 0.6, colours: str = "inferno") -> Tensor:
    """Lay maps (N, H, W), in matplotlib's `colours`, over images (N, 3, H, W) uint8: (N, 3, H, W) uint8."""
    check(0 <= strength <= 1, "strength", strength, "must be between 0 and 1")
    check(colours in matplotlib.colormaps, "colours", colours, "must be a matplotlib colour map")
    heat = matplotlib.colormaps[colours](grayscale(maps).numpy())[..., :3]  # (N, H, W, 3) in [0, 1]
    tint = torch.from_numpy(heat).permute(0, 3, 1, 2) * 255
    return ((1 - strength) * images + strength * tint).round().to(torch.uint8)
