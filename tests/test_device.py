"""Everything follows the networks' device: a tensor that stayed behind on the CPU stops these tests at once.

No GPU is needed. Under torch's fake tensors nothing is computed, and each operation checks the devices of what it is
given as a GPU would, here those of networks on the meta device. What reads a value (`item`, `tolist`) ends such a run,
so each test looks at how far it came.
"""

import argparse
import os
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from kdcdiff import process, provenance
from kdcdiff.cli import arguments
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode_set
from kdcdiff.models import surgery
from kdcdiff.sampling import attention
from kdcdiff.sampling import generate as sampling
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import BKSDMLoss, KDCLoss

from .pipelines import make

PROMPTS = ["a photo of a rose", "a photo of an iris"]


STEPS = {501: torch.tensor(501), 1: torch.tensor(1)}  # timesteps whose values are known without being read


class Known(DDIMScheduler):
    """Samples at `STEPS`: a scheduler reads the value of a timestep, and a fake one has none."""

    def set_timesteps(self, num_inference_steps, device=None):
        self.num_inference_steps, self.timesteps = num_inference_steps, list(STEPS.values())

    def step(self, model_output, timestep, sample, **named):
        value = next(value for value, known in STEPS.items() if known is timestep)
        return super().step(model_output, value, sample, **named)


@pytest.fixture(scope="module")
def scheduler():
    return Known(prediction_type="v_prediction", clip_sample=False)


@pytest.fixture
def elsewhere(scheduler, monkeypatch):
    """A pipeline whose networks are not on the CPU. They lie where they belong: what moves or casts one does nothing,
    for torch cannot exchange a fake parameter."""
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda self, fn, recurse=True: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("meta"):
            pipeline = make("flora", PROMPTS)
        pipeline.scheduler = scheduler
        yield pipeline


def pictures(side=32):
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    return ImageSet(images, torch.arange(2), tuple(PROMPTS), ("rose", "iris"))


def test_a_stray_tensor_would_be_seen(elsewhere):
    with pytest.raises(FakeTensorDeviceMismatchError):
        elsewhere.vae.decode(torch.zeros(1, 8, 4, 4))


def test_what_is_encoded_comes_back_to_the_cpu(elsewhere):
    cache = encode_set(elsewhere, pictures())
    assert cache.mean.shape == cache.std.shape == (2, 8, 4, 4) and cache.prompts.shape == (3, 32, 8)
    for tensor in (cache.mean, cache.std, cache.prompts):
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32


class FarEnough(Exception):
    """All of a step has been worked out, up to the update itself, which is torch's."""


@pytest.mark.parametrize("objective", [KDCLoss(), BKSDMLoss()])
def test_a_training_step_stays_where_the_student_lies(elsewhere, objective, monkeypatch):
    cache = encode_set(elsewhere, pictures())
    teacher, student = elsewhere.unet, surgery.shrink(elsewhere.unet, "kdc-described").requires_grad_(True)

    def stop(*_):
        assert {p.grad.device.type for p in student.parameters()} == {"meta"}
        raise FarEnough

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(FarEnough):
        distill(
            student, teacher, cache, elsewhere.scheduler, objective, steps=1, batch=2, ema=0.9, snr_gamma=5.0,
            describe="",
        )  # fmt: skip


def test_a_picture_is_drawn_where_the_pipeline_lies(elsewhere):
    decoded, decode = [], elsewhere.vae.decode
    elsewhere.vae.decode = lambda *own, **named: decoded.append(decode(*own, **named)) or decoded[-1]
    with pytest.raises(DataDependentOutputException):  # whether it is finite
        sampling.generate(elsewhere, PROMPTS, progress=False, seed=0, steps=2, guidance=4.0)
    ((images,),) = decoded
    assert images.shape == (2, 3, 32, 32) and images.device.type == "meta"


def test_attention_on_given_pictures(elsewhere):
    maps = attention.of_images(elsewhere, pictures().images, PROMPTS, ["rose", "iris"], seed=0)
    assert maps.shape == (2, 1, 32, 32) and maps.device.type == "cpu"


# --- where it is decided -------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is one."""
    about = SimpleNamespace(bf16=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: about.bf16)
    return about


def test_one_place_decides_and_what_is_started_knows(gpu):
    assert process.use_device() == "cuda"
    assert process.use_device("cpu") == "cpu" == process.use_device() == os.environ[process.DEVICE], "it stays"
    assert arguments.device_of(argparse.Namespace(device=None)) == "cpu"
    assert arguments.device_of(argparse.Namespace(device="cuda")) == "cuda" == os.environ[process.DEVICE]


def test_provenance_names_what_was_used_and_not_what_is_there(gpu):
    assert provenance.device_name() == "cuda (A GPU, bfloat16)"
    process.use_device("cpu")
    assert provenance.device_name() == "cpu"


def test_the_dtype_follows_the_device(gpu):
    assert process.compute_dtype("cpu") == process.compute_dtype(torch.device("meta")) == torch.float32
    assert process.compute_dtype("cuda:1") == torch.bfloat16
    gpu.bf16 = False
    assert process.compute_dtype("cuda") == torch.float16
    with process.computing("cpu"):
        assert not torch.is_autocast_enabled("cpu")
