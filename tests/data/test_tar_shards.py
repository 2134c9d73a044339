"""WebDataset's tar shards: what img2dataset writes is read, and nothing that was made to do harm."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import TarWriter

from kdcdiff.data import listing, tar_shards
from kdcdiff.data.listing import list_pictures, read_picture
from kdcdiff.data.shards import Encoded, ShardedLatents, finish, write_shards
from kdcdiff.data.tar_shards import samples
from kdcdiff.errors import UserError

SIDE = 16
PICTURES = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def img2dataset(path: Path, numbers: range) -> None:
    """A tar as img2dataset writes it, and a pickle beside each picture, which it does not."""
    with TarWriter(str(path), encoder=False) as tar:
        for i in numbers:
            words = {"caption": f"a photo of number {i}", "url": "https://example.org", "status": "success"}
            sample = {"__key__": f"{i:09d}", "png": png(PICTURES[i]), "json": json.dumps(words).encode()}
            sample |= {"txt": words["caption"].encode()} if i % 2 else {}
            tar.write(sample | {"pyd": pickle.dumps(print)})


@pytest.fixture
def tars(tmp_path) -> Path:
    """Two tars, of five pictures and of two."""
    root = tmp_path / "tars"
    root.mkdir()
    img2dataset(root / "00000.tar", range(5))
    img2dataset(root / "00001.tar", range(5, 7))
    (root / "00000_stats.json").write_text("{}")
    return root


def test_samples_are_found_in_their_order_with_their_words_and_pixels(tars):
    found = list_pictures(tars, 3)
    every = [list(found.part(number)) for number in range(len(found))]
    assert [len(part) for part in every] == [5, 2]
    assert [one.caption for part in every for one in part] == [f"a photo of number {i}" for i in range(7)]
    assert every[1][0].name == "00001.tar/000000005"
    assert np.array_equal(np.stack([read_picture(one, SIDE) for part in every for one in part]), PICTURES)


def encode(chunk) -> Encoded:
    """Stand in for both encoders: a latent is the mean colour, and a prompt the caption's length."""
    read = [read_picture(one, SIDE) for one in chunk]
    mean = torch.tensor(np.stack(read)).float().mean((1, 2)).reshape(-1, 3, 1, 1).half()
    texts = sorted({one.caption for one in chunk})
    tensors = {
        "mean": mean, "std": torch.zeros_like(mean), "labels": torch.zeros(len(chunk), dtype=torch.int64),
        "captions": torch.tensor([texts.index(one.caption) for one in chunk]),
        "prompts": torch.tensor([[[float(text.split()[-1])]] for text in texts]).half(),
        "empty": torch.zeros(1, 1).half(),
    }  # fmt: skip
    return Encoded(tensors, [])


def test_a_tar_becomes_shards_which_any_process_may_write_and_go_on_with(tars, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"origin": ("x", 1.0), "size": SIDE}
    pictures = list_pictures(tars, 2)
    assert write_shards(pictures, encode, one, settings) == 4
    assert write_shards(pictures, encode, two, settings, rank=1, world=2) == 1
    assert write_shards(pictures, encode, two, settings, rank=0, world=2) == 3
    (two / "shard-000000-0001.json").unlink()
    damaged = two / "shard-000000-0002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert write_shards(pictures, encode, two, settings) == 2, "the rest of a tar stays"
    assert finish(one)["rows"] == [[2, 2, 1], [2]] and finish(two)
    assert [f.read_bytes() for f in sorted(one.iterdir())] == [f.read_bytes() for f in sorted(two.iterdir())]
    rows = torch.tensor([6, 0, 4])
    assert ShardedLatents(two).prompts_of(rows, rows != 0).flatten().tolist() == [6, 0, 4]
    colours = ShardedLatents(two).sample(rows, torch.Generator())[:, :, 0, 0]
    assert torch.allclose(colours, torch.tensor(PICTURES[rows]).float().mean((1, 2)), atol=0.1)


def member(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes], **how: object) -> None:
    with tarfile.open(path, "w", **how) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))


def test_pictures_that_cannot_serve_are_told_of(tmp_path, monkeypatch):
    frames = io.BytesIO()
    still = Image.fromarray(PICTURES[0])
    still.save(frames, "PNG", save_all=True, append_images=[Image.fromarray(PICTURES[1])])
    monkeypatch.setattr(tar_shards, "MOST_WORDS", 30)
    monkeypatch.setattr(listing, "MOST_BYTES", 2**12)
    good = png(PICTURES[0])
    pack(
        tmp_path / "0.tar",
        member("a.png", good), member("a.txt", b"a rose"),
        member("b.png", b"no picture"), member("b.txt", b"a rose"),
        member("c.png", frames.getvalue()), member("c.txt", b"a rose"),
        member("d.png", png(PICTURES[0][:, :4])), member("d.txt", b"a rose"),
        member("e.png", good), member("e.txt", b"a ros\xe9"), member("e.json", b"["),
        member("f.png", good), member("f.txt", b"a rose" * 9),
        member("g.txt", b"a rose"), member("h.json", b'{"caption": ["a rose"]}'),
        member("i.png", good + bytes(2**12)), member("i.json", b'{"text": "a rose"}'),
        member("j.png", good), member("j.txt", b"a\0b"),
    )  # fmt: skip
    read = {one.name[-1]: read_picture(one, SIDE) for one in list_pictures(tmp_path, 99).part(0)}
    assert isinstance(read.pop("a"), np.ndarray)
    assert read == {
        "b": "unreadable", "c": "animated", "d": "too small", "e": "without a caption", "f": "without a caption",
        "g": "without a picture", "h": "without a picture", "i": "too large", "j": "without a caption",
    }  # fmt: skip


