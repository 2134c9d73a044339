"""The road's stages at smoke: made once, keyed by what they depend on, on flora and on a folder of pictures."""

import pytest
import torch
from PIL import Image

from kdcdiff.data import flora
from kdcdiff.experiments import stages
from kdcdiff.models.pipeline import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five classes of pictures in folders, as a reader's own would be."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count, first in (("train", 9, 0), ("test", 3, 100)):
        for name in flora.BASE[:5]:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(flora.draw(name, first + i, size=96).image).save(root / split / name / f"{i}.png")
    return root


def test_a_student_is_made_once_and_again_only_for_other_weights_of_the_loss(opened):
    run = opened(distill_steps=2, generated_images=2, sampler_steps=2)
    one = stages.student(run, "kdc-described").unet
    two = stages.student(opened(distill_steps=2, generated_images=4, sampler_steps=3), "kdc-described").unet
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert opened.built["student"] == 1 and opened.built["latents"] == 1
    other = stages.student(opened(distill_steps=2, alpha=0.1), "kdc-described").unet
    assert opened.built["student"] == 2 and opened.built["latents"] == 1
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    log = stages.student_log(run, "kdc-described")
    assert log[-1]["step"] == 2 and {"soft", "hard", "feature", "mse"} <= log[-1].keys()


def test_students_that_are_compared_share_one_shorter_budget(opened):
    run = opened(distill_steps=4, comparison_steps=2)
    (
        stages.student(run, "bk-sdm-base"),
        stages.student(run, "bk-sdm-base-random"),
        stages.student(run, "kdc-described"),
    )
    ends = {
        name: stages.student_log(run, name)[-1]["step"]
        for name in ("bk-sdm-base", "bk-sdm-base-random", "kdc-described")
    }
    assert ends == {"bk-sdm-base": 2, "bk-sdm-base-random": 2, "kdc-described": 4}
    teacher = stages.teacher(run).unet
    carried, fresh = (stages.init_student(teacher, name, 0) for name in ("bk-sdm-base", "bk-sdm-base-random"))
    assert torch.equal(carried.conv_in.weight, teacher.conv_in.weight)
    assert fresh.conv_in.weight.shape == teacher.conv_in.weight.shape and not torch.equal(
        fresh.conv_in.weight, teacher.conv_in.weight
    )
    assert torch.equal(fresh.conv_in.weight, stages.init_student(teacher, "bk-sdm-base-random", 0).conv_in.weight)


def test_another_teacher_has_stages_of_its_own(opened, tmp_path):
    pipeline = load_pipeline()
    for weight in pipeline.unet.parameters():
        weight.data *= 1.02
    pipeline.save_pretrained(tmp_path / "other", safe_serialization=True)
    sizes = {"generated_images": 2, "sampler_steps": 2}
    shipped, other = (
        stages.generated(opened(**sizes, **own), "teacher") for own in ({}, {"teacher": str(tmp_path / "other")})
    )
    assert opened.built["generated"] == 2 and not torch.equal(shipped.images, other.images)


def test_generated_pictures_carry_what_they_were_asked_to_be(opened):
    run = opened(generated_images=2, sampler_steps=2)
    pictures = stages.generated(run, "teacher")
    assert pictures.images.shape == (2 * len(flora.BASE), 3, 64, 64)
    assert [pictures.classes[k] for k in pictures.labels[::2].tolist()] == list(flora.BASE)
    assert all(name in text for name, text in zip(flora.BASE, pictures.captions[::2], strict=True))
    assert torch.equal(stages.generated(run, "teacher").images, pictures.images) and opened.built["generated"] == 1


def test_a_folder_of_pictures_gets_a_teacher_and_a_judge_of_its_own(opened, folder):
    run = opened(str(folder), autoencoder_steps=2, teacher_steps=2, classifier_steps=4, distill_steps=2)
    where = run.source
    assert (len(where.base), len(where.novel)) == (3, 2)
    assert stages.classifier(run).classes == where.classes
    own, shipped = stages.teacher(run), stages.teacher(opened())
    assert not torch.equal(own.unet.conv_in.weight, shipped.unet.conv_in.weight)
    assert not torch.equal(own.vae.decoder.conv_in.weight, shipped.vae.decoder.conv_in.weight)
    assert set(stages.latents(run).labels.tolist()) == {0, 1, 2, 3, 4}
    student = stages.student(run, "kdc-described")
    assert torch.equal(student.vae.decoder.conv_in.weight, own.vae.decoder.conv_in.weight)
    assert stages.clip(run)[0].config.projection_dim == 64
    assert opened.built["teacher"] == 1 and opened.built["classifier"] == 1 and opened.built["clip"] == 1


def test_the_autoencoder_stage_gives_back_as_many_pictures(opened):
    run = opened()
    test = stages.images(run, "test")
    back = stages.reconstructed(run, test)
    assert back.images.shape == test.images.shape and torch.equal(back.labels, test.labels)
    assert 0 <= stages.accuracy(run, back).value <= 1
