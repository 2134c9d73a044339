"""What several test files need: quiet kernels, and small books to run and render."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from kdcdiff.book.toc import slug
from kdcdiff.experiments.executors import EXECUTOR
from kdcdiff.models.pipeline import SCHEDULER, train_tokenizer
from kdcdiff.process import DEVICE

REPO = Path(__file__).resolve().parent.parent
PARAMETERS = """\
profile: str = "mini"  # smoke, mini, full or paper
dataset: str = "flora"  # flora, oxford-102 or an image folder
seed: int = 0  # all randomness follows from it
artifacts: str = "artifacts"  # the store"""
OPEN = """\
from kdcdiff.book.chapter import open_chapter
from kdcdiff.book.toc import slug
settings = dict(profile=profile, dataset=dataset, seed=seed, artifacts=artifacts)
chapter = open_chapter("{name}", **settings{own})"""


def tiny_pipeline(prompts: Sequence[str]) -> StableDiffusionPipeline:
    """A Stable-Diffusion pipeline of the smallest sizes: 16x16 images, seeded random weights, words of `prompts`."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(prompts, size=560)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        vocab_size=len(tokenizer),
        **special,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    parts = {
        "vae": vae,
        "unet": unet,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(**SCHEDULER),
    }
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings that steer a run from outside."""
    for name in ("KDCDIFF_PROFILE", "KDCDIFF_ARTIFACTS", "KDCDIFF_RESULTS", "KDCDIFF_SIZES", DEVICE, EXECUTOR):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


LIGHT = "settings = (profile, dataset, seed, artifacts)"  # reads the parameters without importing torch


def write_notebook(path: Path, cells: list[str], parameters: str = "", own: str = "", light: bool = False) -> Path:
    """Write a chapter: a title, the parameters cell, `open_chapter`, then `cells`; `md:` before one: prose."""
    made = [
        nbformat.v4.new_markdown_cell(f"# Chapter {path.stem}"),
        nbformat.v4.new_code_cell(f"{PARAMETERS}\n{parameters}".strip(), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(LIGHT if light else OPEN.format(name=slug(path), own=own)),
    ]
    for text in cells:
        prose = text.startswith("md:")
        made.append(nbformat.v4.new_markdown_cell(text[3:]) if prose else nbformat.v4.new_code_cell(text))
    kernel = {"name": "kdcdiff", "display_name": "kdcdiff", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def write_book(root: Path, chapters: dict[str, list[str]], **options: Any) -> Path:
    """Write a book of notebooks given as {file's stem: cells} to `root`, with this project's settings; return it."""
    for name, cells in chapters.items():
        write_notebook(root / "notebooks" / f"{name}.ipynb", cells, **options)
    shutil.copytree(REPO / "book" / "_static", root / "book" / "_static", dirs_exist_ok=True)
    shutil.copy(REPO / "_config.yml", root)
    (root / "book" / "references.bib").write_text("@misc{kdc, title={A title}, author={An Author}, year=2025}\n")
    (root / "book" / "intro.md").write_text("# A small book\n\nWords.\n")
    (root / "book" / "status.md").write_text("# Status\n\n<!-- chapters -->\n\n<!-- stages -->\n")
    files = [f"notebooks/{name}" for name in chapters] + ["book/status"]
    entries = "\n".join(f"      - file: {file}" for file in files)
    toc = f"format: jb-book\nroot: book/intro\nparts:\n  - caption: All\n    chapters:\n{entries}\n"
    (root / "_toc.yml").write_text(toc)
    return root


@pytest.fixture
def small_book(tmp_path: Path) -> Callable[..., Path]:
    """Makes a book as `write_book` has it; returns its folder."""
    return partial(write_book, tmp_path / "book-folder")


@pytest.fixture
def opened(tmp_path):
    """Opens a run at smoke over one store; `opened.built` counts the stages that were made."""
    from kdcdiff.experiments.run import open_run

    built: Counter[str] = Counter()

    def make(dataset: str = "flora", **sizes):
        heard = {"on_use": lambda artifact, new: built.update([artifact.stage] * new), "say": lambda line: None}
        return open_run("smoke", dataset, 0, tmp_path / "artifacts", **heard, **sizes)

    make.built = built
    return make
