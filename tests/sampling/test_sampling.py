"""Sampling: diffusers' own pipeline draws, every image has its own randomness, folders resume."""

import copy
import csv

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from kdcdiff.data import sources
from kdcdiff.errors import UserError
from kdcdiff.sampling import folder as folders
from kdcdiff.sampling import generate as sampling
from kdcdiff.sampling.folder import generate_to_folder, read_metadata, save_sheet, write

from ..conftest import tiny_pipeline

PROMPTS = [
    "a photo of a rose",
    "a photo of a blue tulip",
    "a photo of a rose",
    "a monarch butterfly",
    "a rose on green",
]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(PROMPTS)


def generate(pipeline, prompts=PROMPTS, **own):
    return sampling.generate(pipeline, prompts, **({"seed": 3, "steps": 3, "progress": False} | own))


@pytest.mark.parametrize("scheduler", [None, "EulerAncestralDiscreteScheduler", "DPMSolverMultistep"])
@pytest.mark.parametrize("guidance,negative", [(5.0, "green"), (1.0, None)])
def test_equals_the_diffusers_pipeline(pipeline, scheduler, guidance, negative):
    ours = generate(pipeline, guidance=guidance, negative_prompt=negative, scheduler=scheduler)
    generators = [sampling.image_generator(3, i) for i in range(len(PROMPTS))]
    own = pipeline.scheduler
    try:
        pipeline.scheduler = sampling.make_scheduler(pipeline, scheduler)
        theirs = pipeline(
            PROMPTS,
            num_inference_steps=3,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
            negative_prompt=None if negative is None else [negative] * len(PROMPTS),
        ).images
    finally:
        pipeline.scheduler = own
    assert ours.dtype == torch.uint8 and ours.shape == (5, 3, 16, 16) and not ours.is_inference()
    assert torch.equal(ours, (theirs * 255).round().to(torch.uint8))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_an_image_does_not_depend_on_its_batch(pipeline, scheduler):
    whole = generate(pipeline, scheduler=scheduler, batch_size=5)
    for size in (1, 2, 4):
        parts = generate(pipeline, scheduler=scheduler, batch_size=size)
        assert (whole.int() - parts.int()).abs().max() <= 1  # the documented tolerance, of 255
    first = generate(pipeline, PROMPTS[:2], scheduler=scheduler)
    assert (whole[:2].int() - first.int()).abs().max() <= 1


def test_seed_prompt_and_place_each_matter(pipeline):
    images = generate(pipeline)
    assert torch.equal(images, generate(pipeline))
    assert not torch.equal(images, generate(pipeline, seed=4))
    assert not torch.equal(images[0], images[2])  # one prompt, two places
    assert not torch.equal(images, generate(pipeline, PROMPTS[::-1]))
    assert not torch.equal(images, generate(pipeline, negative_prompt="a monarch butterfly"))


def test_generators_of_neighbours_are_unrelated():
    draws = torch.stack(
        [torch.randn(500, generator=sampling.image_generator(s, i)) for s in range(4) for i in range(4)]
    )
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.25
    assert torch.equal(
        torch.randn(5, generator=sampling.image_generator(1, 2)),
        torch.randn(5, generator=sampling.image_generator(1, 2)),
    )


def test_every_listed_scheduler_samples(pipeline):
    names = sampling.schedulers(pipeline)
    assert {
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    } <= names.keys()
    before = pipeline.scheduler.timesteps.clone()
    for name in names:
        assert generate(pipeline, PROMPTS[:2], steps=2, scheduler=name).float().std() > 1, name
    assert torch.equal(before, pipeline.scheduler.timesteps)  # the pipeline's own is left alone
    assert type(pipeline.scheduler).__name__ == pipeline.config["scheduler"][1] == "DDIMScheduler"


def test_each_unique_prompt_is_encoded_once(pipeline, monkeypatch):
    encoded, encode = [], pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline,
        "encode_prompt",
        lambda prompt, *own, **named: (encoded.append(prompt), encode(prompt, *own, **named))[1],
    )
    generate(pipeline, batch_size=2)
    assert sorted(p for batch in encoded if batch is not None for p in batch) == sorted({*PROMPTS, ""})


def test_a_picture_is_of_the_size_of_its_pipeline(pipeline):
    parts = pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}
    parts["unet"].register_to_config(sample_size=(4, 8))
    oblong = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    assert generate(oblong, PROMPTS[:1]).shape == (1, 3, 16, 32)


@pytest.mark.parametrize(
    "own,line",
    [
        ({"prompts": []}, "prompts="),
        ({"prompts": "a rose"}, "prompts='a rose'"),
        ({"prompts": ["a rose", None]}, "prompts=None: must be strings"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0: must be a whole number, 1 or more"),
        ({"steps": 1001}, "steps=1001: must be between 1 and 1000"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"scheduler": "Lanczos"}, "scheduler='Lanczos': must be one of DDIMScheduler, "),
    ],
)
def test_bad_input_is_one_clear_line(pipeline, own, line):
    with pytest.raises(UserError) as error:
        generate(pipeline, **own)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.fixture
def broken(pipeline, monkeypatch):
    """The pipeline, its decoder giving NaN for each call's first image and black for its second."""
    decode = pipeline.vae.decode

    def spoilt(latents, return_dict=False):
        pixels = decode(latents, return_dict=False)[0].clone()
        pixels[0, 0, 0, 0] = float("nan")
        pixels[1:2] = -1
        return (pixels,)

    monkeypatch.setattr(pipeline.vae, "decode", spoilt)
    return pipeline


