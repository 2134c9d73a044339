"""Picture sources: flora, image folders, Oxford-102; and what a bad folder is told."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from kdcdiff.data import flora, sources
from kdcdiff.data.image_set import ImageSet, caption_of
from kdcdiff.errors import UserError


def write_images(folder: Path, count: int, colour: int = 128, size: tuple[int, int] = (90, 70)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(colour)
    for i in range(count):
        pixels = rng.integers(0, colour + 1, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")


@pytest.fixture
def folder(tmp_path) -> Path:
    for k, name in enumerate(("red admiral", "orange tip", "peacock", "small_copper", "wall")):
        write_images(tmp_path / "train" / name, 10, 60 + 40 * k)
        write_images(tmp_path / "valid" / name, 3, 60 + 40 * k)
    return tmp_path


# --- flora ---------------------------------------------------------------------------------------------------


def test_flora_train_and_test_share_no_picture():
    train = sources.load_flora("train", ("daisy", "rose"), 8, progress=False)
    test = sources.load_flora("test", ("daisy", "rose"), 8, progress=False)
    assert train.images.shape == (16, 3, 64, 64) and train.labels.tolist() == [0] * 8 + [1] * 8
    assert torch.cdist(train.images.flatten(1).float(), test.images.flatten(1).float()).min() > 0


def test_a_picture_set_survives_the_disk(tmp_path):
    made = sources.load_flora("train", ("daisy", "morpho"), 3, progress=False)
    made.save(tmp_path)
    back = ImageSet.load(tmp_path)
    assert torch.equal(back.images, made.images) and torch.equal(back.masks, made.masks)
    assert (back.captions, back.classes) == (made.captions, made.classes)


def test_of_classes_keeps_labels_and_captions_together():
    part = sources.load_flora("train", ("daisy", "rose", "morpho"), 3, progress=False).of_classes(["morpho", "daisy"])
    assert part.labels.tolist() == [0, 0, 0, 2, 2, 2] and part.classes == ("daisy", "rose", "morpho")
    assert all(part.classes[k] in caption for k, caption in zip(part.labels.tolist(), part.captions, strict=True))
    with pytest.raises(UserError, match="class='tulip': must be one of daisy, rose, morpho"):
        part.of_classes(["tulip"])


def test_the_first_pictures_of_each_class():
    labels = torch.tensor([2, 0, 2, 0, 2, 1])
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2)
    pictures = ImageSet(images, labels, tuple("abcdef"), ("x", "y", "z"))
    two = pictures.first(2)
    assert two.labels.tolist() == [0, 0, 1, 2, 2] and two.captions == ("b", "d", "f", "a", "c")
    assert two.images[:, 0, 0, 0].tolist() == [1, 3, 5, 0, 2] and two.classes == pictures.classes


def test_flora_as_a_source():
    source = sources.open_source("flora")
    assert (source.base, source.novel) == (
        flora.BASE,
        flora.NOVEL,
    ) and source.classes == flora.BASE + flora.NOVEL
    assert source.checksum() == sources.open_source("flora", seed=3).checksum()
    part = source.load("train", ("daisy", "rose"), 2, size=32)
    assert part.images.shape == (4, 3, 32, 32) and part.masks.shape == (4, 32, 32)


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_splits_its_classes_into_base_and_novel(folder):
    source = sources.open_source(str(folder))
    assert source.base == ("orange tip", "peacock", "red admiral") and source.novel == (
        "small_copper",
        "wall",
    )
    fewer = sources.open_source(str(folder), classes=4)
    assert fewer.classes == ("orange tip", "peacock", "red admiral", "small_copper")
    images = source.load("train", source.classes, 6, size=64)
    assert images.images.shape == (30, 3, 64, 64) and images.images.dtype == torch.uint8
    assert images.captions[0] == "a photo of an orange tip" and images.captions[-7] == "a photo of a small copper"
    assert len(source.load("test", source.base, 100, size=64)) == 9
    assert source.load("test", source.novel, 1, size=80).images.shape == (2, 3, 80, 80)


def test_a_class_folder_may_be_a_link(folder):
    (folder / "train" / "wall").rename(folder / "elsewhere")
    (folder / "train" / "wall").symlink_to(folder / "elsewhere")
    assert "wall" in sources.folder_classes(folder)
    assert len(sources.load_folder(folder, "train", ["wall"], 100, size=64)) == 10


def test_only_pictures_count_for_the_checksum(folder):
    before = sources.open_source(str(folder)).checksum()
    (folder / "train" / "wall" / "notes.txt").write_text("words")
    (folder / "train" / "wall" / ".thumbnails").mkdir()
    assert sources.open_source(str(folder)).checksum() == before


def test_captions_of_the_imagefolder_convention(folder):
    with open(folder / "train" / "metadata.csv", "w", newline="") as f:
        csv.writer(f).writerows([("file_name", "text"), ("peacock/000.jpg", "four eyes on a leaf")])
    captions = sources.load_folder(folder, "train", ["peacock"], 2, size=64).captions
    assert captions == ("four eyes on a leaf", "a photo of a peacock")
    (folder / "train" / "metadata.csv").write_text("file_name,class\npeacock/000.jpg,peacock\n")
    with pytest.raises(UserError, match="^metadata.csv='.*metadata.csv': needs the columns file_name and text$"):
        sources.load_folder(folder, "train", ["peacock"], 2, size=64)


def test_one_unreadable_image_is_named_and_skipped(folder, capsys):
    write_images(folder / "train" / "wall", 30)
    (folder / "train" / "wall" / "007.jpg").write_bytes(b"not an image")
    images = sources.load_folder(folder, "train", ["wall"], 100, size=64)
    assert len(images) == 29 and len(images.captions) == 29
    assert "skipped 1 of 30 images that cannot be read: train/wall/007.jpg" in capsys.readouterr().out


def test_many_unreadable_images_are_refused(folder):
    for i in (1, 2):
        (folder / "train" / "wall" / f"00{i}.jpg").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"2 of 10 images cannot be read \(train/wall/001.jpg, train/wall/002.jpg\); at most 5% may be",
    ):
        sources.load_folder(folder, "train", ["wall"], 100, size=64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: [f.unlink() for f in list((root / "train" / "wall").iterdir())[3:]],
         "class='wall': needs at least 8 training images, has 3"),
        (lambda root: (root / "train").rename(root / "learn"), "has no folder train of class folders"),
        (lambda root: (root / "valid").rename(root / "other"), "has no folder test or valid"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_serve_is_told_why(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        sources.open_source(str(folder))


def test_a_missing_folder_and_a_wrong_class_count(folder, tmp_path):
    with pytest.raises(UserError, match="must be flora, garden, oxford-102 or an existing image folder"):
        sources.open_source(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="classes=9: must be between 4 and 5"):
        sources.open_source(str(folder), classes=9)


def test_the_checksum_of_a_folder_changes_with_its_files(folder):
    source = sources.open_source(str(folder))
    before = source.checksum()
    assert source.checksum() == before
    write_images(folder / "train" / "wall", 11)
    assert sources.open_source(str(folder)).checksum() != before


def test_a_folder_keeps_its_checksum_wherever_and_whenever_it_is_copied(folder, tmp_path):
    copied = tmp_path / "moved" / folder.name
    shutil.copytree(folder, copied, copy_function=shutil.copyfile)
    assert sources.open_source(str(copied)).checksum() == sources.open_source(str(folder)).checksum()


# --- Oxford-102 ----------------------------------------------------------------------------------------------


def test_oxford_102_becomes_an_image_folder_in_the_official_splits(tmp_path, monkeypatch):
    """The real files' layout in small; only their checksums and the download are left out."""
    base = tmp_path / "flowers-102"
    write_images(base / "jpg", 36)
    for i in range(36):
        (base / "jpg" / f"{i:03d}.jpg").rename(base / "jpg" / f"image_{i + 1:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.arange(36) % 3 + 1})
    savemat(
        base / "setid.mat",
        {"trnid": np.arange(1, 13), "valid": np.arange(13, 25), "tstid": np.arange(25, 37)},
    )
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    monkeypatch.setattr(Flowers102, "download", lambda self: None)
    folder = sources.oxford_102(tmp_path)
    assert sources.oxford_102(tmp_path) == folder
    names = sources.folder_classes(folder, least=8)
    assert len(names) == 3 and "pink primrose" in names
    assert (
        len(sources.load_folder(folder, "train", names, 100, size=64)) == 24
        and len(sources.load_folder(folder, "test", names, 100, size=64)) == 12
    )


def test_oxford_102_without_a_network_says_so(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(Flowers102, "download", fail)
    with pytest.raises(UserError, match="dataset='oxford-102': cannot be downloaded to .* .no network."):
        sources.oxford_102(tmp_path)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("RED ADMIRAL", "a photo of a red admiral"),
        ("orange-tip", "a photo of an orange tip"),
        ("rose", "a photo of a rose"),
    ],
)
def test_the_caption_template(name, caption):
    assert caption_of(name) == caption


def test_views_are_the_pictures_and_seeded_crops_of_them():
    pictures = sources.open_source("flora").load("train", ("daisy", "rose"), 3, size=64)
    views = pictures.views(3, seed=1)
    assert len(views) == 18 and views.captions == pictures.captions * 3 and views.masks is None
    assert torch.equal(views.images[:6], pictures.images) and torch.equal(views.labels, pictures.labels.repeat(3))
    distance = (views.images[6:12].float() - pictures.images.float()).abs().mean((1, 2, 3))
    mirrored = (views.images[6:12].float() - pictures.images.flip(-1).float()).abs().mean((1, 2, 3))
    assert (distance > 0).all() and (torch.minimum(distance, mirrored) < 30).all()
    assert torch.equal(views.images, pictures.views(3, seed=1).images)
    assert not torch.equal(views.images, pictures.views(3, seed=2).images)
    assert torch.equal(pictures.views(1, seed=0).images, pictures.images)
    with pytest.raises(UserError, match="views=0: must be 1 or more"):
        pictures.views(0, seed=0)
