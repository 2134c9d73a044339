"""The cache in shards: what it holds, how it goes on, and that training cannot tell it from a cache in memory."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from kdcdiff import cli
from kdcdiff.data import shards
from kdcdiff.data.image_folder import read_image, read_metadata
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import denoising_batch, encode_set
from kdcdiff.data.listing import list_pictures
from kdcdiff.data.shards import ShardedLatents, encode_shards, finish, unfinished
from kdcdiff.errors import UserError
from kdcdiff.models.pipeline import SCHEDULER

from ..pipelines import make

PIXELS = 24  # of the pipeline
CAPTIONS = [f"a photo of number {i}" for i in range(7)]


@pytest.fixture(scope="module")
def pipeline():
    return make("sd-2", CAPTIONS)


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures with captions in a table, in the order of their names."""
    root = tmp_path / "pictures"
    root.mkdir()
    rows = []
    for i, caption in enumerate(CAPTIONS):
        noise = torch.randint(256, (PIXELS, PIXELS, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).save(root / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": caption, "width": PIXELS}))
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


def encoded(pipeline, root, out, rows, **own):
    return encode_shards(pipeline, list_pictures(root, rows), out, size=PIXELS, progress=False, **own)


def test_training_cannot_tell_it_from_a_cache_in_memory(pipeline, pictures, tmp_path):
    assert encoded(pipeline, pictures, tmp_path / "cache", rows=3) == 3
    assert finish(tmp_path / "cache")["rows"] == [[3], [3], [1]]
    cache = ShardedLatents(tmp_path / "cache")
    images = torch.stack([torch.from_numpy(read_image(pictures / f"{i}.png", PIXELS)) for i in range(7)])
    whole = encode_set(pipeline, ImageSet(images.permute(0, 3, 1, 2), torch.zeros(7), tuple(CAPTIONS), ("a",)))
    assert len(cache) == 7 and cache.shape == whole.mean.shape[1:]
    rows, scheduler = torch.tensor([6, 0, 3, 3, 5]), DDIMScheduler(**SCHEDULER)
    one, two = (
        denoising_batch(latents, rows, scheduler, torch.Generator().manual_seed(1), dropout=0.4)
        for latents in (cache, whole)
    )
    for name in ("noisy", "target", "prompt"):
        assert torch.allclose(getattr(one, name), getattr(two, name), atol=0.02), name
    assert torch.equal(one.timestep, two.timestep)


def test_a_killed_encoding_goes_on_and_any_number_of_processes_makes_the_same(pipeline, pictures, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    encoded(pipeline, pictures, one, rows=2)
    assert encoded(pipeline, pictures, two, rows=2, rank=1, world=2) == 2, "shards 1 and 3 of four"
    with pytest.raises(UserError, match="a shard of part 0 is missing"):
        finish(two)
    assert unfinished(two) == 0
    assert encoded(pipeline, pictures, two, rows=2, rank=0, world=2) == 2
    assert encoded(pipeline, pictures, two, rows=2) == 0, "all are whole"
    shard = two / "shard-000001-0000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert encoded(pipeline, pictures, two, rows=2) == 1, "what was altered is made again"
    assert [f.read_bytes() for f in sorted(one.iterdir())] == [f.read_bytes() for f in sorted(two.iterdir())]
    with pytest.raises(UserError, match="holds another encoding .rows=2, not 4"):
        encoded(pipeline, pictures, two, rows=4)


def test_pictures_that_cannot_serve_are_counted_named_and_above_a_share_refused(
    pipeline, pictures, tmp_path, monkeypatch
):
    (pictures / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (PIXELS, PIXELS // 4)).save(pictures / "3.png")
    still = Image.new("RGB", (PIXELS, PIXELS))
    still.save(pictures / "5.webp", save_all=True, append_images=[Image.new("RGB", still.size, "red")])
    Image.new("RGB", (PIXELS, PIXELS)).save(pictures / "none.png")
    encoded(pipeline, pictures, tmp_path / "cache", rows=4)
    with pytest.raises(
        UserError, match="of 9 pictures .2.png, 3.png, 5.webp, ....; at most 5% may be left out"
    ) as found:
        finish(tmp_path / "cache")
    assert "1 unreadable" in str(found.value) and "1 too small" in str(found.value)
    monkeypatch.setattr(shards, "MOST_UNREADABLE", 0.5)
    assert sum(map(sum, finish(tmp_path / "cache")["rows"])) == 5 == len(ShardedLatents(tmp_path / "cache"))


def test_class_folders_name_and_caption_their_pictures(tmp_path):
    for name in ("rose", "iris"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "0.png")
    found = list_pictures(tmp_path, 9)
    assert found.classes == ("iris", "rose") and len(found) == 1
    assert [(one.caption, one.label) for one in found.part(0)] == [("a photo of an iris", 0), ("a photo of a rose", 1)]


def test_a_table_of_lines_must_be_json(pictures):
    assert [row["text"] for row in read_metadata(pictures)] == CAPTIONS
    (pictures / "metadata.jsonl").write_text("file_name,text\n")
    with pytest.raises(UserError, match="must hold a JSON object a line, not 'file_name,text'"):
        read_metadata(pictures)


def test_the_commands_encode_and_train_on_it(pipeline, pictures, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "teacher")
    words = ["--teacher", str(tmp_path / "teacher"), "--device", "cpu", "--out"]
    first = ["encode", "--data", str(pictures), "--shard", "4", "--share", "2/2", *words, str(tmp_path / "cache")]
    assert cli.main(first) == 0
    assert "share 2 of 2 is done; part 0, of another share, is still to come" in capsys.readouterr().out
    assert cli.main(["encode", "--data", str(pictures), "--shard", "4", *words, str(tmp_path / "cache")]) == 0
    assert "7 pictures in 2 shards" in capsys.readouterr().out
    distill = ["distill", "--latents", str(tmp_path / "cache"), "--steps", "1", "--batch", "2", *words]
    assert cli.main([*distill, str(tmp_path / "student")]) == 0
    assert "cache: 7 images, 24 pixels a side" in (tmp_path / "student" / "README.md").read_text()
    assert cli.main([*distill, str(tmp_path / "other"), "--resolution", "40"]) == 2
    assert "are of 24 pixels; give --resolution 24" in capsys.readouterr().err
    assert cli.main([*distill, str(tmp_path / "other"), "--teacher", "flora"]) == 2
    assert "were encoded by another autoencoder" in capsys.readouterr().err


def test_a_reader_has_so_many_shards_open_and_reads_any_row(pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN", 2)
    encoded(pipeline, pictures, tmp_path / "cache", rows=2)
    finish(tmp_path / "cache")
    cache, rows = ShardedLatents(tmp_path / "cache"), torch.tensor([6, 0, 3, 5, 1, 6])
    prompts = cache.prompts_of(rows, torch.tensor([True, True, False, True, True, True]))
    assert len(cache._open) == 2
    alone = torch.cat([cache.prompts_of(rows[i : i + 1], torch.tensor([i != 2])) for i in range(6)])
    assert torch.equal(prompts, alone) and torch.equal(prompts[0], prompts[5])
    assert len({tuple(prompt.flatten().tolist()) for prompt in prompts}) == 5
