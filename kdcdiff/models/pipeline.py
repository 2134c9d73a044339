"""A Stable-Diffusion pipeline by name, folder or hub id; and the small one that ships with the project.

`flora` is a real `diffusers.StableDiffusionPipeline` of diffusers' own classes with Stable Diffusion's topology, at a
size for two cores: 64x64 pixels, 8x down-sampling, four U-Net stages. `kdcdiff pretrain` made its weights; they lie in
`kdcdiff/assets/flora` in fp16 with their checksums, beside the two in-domain extractors. `garden`, made the same way,
has latents of 16x16 places and Stable Diffusion's ratio of widths, so that its inner stages do something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from kdcdiff.errors import UserError, check
from kdcdiff.models.shipped import check_index, dataset_of, find_pipeline, first_line, shipped, torn
from kdcdiff.models.unet_files import from_hub, tensor_names

IMAGE_SIZE = 64  # of the shipped stack alone: everything else reads its sizes from the pipeline at hand

AUTOENCODER: dict[str, Any] = {
    "sample_size": IMAGE_SIZE,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 48, 64),  # 8x down-sampling, as SD's
    "layers_per_block": 1,
    "latent_channels": 8,  # SD has 4 for 64x64 places; with 8x8 places a flower needs a little more
    "norm_num_groups": 8,
}
UNET: dict[str, Any] = {  # SD's own stage types are the class's defaults
    "sample_size": IMAGE_SIZE // 8,
    "in_channels": AUTOENCODER["latent_channels"],
    "out_channels": AUTOENCODER["latent_channels"],
    "block_out_channels": (48, 64, 72, 72),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": 2,  # heads, in diffusers' naming
    "cross_attention_dim": 64,
}
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32, "projection_dim": 64,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": IMAGE_SIZE, "patch_size": 8, "projection_dim": 64,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,  # SD's
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",  # as SD-2.1's: the class is settled at high noise, where epsilon says nothing
}  # fmt: skip


def train_tokenizer(captions: Sequence[str], size: int = 640) -> CLIPTokenizer:
    """Learn a byte-level BPE tokenizer in CLIP's format from `captions`; it spells any text."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word for caption in captions for word in caption.lower().split()})
    # Pairs that are equally frequent are merged in the order of their letters' numbers, and a letter that ends a word
    # is numbered when it is met, in the random order of a hash map: so all letters are numbered before.
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    last = {piece[-1] for word in words for piece, _ in spelt.pre_tokenize_str(word)}
    trainer = trainers.BpeTrainer(
        vocab_size=size + len(alphabet) - len(last), special_tokens=letters, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(words, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges), *special]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT["max_position_embeddings"])  # type: ignore[arg-type]


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Tokenize `captions` to ids (N, model_max_length), padded and cut as Stable Diffusion does."""
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _text_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return TEXT | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }


def new_clip(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """Make an untrained small CLIP for images of `IMAGE_SIZE`."""
    torch.manual_seed(seed)
    text, vision = CLIPTextConfig(**_text_config(tokenizer)), CLIPVisionConfig(**VISION)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT["projection_dim"])
    )


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Take CLIP's text half as the pipeline's text encoder, frozen."""
    encoder = CLIPTextModel(clip.config.text_config)  # type: ignore[arg-type]
    state = {k: v for k, v in clip.state_dict().items() if k.startswith("text_model.")}
    names = set(encoder.state_dict())
    encoder.load_state_dict({k if k in names else k.removeprefix("text_model."): v for k, v in state.items()})
    return encoder.eval().requires_grad_(False)