def oversized(path: Path) -> None:
    """A tar whose extended header says that it has a gigabyte."""
    pack(path, member("a.png"))
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    path.write_bytes(info.tobuf() + path.read_bytes())


def backwards(path: Path) -> None:
    """A tar whose member has fewer than no bytes, so that the next header would be an earlier one."""
    pack(path, member("a.png"))
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 10 + b"\xfc\x00"  # minus 1,024 in base 256
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)


def altered(path: Path, place: int, byte: bytes) -> None:
    pack(path, member("a.png"), member("a.txt"), member("b.png"), member("b.txt"))
    content = path.read_bytes()
    path.write_bytes(content[:place] + byte + content[place + len(byte) :])


BAD_TARS = {  # how it is made, and what is said
    "path traversal": (lambda p: pack(p, member("../a.png")), "'../a.png' would leave its folder"),
    "absolute": (lambda p: pack(p, member("/etc/a.png")), "'/etc/a.png' would leave its folder"),
    "traversal within": (lambda p: pack(p, member("a/../../b.png")), "would leave its folder"),
    "symlink": (lambda p: pack(p, member("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "is no file"),
    "hard link": (lambda p: pack(p, member("a.png", b"", type=tarfile.LNKTYPE, linkname="b.png")), "is no file"),
    "device": (lambda p: pack(p, member("a.png", b"", type=tarfile.CHRTYPE)), "is no file"),
    "empty": (lambda p: p.write_bytes(b""), "empty file"),
    "text": (lambda p: p.write_text("no tar at all " * 99), "cannot be read as a tar shard"),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(600)), "cannot be read as a tar shard"),
    "compressed": (lambda p: p.write_bytes(gzip.compress(bytes(10_240))), "cannot be read"),
    "a name twice": (lambda p: pack(p, member("a.png"), member("a.png")), "duplicate file name"),
    "gigantic header": (oversized, "a header of 1,073,741,824 bytes"),
    "backwards": (backwards, "bytes"),
    "header altered": (lambda p: altered(p, 1024 + 20, b"x"), "is damaged at byte 1,024"),
    "header erased": (lambda p: altered(p, 1024, bytes(512)), "is damaged at byte 1,024"),
    "cut in a member": (lambda p: (altered(p, 0, b""), p.write_bytes(p.read_bytes()[:700])), "unexpected end of data"),
    "cut between": (lambda p: (altered(p, 0, b""), p.write_bytes(p.read_bytes()[:2048])), "its end is missing"),
}


@pytest.mark.parametrize("how", BAD_TARS)
def test_a_tar_that_is_not_sound_is_refused_in_one_line(tmp_path, how):
    make, line = BAD_TARS[how]
    make(tmp_path / "0.tar")
    with pytest.raises(UserError, match="^data='.*0.tar': ") as error:
        list(samples(tmp_path / "0.tar"))
    assert line in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"], "nothing is unpacked"


def test_any_byte_of_a_header_may_be_flipped(tmp_path):
    pack(tmp_path / "0.tar", member("a.png"), member("a.txt"), format=tarfile.USTAR_FORMAT)
    content = (tmp_path / "0.tar").read_bytes()
    for place in [*range(0, 157, 13), *range(1024, 1024 + 500, 30)]:
        (tmp_path / "0.tar").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError):
            list(samples(tmp_path / "0.tar"))


def test_pictures_beside_tars_and_links_to_tars_elsewhere_are_refused(tars, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.tar").symlink_to(tars / "00000.tar")
    with pytest.raises(UserError, match="leaves the folder"):
        list_pictures(other, 2)
    (tars / "a.png").write_bytes(png(PICTURES[0]))
    with pytest.raises(UserError, match="holds 2 tar shards and 1 pictures beside them"):
        list_pictures(tars, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold images, or tar shards"):
        list_pictures(tmp_path / "empty", 2)


def test_webdataset_is_asked_for_by_name(tars, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(UserError, match=r"tar shards need webdataset: pip install 'kdcdiff\[shards\]'"):
        list(samples(tars / "00000.tar"))