def test_broken_images_are_counted_and_named(broken, tmp_path):
    with pytest.warns(UserWarning) as warned:
        images = generate(broken, batch_size=3)
    assert [str(w.message) for w in warned] == [
        "2 of 5 generated images are not finite: 0, 3",
        "2 of 5 generated images are black: 1, 4",
    ]
    assert [i for i, image in enumerate(images) if image.max() == 0] == [1, 4]
    with pytest.warns(UserWarning, match=r"2 of 5 generated images are (not finite: 000000|black: 000001).png"):
        generate_to_folder(broken, PROMPTS, tmp_path / "a", seed=3, steps=2, batch_size=3, progress=False)
    faults = [row["fault"] for row in read_metadata(tmp_path / "a")]
    assert faults == ["not finite", "black", "", "not finite", "black"]


def test_infinite_pixels_are_found_though_diffusers_would_clamp_them(pipeline, monkeypatch):
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda *own, **named: (decode(*own, **named)[0] * float("inf"),))
    with pytest.warns(UserWarning, match="5 of 5 generated images are not finite"):
        generate(pipeline)


CLASSES = ["rose", "tulip", "rose", "monarch", "rose"]


def to_folder(pipeline, folder, **own):
    settings = {"classes": CLASSES, "seed": 3, "steps": 3, "batch_size": 2, "progress": False} | own
    return generate_to_folder(
        pipeline, own.pop("prompts", PROMPTS), folder, **{k: v for k, v in settings.items() if k != "prompts"}
    )


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_images_and_their_table(pipeline, tmp_path):
    assert to_folder(pipeline, tmp_path) == 5
    rows = list(csv.DictReader((tmp_path / "metadata.csv").open()))
    assert [row["file_name"] for row in rows] == [
        "rose/000000.png",
        "tulip/000001.png",
        "rose/000002.png",
        "monarch/000003.png",
        "rose/000004.png",
    ]
    assert (
        [row["text"] for row in rows] == PROMPTS
        and {row["seed"] for row in rows} == {"3"}
        and {row["scheduler"] for row in rows} == {"DDIMScheduler"}
    )
    wanted = generate(pipeline, batch_size=2)
    for row, image in zip(rows, wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / row["file_name"])), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 4])
def test_a_killed_folder_resumes_to_the_same_bytes(pipeline, tmp_path, monkeypatch, killed_at):
    to_folder(pipeline, tmp_path / "whole")
    save, saved = folders._save_png, []

    def dying(image, path):
        if len(saved) == killed_at:
            raise KeyboardInterrupt
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(folders, "_save_png", dying)
    with pytest.raises(KeyboardInterrupt):
        to_folder(pipeline, tmp_path / "killed")
    monkeypatch.undo()
    assert to_folder(pipeline, tmp_path / "killed") == 5 - killed_at // 2 * 2  # whole batches are kept
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert to_folder(pipeline, tmp_path / "killed") == 0


def test_a_lost_image_and_a_torn_table_are_made_again(pipeline, tmp_path):
    to_folder(pipeline, tmp_path)
    before = files(tmp_path)
    (tmp_path / "rose/000000.png").unlink()
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text()[:-25])
    assert to_folder(pipeline, tmp_path) == 3  # the first batch and the last
    assert files(tmp_path) == before


def test_a_folder_of_other_settings_is_refused(pipeline, tmp_path):
    to_folder(pipeline, tmp_path / "a")
    with pytest.raises(UserError, match=r"steps=3, not 4.*choose another folder"):
        to_folder(pipeline, tmp_path / "a", steps=4)
    with pytest.raises(UserError, match="prompts="):
        to_folder(pipeline, tmp_path / "a", prompts=PROMPTS[::-1])
    with pytest.raises(UserError, match="classes=2: must be one for each of the 5 images"):
        to_folder(pipeline, tmp_path / "b", classes=["rose", "tulip"])


def test_write_wants_as_many_rows_as_images(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="rows=1: must be one for each of the 2 images"):
        write(images, tmp_path, [{"file_name": "a.png", "text": "a"}])
    with pytest.raises(UserError, match="uint8"):
        write(images.float(), tmp_path, [{"file_name": "a.png"}, {"file_name": "b.png"}])


def test_a_sheet_shows_the_same_noise_each_time(pipeline, tmp_path):
    for name in ("a", "b"):
        save_sheet(pipeline, PROMPTS, tmp_path / "sheets" / f"{name}.png")
    assert (tmp_path / "sheets" / "a.png").read_bytes() == (tmp_path / "sheets" / "b.png").read_bytes()
    assert Image.open(tmp_path / "sheets" / "a.png").size == (4 * 18 + 2, 2 * 18 + 2)


def test_the_library_reads_a_generated_folder_with_its_captions(pipeline, tmp_path):
    to_folder(pipeline, tmp_path / "train")
    names = ["monarch", "rose", "tulip"]
    loaded = sources.load_folder(tmp_path, "train", names, per_class=9, size=16, progress=False)
    assert [names[i] for i in loaded.labels] == sorted(CLASSES)
    assert sorted(loaded.captions) == sorted(PROMPTS)
    assert torch.equal(loaded.images[0], generate(pipeline, batch_size=2)[3])