def new_autoencoder(seed: int, widths: Sequence[int] = AUTOENCODER["block_out_channels"]) -> AutoencoderKL:
    """Make an untrained autoencoder whose posteriors start narrow around spread-out means.

    `widths` are the channels of its levels, each of which but the last halves the side.
    With diffusers' own initial values a latent's noise is twenty times its signal, and the decoder spends thousands of
    steps on learning to ignore it.
    """
    torch.manual_seed(seed)
    levels = {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    vae = AutoencoderKL(**AUTOENCODER | levels)
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[:channels] *= 12.0  # means
        vae.quant_conv.weight[channels:] *= 0.1  # log-variances
        vae.quant_conv.bias[channels:] = -6.0
    return vae


def new_unet(
    seed: int, widths: Sequence[int] = UNET["block_out_channels"], side: int = UNET["sample_size"]
) -> UNet2DConditionModel:
    """Make an untrained denoiser of latents of `side`; `widths` are the channels of its stages, outermost first."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**UNET | {"block_out_channels": tuple(widths), "sample_size": side})


def assemble(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Put the parts together, with the shipped scheduler's configuration."""
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(name: str | Path = "flora") -> StableDiffusionPipeline:
    """Load a pipeline by name (one that ships), folder or hub id, in float32, on the CPU.

    The caller moves it to its device. UserError: no such pipeline, or one that cannot be read.
    """
    folder = find_pipeline(name)
    if folder is None:
        folder = from_hub(str(name))
        check_index(folder)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, use_safetensors=True
        )
    except MemoryError:
        raise
    except Exception as error:  # a folder holds anything
        fault = torn(folder)
        told = f"{fault}: it is half downloaded or half copied; fetch it again" if fault else first_line(error)
        raise UserError(f"pipeline={str(name)!r}: cannot be loaded ({told})") from error
    _check_parts(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_parts(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Raise UserError unless every weight of a pipeline was in its files.

    diffusers and transformers fill in what is missing at random, and say so in a log alone.
    """
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        check(getattr(pipeline, part) is not None, "pipeline", str(folder), f"cannot be loaded (it has no {part})")
    words = len(pipeline.tokenizer), pipeline.tokenizer.model_max_length
    known = words[0] > 2 and words[1] < 2**16
    check(known, "pipeline", str(folder), "cannot be loaded (its tokenizer has no words, or no length)")
    for part in ("unet", "vae", "text_encoder"):
        held = {_plain(name) for file in (folder / part).glob("*.safetensors") for name in tensor_names(file)}
        missing = sorted({_plain(name) for name in getattr(pipeline, part).state_dict()} - held)
        if part == "vae":  # the names of its attention have changed since Stable Diffusion 1.x was saved
            missing = [name for name in missing if ".attentions." not in name]
        told = f"cannot be loaded (its {part} lacks {len(missing)} tensors, such as {missing[:1]})"
        check(not missing, "pipeline", str(folder), told)


def _plain(name: str) -> str:
    return name.removeprefix("text_model.")


def down_sampling(vae: AutoencoderKL) -> int:
    """Return how many pixels of a side make one latent: every stage of an autoencoder but one halves it."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def image_size(pipeline: StableDiffusionPipeline) -> int:
    """Return the side of the pictures that a pipeline was trained on, in pixels. UserError: they are not square."""
    side = pipeline.unet.config.sample_size
    check(isinstance(side, int), "sample_size", side, "must be one number: the pipeline's pictures must be square")
    return side * pipeline.vae_scale_factor


def at_resolution(pipeline: StableDiffusionPipeline, pixels: int) -> StableDiffusionPipeline:
    """Let `pipeline`, changed in place, draw pictures of `pixels` a side; students cut from it take that on.

    UserError: a size that its latents cannot have.
    """
    whole = max(8, pipeline.vae_scale_factor)  # diffusers refuses what is no multiple of 8
    check(pixels % whole == 0, "resolution", pixels, f"must be a multiple of {whole}")
    pipeline.unet.register_to_config(sample_size=pixels // pipeline.vae_scale_factor)
    return pipeline


def load_clip(name: str | Path = "flora") -> tuple[CLIPModel, CLIPTokenizer]:
    """Load the small CLIP that scores prompt alignment: the one that ships for a data set, or a folder's."""
    folder = shipped(name, "clip")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.config.dataset = dataset_of(name)  # a part of the name that figures through it are printed with
    return model.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder)
