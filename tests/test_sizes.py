"""Any size: three pipelines of other pixels, latents, prompts and predictions go the whole road.

Encoding, surgery, a training step, a drawing, and the commands that lead there.
"""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.nn import functional as F

from kdcdiff import cli
from kdcdiff.data.image_set import ImageSet, resize
from kdcdiff.data.latents import decode, denoising_batch, encode_set
from kdcdiff.errors import UserError
from kdcdiff.metrics import extractors
from kdcdiff.models import surgery
from kdcdiff.models.classifier import Classifier, load_classifier, save_classifier
from kdcdiff.models.noise import noised, velocity
from kdcdiff.models.pipeline import at_resolution, image_size, load_pipeline
from kdcdiff.models.unet_files import read_resolution
from kdcdiff.sampling import generate as sampling
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import KDCLoss

from .pipelines import SIZES, make

PROMPTS = ["a photo of a rose", "a photo of an iris"]


@pytest.fixture(scope="module", params=SIZES)
def pipeline(request):
    return make(request.param, PROMPTS)


@pytest.fixture(scope="module")
def sizes(pipeline):
    return next(own for own in SIZES.values() if own.scheduler is type(pipeline.scheduler))


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "teacher"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two class folders of pictures of no particular size."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 8), ("test", 1)):
        for name, colour in (("rose", "red"), ("iris", "blue")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 33), colour).save(root / split / name / f"{i}.png")
    return root


def test_pictures_latents_and_prompts_have_the_pipelines_sizes(pipeline, sizes, saved):
    assert image_size(pipeline) == read_resolution(saved) == sizes.pixels
    images = torch.randint(256, (2, 3, sizes.pixels, sizes.pixels), dtype=torch.uint8)
    cache = encode_set(pipeline, ImageSet(images, torch.arange(2), tuple(PROMPTS), ("rose", "iris")))
    assert cache.mean.shape == cache.std.shape == (2, sizes.latents, sizes.side, sizes.side)
    assert cache.prompts.shape == (3, sizes.tokens, sizes.text)
    assert decode(pipeline.vae, cache.mean).shape == images.shape

    student = surgery.shrink(pipeline.unet, "kdc-described").requires_grad_(True)
    before = student.conv_in.weight.detach().clone()
    log = distill(
        student, pipeline.unet, cache, pipeline.scheduler, KDCLoss(), steps=1, batch=2, lr=1e-3, snr_gamma=5.0,
        describe="",
    )  # fmt: skip
    assert log[-1]["loss"] > 0 and not torch.equal(student.conv_in.weight, before)


def test_it_draws_at_its_own_size_and_at_another(pipeline, sizes):
    own = sampling.generate(pipeline, PROMPTS[:1], progress=False, seed=0, steps=2)
    assert own.shape == (1, 3, sizes.pixels, sizes.pixels)
    larger = sampling.generate(pipeline, PROMPTS[:1], progress=False, seed=0, steps=2, resolution=40)
    assert larger.shape == (1, 3, 40, 40)
    with pytest.raises(UserError, match="resolution=20: must be a multiple of 8"):
        sampling.generate(pipeline, PROMPTS[:1], progress=False, seed=0, steps=2, resolution=20)


def test_the_commands_take_the_teachers_size_or_the_one_asked_for(pipeline, sizes, saved, photographs, tmp_path):
    words = ["--data", str(photographs), "--classes", "rose", "iris", "--per-class", "2", "--device", "cpu"]
    asked = [] if sizes.prediction == "epsilon" else ["--resolution", "40"]
    words = ["distill", "--teacher", str(saved), *words, *asked, "--steps", "1", "--batch", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "student")]) == 0
    student = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    pixels = 40 if asked else sizes.pixels
    assert student(PROMPTS[0], num_inference_steps=1, output_type="np").images.shape == (1, pixels, pixels, 3)
    assert f"{pixels} pixels a side" in (tmp_path / "student" / "README.md").read_text()
    assert cli.main(["shrink", str(saved), "--variant", "bk-sdm-base", "--out", str(tmp_path / "cut")]) == 0
    assert image_size(load_pipeline(tmp_path / "cut")) == sizes.pixels


def test_the_forward_process_does_not_ask_the_scheduler_how_it_samples(pipeline, sizes):
    """Euler's own `add_noise` scales by sigma, and PNDM has no velocity: training knows neither."""
    clean, noise = torch.randn(2, 3, 4, 4, 4)
    t = torch.tensor([3, 500, 990])
    kept = pipeline.scheduler.alphas_cumprod[t].view(3, 1, 1, 1)
    noisy = noised(pipeline.scheduler, clean, noise, t)
    assert torch.allclose(noisy, kept**0.5 * clean + (1 - kept) ** 0.5 * noise)
    assert torch.allclose(velocity(pipeline.scheduler, clean, noise, t), kept**0.5 * noise - (1 - kept) ** 0.5 * clean)
    cache = encode_set(
        pipeline,
        ImageSet(torch.zeros(2, 3, sizes.pixels, sizes.pixels, dtype=torch.uint8), torch.zeros(2), PROMPTS, ("a",)),
    )
    batch = denoising_batch(cache, torch.arange(2), pipeline.scheduler, torch.Generator().manual_seed(0))
    assert batch.noisy.shape == batch.target.shape and (batch.noisy.std() < 10)


def test_a_size_that_latents_cannot_have_is_refused(pipeline):
    before = pipeline.unet.config.sample_size
    with pytest.raises(UserError, match="resolution=63: must be a multiple of 8"):
        at_resolution(pipeline, 63)
    assert pipeline.unet.config.sample_size == before


# --- judges have a size of their own -------------------------------------------------------------------------


def test_a_classifier_sees_every_picture_at_its_own_size_and_says_so(tmp_path):
    torch.manual_seed(0)
    model = Classifier(["a", "b"], side=16)
    large = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    small = F.interpolate(large.float() / 255, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(model(large), model(small), atol=1e-5)
    assert extractors.features(model).name == "own classifier at 16 px"
    save_classifier(model, tmp_path)
    assert load_classifier(tmp_path).side == 16
    assert load_classifier().side is None and extractors.features(load_classifier()).name == "flora classifier"


def test_pictures_are_resized_as_a_whole():
    images = torch.randint(256, (3, 3, 20, 20), dtype=torch.uint8)
    own = ImageSet(images, torch.zeros(3), ("", "", ""), ("a",))
    assert own.resized(20) is own and own.resized(8).images.shape == (3, 3, 8, 8)
    assert resize(images, 8).dtype == torch.uint8


def test_a_unet_that_is_not_square_is_refused(tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path)
    UNet2DConditionModel.from_config(pipeline.unet.config | {"sample_size": [4, 8]}).save_config(tmp_path / "unet")
    with pytest.raises(UserError, match="must be square"):
        read_resolution(tmp_path)
