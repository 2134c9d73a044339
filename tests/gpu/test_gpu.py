"""On a GPU, in half precision, everything ends where it ends on a CPU in single precision, within stated tolerances.

`make test-gpu` runs these on a GPU. The ordinary suite runs the same bodies on the CPU, which then computes in bfloat16
as a GPU does: so the tolerances are those of the arithmetic, and none of this is left unused where there is no GPU.
"""

from __future__ import annotations

import signal

import pytest
import torch
from torch import Tensor

from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import decode, encode_set
from kdcdiff.experiments import stages
from kdcdiff.experiments.continual import class_by_class
from kdcdiff.experiments.run import open_run
from kdcdiff.sampling import generate as sampling

from ..pipelines import SIZES, make
from .training import PROMPTS, STEPS, killed, trained

ENCODED = 0.02  # relative distance of latents and prompts
DRAWN = 4.0  # mean difference of a picture's values, of 255
LOSS = 0.02  # relative difference of a step's loss
MOVED = 0.4  # relative distance of how far the weights went: AdamW's first steps know a gradient's sign alone
RESUMED = 0.1  # the same, of a run that was killed: kernels of a GPU add in any order; on a CPU it is 0


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU: `make test-gpu` on one"),
            ],
        ),
    ]
)
def device(request, monkeypatch):
    """A GPU, or the CPU in a GPU's precision."""
    if request.param == "cpu":
        for place in ("kdcdiff.process", "kdcdiff.training.loop"):
            monkeypatch.setattr(f"{place}.compute_dtype", lambda device: torch.bfloat16)
    return request.param


def distance(seen: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over that of `wanted`."""
    return ((seen.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.fixture(scope="module")
def reference():
    """On the CPU in single precision: pictures, their encoding, the pictures that it decodes to, others drawn."""
    pipeline, side = make("sd-1", PROMPTS), SIZES["sd-1"].pixels
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = ImageSet(images, torch.arange(2), tuple(PROMPTS), ("rose", "iris"))
    cache = encode_set(pipeline, pictures)
    drawn = sampling.generate(pipeline, PROMPTS, progress=False, seed=0, steps=3, guidance=4.0)
    return pictures, cache, decode(pipeline.vae, cache.mean), drawn


def test_what_is_encoded_and_decoded(device, reference):
    pictures, wanted, decoded, _ = reference
    pipeline = make("sd-1", PROMPTS).to(device)
    cache = encode_set(pipeline, pictures)
    for name in ("mean", "std", "prompts"):
        own = getattr(cache, name)
        assert own.device.type == "cpu" and own.dtype == torch.float32
        assert distance(own, getattr(wanted, name)) < ENCODED, name
    again = decode(pipeline.vae, wanted.mean)
    assert again.device.type == "cpu" and (again.float() - decoded.float()).abs().mean() < DRAWN


def test_what_is_drawn(device, reference):
    pipeline = make("sd-1", PROMPTS).to(device)
    images = sampling.generate(pipeline, PROMPTS, progress=False, seed=0, steps=3, guidance=4.0)
    assert images.device.type == "cpu" and (images.float() - reference[3].float()).abs().mean() < DRAWN


def test_what_is_learnt(device):
    wanted, losses = trained("cpu", "no")
    moved, own = trained(device, "bf16")
    assert own == pytest.approx(losses, rel=LOSS) and len(own) == STEPS
    assert distance(moved, wanted) < MOVED


def test_what_is_learnt_by_a_run_that_was_killed(device, tmp_path):
    whole, losses = trained(device, "bf16")
    assert killed(device, "bf16", tmp_path) == -signal.SIGKILL
    assert [f.name for f in (tmp_path / "checkpoint").glob("*.safetensors")] == ["step-0000002.safetensors"]
    moved, own = trained(device, "bf16", tmp_path)
    assert distance(moved, whole) <= (RESUMED if device == "cuda" else 0)
    assert own == pytest.approx(losses, rel=LOSS)


def test_a_small_road(device, tmp_path):
    """Pictures, latents, a student, two classes learnt with replay, and pictures again, by the book's own stages."""
    make("sd-1", PROMPTS).save_pretrained(tmp_path / "teacher")
    sizes = {
        "teacher": str(tmp_path / "teacher"), "distill_steps": 2, "generated_images": 2, "sampler_steps": 2,
        "train_images": 8, "test_images": 2, "continual_steps": 1, "continual_sampler_steps": 1, "continual_images": 4,
    }  # fmt: skip
    run = open_run("smoke", "flora", 0, tmp_path / "artifacts", device=device, say=lambda line: None, **sizes)
    drawn = stages.generated(run, run.profile.variant)
    learnt = class_by_class(run, "latent-replay")
    assert drawn.images.shape[1:] == (3, 32, 32) and 0 <= stages.accuracy(run, drawn).value <= 1
    assert learnt.images.shape[:3] == (2, 2, 4) and learnt.memory > 0
    made = [entry for entry in run.store.root.glob("*/manifest.json")]
    assert len(made) >= 4 and all(f'"device": "{device}' in entry.read_text() for entry in made)
