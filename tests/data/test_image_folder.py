"""Folders of pictures: decoding, the table, and streaming in order with bounded memory."""

import csv
import threading

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from kdcdiff.data import image_folder
from kdcdiff.data.image_folder import ImageFolder, column_of, image_files, read_image, read_metadata
from kdcdiff.errors import UserError


def noise(n: int, seed: int = 0, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def save(image: np.ndarray, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two class folders, with a table in the order of their making."""
    rows = [("file_name", "text", "class")]
    for i, image in enumerate(noise(12)):
        name = ("rose", "tulip")[i % 2]
        save(image, tmp_path / name / f"{i:03d}.png")
        rows.append((f"{name}/{i:03d}.png", f"a {name}, number {i}", name))
    with (tmp_path / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return tmp_path


# --- one picture ---------------------------------------------------------------------------------------------


def test_a_picture_is_read_as_it_is_or_as_its_centre_square(tmp_path):
    image = noise(1)[0, :, :12].copy()
    image[2:14] = [10, 200, 30]
    save(image, tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    assert np.array_equal(read_image(tmp_path / "a.png", 12), image[2:14])
    assert read_image(tmp_path / "a.png", 6).shape == (6, 6, 3)
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), image[..., :1].repeat(3, 2))


@pytest.mark.parametrize("how", ["empty", "cut", "not a picture", "missing", "too large", "wordless"])
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, how):
    path = tmp_path / "a.png"
    save(noise(1, side=64)[0], path)
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif how == "not a picture":
        path.write_text("no picture")
    elif how == "missing":
        path.unlink()
    elif how == "too large":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    elif how == "wordless":
        monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    with pytest.raises(UserError, match=r"^image='.*a.png': cannot be read \(.+\)$"):
        read_image(path)


# --- the table -----------------------------------------------------------------------------------------------


def test_rows_without_their_image_and_a_torn_last_row_are_left_out(folder):
    table = folder / "metadata.csv"
    assert len(read_metadata(folder)) == 12
    table.write_text(table.read_text()[:-8])
    (folder / "rose" / "000.png").unlink()
    rows = read_metadata(folder)
    assert [row["file_name"] for row in rows] == [f"{('rose', 'tulip')[i % 2]}/{i:03d}.png" for i in range(1, 11)]
    assert column_of(rows, "caption", "text")["tulip/001.png"] == "a tulip, number 1"
    assert column_of(rows, "prompt") is None and column_of([], "text") is None


def test_a_folder_without_a_table_an_empty_one_and_one_that_names_no_files(tmp_path):
    assert read_metadata(tmp_path) == []
    (tmp_path / "metadata.csv").write_text("")
    assert read_metadata(tmp_path) == []
    (tmp_path / "metadata.csv").write_text("picture,text\na.png,a rose\n")
    with pytest.raises(UserError, match="^metadata.csv='.*metadata.csv': needs the columns file_name and text$"):
        read_metadata(tmp_path)


def test_a_parquet_table_says_what_a_csv_table_does(folder):
    rows = read_metadata(folder)
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"width": [16] * 12}
    (folder / "metadata.csv").unlink()
    parquet.write_table(pyarrow.table(columns | {"text": [None, *columns["text"][1:]]}), folder / "metadata.parquet")
    assert read_metadata(folder) == [rows[0] | {"text": ""}, *rows[1:]], "its columns of text are read"
    parquet.write_table(pyarrow.table(columns | {"text": ["x" * 50_000] * 12}), folder / "metadata.parquet")
    with pytest.raises(UserError, match="^metadata.parquet='.*': has 50,000 bytes in a field; at most 40,000"):
        read_metadata(folder)


# --- streaming -----------------------------------------------------------------------------------------------


def test_a_folder_reads_back_in_order_whatever_the_batch(folder):
    whole = torch.cat(list(ImageFolder(folder)))
    images = torch.from_numpy(noise(12)).permute(0, 3, 1, 2)
    assert len(ImageFolder(folder)) == 12
    assert torch.equal(whole, torch.cat([images[0::2], images[1::2]]))  # rose/..., then tulip/...
    small = ImageFolder(folder, batch_size=5)
    for _ in range(2):
        parts = list(small)
        assert [len(part) for part in parts] == [5, 5, 2] and torch.equal(torch.cat(parts), whole)
    assert small.prompts() == [f"a rose, number {i}" for i in range(0, 12, 2)] + [
        f"a tulip, number {i}" for i in range(1, 12, 2)
    ]
    assert small.classes() == ["rose"] * 6 + ["tulip"] * 6


def test_classes_are_the_folders_where_no_table_says_more(folder):
    (folder / "metadata.csv").unlink()
    assert ImageFolder(folder).prompts() is None and ImageFolder(folder).classes() == ["rose"] * 6 + ["tulip"] * 6
    assert ImageFolder(folder / "rose").classes() is None


def test_pictures_of_several_sizes_stream_at_a_given_one_only(folder):
    save(noise(1, side=20)[0], folder / "tulip" / "011.png")
    with pytest.raises(UserError, match="image='.*tulip/011.png': is 20x20; the first one is 16x16, and all must have"):
        list(ImageFolder(folder))
    assert torch.cat(list(ImageFolder(folder, 5, size=8))).shape == (12, 3, 8, 8)


def test_a_choice_of_files_comes_in_its_own_order(folder):
    chosen = [folder / "tulip" / "001.png", folder / "rose" / "000.png"]
    images = torch.from_numpy(noise(12)).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat(list(ImageFolder(folder, files=chosen))), images[[1, 0]])
    assert ImageFolder(folder, files=chosen).prompts() == ["a tulip, number 1", "a rose, number 0"]


def test_hidden_files_and_other_suffixes_are_no_pictures(folder):
    (folder / "rose" / "._000.png").write_bytes(b"what a Mac leaves")
    (folder / "rose" / "notes.txt").write_text("words")
    save(noise(1)[0], folder / "rose" / "LOUD.PNG")
    assert [f.name for f in image_files(folder / "rose")][0] == "000.png" and len(image_files(folder / "rose")) == 7
    assert image_files(folder) == [] and len(image_files(folder, "**/*")) == 13


def test_no_more_than_a_batch_is_read_ahead(folder, monkeypatch):
    read, lock = [], threading.Lock()

    def counting(path, size):
        with lock:
            read.append(path)
        return read_image(path, size)

    monkeypatch.setattr(image_folder, "read_image", counting)
    stream = iter(ImageFolder(folder, batch_size=3))
    next(stream)
    assert len(read) <= 6
    stream.close()


def test_a_folder_that_is_none_or_holds_no_pictures(tmp_path):
    with pytest.raises(UserError, match="^folder='.*': must hold images \\(.bmp, .jpeg, .jpg, .png, .webp\\)$"):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match="^folder='.*nowhere': must be a folder of images$"):
        ImageFolder(tmp_path / "nowhere")


def test_an_image_without_a_row_is_named(folder):
    save(noise(1)[0], folder / "rose" / "new.png")
    with pytest.raises(UserError, match="^metadata.csv='.*': has 12 rows for 13 images; new.png has no prompt$"):
        ImageFolder(folder).prompts()
