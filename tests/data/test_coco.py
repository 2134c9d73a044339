"""MS-COCO's captions, on a sample of the published format."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from kdcdiff.data import coco
from kdcdiff.data.image_folder import ImageFolder
from kdcdiff.errors import UserError
from kdcdiff.sampling.prompts import read_prompts


@pytest.fixture
def words() -> dict:
    """What ``captions_val2014.json`` holds: twenty images with five captions each, in no order."""
    images = [
        {"license": 3, "file_name": f"COCO_val2014_{k:012d}.jpg", "coco_url": "", "height": 480, "width": 640,
         "date_captured": "2013-11-14 11:18:45", "flickr_url": "", "id": k} for k in range(100, 120)
    ]  # fmt: skip
    rows = [{"image_id": 100 + i, "id": 1000 * i + j, "caption": f"Words {j} on {100 + i}.\n"}
            for i in range(20) for j in range(5)]  # fmt: skip
    random.Random(0).shuffle(rows)
    info = {"description": "COCO 2014 Dataset", "url": "", "version": "1.0", "year": 2014}
    return {"info": info, "images": images, "licenses": [{"url": "", "id": 1, "name": ""}], "annotations": rows}


def written(path, words):
    path.write_text(json.dumps(words))
    return path


def test_prompts_are_one_caption_each_of_so_many_images_whatever_the_order(words, tmp_path):
    captions = coco.read_captions(written(tmp_path / "captions_val2014.json", words))
    assert len(captions) == 100 and all(caption.text == caption.text.strip() for caption in captions)
    chosen = coco.sample(captions, 12)
    assert len({caption.image for caption in chosen}) == 12 and set(chosen) < set(captions)
    assert coco.sample(captions[::-1], 12) == chosen == coco.sample(captions)[:12]
    assert coco.sample(captions, 12, seed=1) != chosen and len(coco.sample(captions)) == 20
    assert len({caption.text.split()[1] for caption in coco.sample(captions)}) > 1, "not the first caption of each"
    assert coco.PROMPTS == 30_000


def test_a_captions_file_serves_as_prompts(words, tmp_path):
    path = written(tmp_path / "captions_val2014.json", words)
    assert read_prompts([str(path)]) == [(caption.text, "") for caption in coco.sample(coco.read_captions(path))]


WRONG = {
    "no annotations": (lambda w: w.pop("annotations"), "must be a captions file of MS-COCO"),
    "boxes instead": (lambda w: w["annotations"][0].pop("caption"), "KeyError: 'caption'"),
    "an image's number": (lambda w: w["images"][0].update(id="x"), "must be a captions file"),
    "a stranger's caption": (lambda w: w["annotations"][0].update(image_id=7), "which the file has not"),
    "one number twice": (lambda w: w["annotations"].append(w["annotations"][0]), "an id of its own"),
    "no words": (lambda w: w["annotations"][0].update(caption=" "), "at least one word"),
    "no caption": (lambda w: w.update(annotations=[]), "at least one caption"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_file_of_another_format_is_refused(words, tmp_path, how):
    spoil, line = WRONG[how]
    spoil(words)
    with pytest.raises(UserError, match=line):
        coco.read_captions(written(tmp_path / "a.json", words))


def test_pictures_of_512_are_compared_at_256(tmp_path):
    """Drawn squares and photographs of any shape alike, as ``kdcdiff evaluate --resolution 256`` reads them."""
    squares = np.zeros((512, 512, 3), np.uint8)
    squares[:, 256:] = 200
    Image.fromarray(squares).save(tmp_path / "drawn.png")
    Image.new("RGB", (640, 480), (200, 200, 200)).save(tmp_path / "photograph.jpg")
    (batch,) = ImageFolder(tmp_path, size=256)
    assert batch.shape == (2, 3, 256, 256)
    assert batch[0, :, :, :100].max() == 0 and batch[0, :, :, -100:].min() == 200
