"""Bad input, in tables: each ends in one line that says what to do, exit code 2, and nothing changed on disk."""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcdiff import cli
from kdcdiff.book import notebook as notebooks
from kdcdiff.book.results import Results
from kdcdiff.book.toc import Book
from kdcdiff.data.image_folder import MOST_PIXELS, ImageFolder, image_files, read_image, read_metadata
from kdcdiff.data.sources import open_source
from kdcdiff.errors import UserError, one_line
from kdcdiff.experiments import profiles
from kdcdiff.training.replay import POLICIES

from ..conftest import REPO, tiny_pipeline

# --- files that were made to do harm ---------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Hostile:
    def __reduce__(self):
        return (Path.write_text, (Path("unpickled"), "code has run"))


STEM, TEXT = "conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
DEEP = b"[" * 100_000
FILES = {  # name -> content
    "empty.txt": b"", "blank.txt": b"\n \n", "latin.txt": "a ros\xe9".encode("latin-1"), "nul.txt": b"a\0rose",
    "long.txt": b"rose " * 10_000, "folder.txt/inside": b"", "a name, with \xc3\xa9.txt".encode().decode(): b"",
    "empty.csv": b"", "bare.csv": b"prompt\na rose\n", "rows.csv": b"text,class\n",
    "utf16.csv": "text\na".encode("utf-16"),
    "up.csv": b"text,class\na rose,../x\n", "slash.csv": b"text,class\na rose,/tmp/x\n",
    "dot.csv": b"text,class\na,.\n",
    "wide.csv": b"text,class\na rose," + b"x" * 300 + b"\n", "esc.csv": b"text,class\na rose,\x1b[2J\n",
    "huge.csv": b"text\n" + b"x" * 200_000 + b"\n", "nul.csv": b"text,class\na rose,a\0b\n",
    "empty.json": b"", "list.json": b"[]", "deep.json": DEEP, "latin.json": b'{"removed": "\xe9"}',
    "unknown.json": b'{"fewer_pears": 1}', "text.json": b'{"fewer_pairs": "one"}', "minus.json": b'{"fewer_pairs": -1}',
    "nan.json": b'{"fewer_pairs": NaN}', "true.json": b'{"fewer_pairs": true}', "mid.json": b'{"mid": "no"}',
    "inner.json": b'{"innermost": "gone"}', "name.json": b'{"name": "a\\nb"}', "none.json": b'{"fewer_pairs": []}',
    "markup.json": b'{"removed": 7}',
    "empty.safetensors": b"", "short.safetensors": b"1234567",
    "endless.safetensors": struct.pack("<Q", 2**63), "beyond.safetensors": safetensors({}, length=2**20),
    "words.safetensors": safetensors(b"not JSON at all "), "bytes.safetensors": safetensors(b"\xff" * 16),
    "array.safetensors": safetensors([1, 2]), "nested.safetensors": safetensors(DEEP),
    "outside.safetensors": safetensors({STEM: tensor([4], [0, 16])}),
    "overlap.safetensors": safetensors({STEM: tensor([1], [0, 4]), TEXT: tensor([1], [0, 4])}, b"1234"),
    "minus.safetensors": safetensors({STEM: tensor([-1], [0, 4])}, b"1234"),
    "dtype.safetensors": safetensors({STEM: tensor([1], [0, 4], "PICKLE")}, b"1234"),
    "overflow.safetensors": safetensors({STEM: tensor([2**40, 2**40], [0, 4])}, b"1234"),
    "flat.safetensors": safetensors({STEM: tensor([1], [0, 4]), TEXT: tensor([1], [4, 8])}, b"12345678"),
    "other.safetensors": safetensors({"weight": tensor([1], [0, 4])}, b"1234"),
    "lora.safetensors": safetensors({"unet.lora.up.weight": tensor([1], [0, 4])}, b"1234"),
    "pickle.safetensors": pickle.dumps(Hostile()), "model.ckpt": pickle.dumps(Hostile()),
    "index-text/model_index.json": b"{", "index-list/model_index.json": b"[1]", "index-deep/model_index.json": DEEP,
    "index-other/model_index.json": b'{"_class_name": "FluxPipeline"}',
    "index-os/model_index.json": b'{"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]}',
    "index-own/model_index.json": b'{"_class_name": "StableDiffusionPipeline", "unet": ["mine", "Net"]}',
    "index-code/model_index.json": b'{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "Net"]}',
    "index-code/unet/mine.py": b"print('code has run')",
    "pickled/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "pickled/diffusion_pytorch_model.bin": pickle.dumps(Hostile()),
    "shards/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "shards/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {"a": "../other.safetensors"}}',
    "shard-list/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "shard-list/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": ["a"]}',
    "lora/adapter_config.json": b"{}", "folder/inside": b"", "no-json/config.json": b"\x80",
    "empty-set/.keep": b"", "damaged/results.json": b'{"results": {', "damaged/list.json": b"[]",
    "damaged/half.json": b'{"results": {"a": {}}, "stages": {}}', "damaged/deep.json": DEEP,
    "damaged/latin.json": b"\xe9",
    "mixed/0.tar": b"", "mixed/0.png": b"", "not-text/0.png": b"",
    "not-text/metadata.csv": b"file_name,text\n0.png,\xe9",
    "no-lines/0.png": b"", "no-lines/metadata.jsonl": b"[1]\n", "no-parquet/0.png": b"",
    "no-parquet/metadata.parquet": b"PAR1 and no more PAR1", "deep-lines/0.png": b"", "deep-lines/metadata.jsonl": DEEP,
}  # fmt: skip
CONFIGS = {  # what a U-Net's config.json says -> what is wrong
    "class": {"_class_name": "FluxTransformer2DModel"},
    "sdxl": {"addition_embed_type": "text_time"},
    "minus": {"block_out_channels": [-1, 64, 64, 64]},
    "zero": {"block_out_channels": [0, 64, 64, 64]},
    "text": {"block_out_channels": "wide"},
    "null": {"block_out_channels": None},
    "none": {"block_out_channels": []},
    "float": {"block_out_channels": [1.5, 2, 3, 4]},
    "gigantic": {"block_out_channels": [10**9] * 4},
    "two-of-four": {"block_out_channels": [32, 64]},
    "layers": {"layers_per_block": 10**9},
    "layers-true": {"layers_per_block": True},
    "channels": {"in_channels": 10**9},
    "stages": {"down_block_types": "DownBlock2D"},
    "many-stages": {"down_block_types": ["DownBlock2D"] * 10**4, "up_block_types": ["UpBlock2D"] * 10**4},
    "stage-kinds": {"down_block_types": ["AttnDownBlock2D"] * 4},
    "stage-numbers": {"down_block_types": [1, 2, 3, 4]},
    "mid": {"mid_block_type": ["UNetMidBlock2DCrossAttn"]},
    "heads": {"attention_head_dim": "many"},
    "size": {"sample_size": 10**9},
}
FILES |= {f"config-{name}/config.json": json.dumps(config).encode() for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """A folder with all of `FILES`."""
    folder = tmp_path_factory.mktemp("bad input")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


# --- commands ----------------------------------------------------------------------------------------------------

DISTILL, DRAW = ["distill", "--out", "new"], ["generate", "flora", "--out", "new", "--prompts"]
OWN = ["personalize", "--pipeline", "flora", "--noun", "flower", "--out", "new", "--subject"]
ENCODE = ["encode", "--teacher", "flora", "--out", "new"]
CONTINUAL = ["continual", "--student", "flora", "--data", "flora", "--out", "new"]
CUT, PULL = ["shrink", "--map", "--variant", "original"], ["store", "pull"]
COMMANDS: list[tuple[list[str], str]] = [
    ([], "arguments are required"),
    (["--unheard-of"], "required"),
    (["distil"], "invalid choice"),
    (["run", "--profile", ""], "profile=''"),
    (["run", "--profile", "Mini"], "must be one of smoke, mini"),
    (["run", "--dataset", ""], "dataset=''"),
    (["run", "--dataset", "no such folder, é"], "must be flora"),
    (["run", "--dataset", "empty.txt"], "must be flora"),
    (["run", "--dataset", "a\0b"], "must be flora"),
    (["run", "--seed", "-1"], "--seed: must be a whole number from 0"),
    (["run", "--seed", "1e3"], "--seed"),
    (["run", "--seed", "9" * 5000], "--seed"),
    (["run", "--seed", "nan"], "--seed"),
    (["run", "--timeout", "0"], "--timeout: must be a number above 0"),
    (["run", "--timeout", "inf"], "--timeout"),
    (["run", "--timeout", "nan"], "--timeout"),
    (["run", "-p", "seed"], "expected 2 arguments"),
    (["run", "-p", "seed", "3"], "use --seed"),
    (["run", "--root", "folder"], "must be a book's folder"),
    (["run", "--root", "nowhere"], "must be a book's folder"),
    (["build", "--root", "folder"], "must be a book's folder"),
    (["claims", "--paper", "other"], "invalid choice"),
    (["claims", "--verdict", "maybe"], "invalid choice"),
    (["claims", "--results", "damaged/results.json"], "is not a results file"),
    (["claims", "--results", "damaged/list.json"], "is not a results file"),
    (["claims", "--results", "damaged/half.json"], "is not a results file"),
    (["claims", "--results", "damaged/deep.json"], "is not a results file"),
    (["claims", "--results", "damaged/latin.json"], "is not a results file"),
    (["claims", "--results", "folder"], "Is a directory"),
    (["complexity", "bk-sdm-huge"], "not found"),
    (["complexity", "original", "--latent", "0"], "--latent"),
    (["complexity", "original", "--steps", "2.5"], "--steps"),
    (["complexity", "original", "--teacher", "sd-9"], "not found"),
    (["complexity", "original", "--dtype", "float8"], "--dtype"),
    (["complexity", "original", "--device", "tpu"], "--device"),
    (["complexity", "no-json"], "cannot be read as JSON"),
    (["shrink", "flora", "--variant", "original"], "name a new folder with --out"),
    (["shrink", "flora"], "required: --variant"),
    ([*CUT, "nowhere.safetensors"], "not found"),
    ([*CUT, "model.ckpt"], "would have to be unpickled"),
    ([*CUT, "pickled"], "would have to be unpickled"),
    ([*CUT, "shards"], "must name for each tensor the file beside it"),
    ([*CUT, "shard-list"], "must name for each tensor the file beside it"),
    ([*CUT, "lora"], "a LoRA folder"),
    ([*CUT, "folder"], "has no U-Net configuration"),
    ([*CUT, ""], "not found"),
    ([*CUT, "../../etc/passwd"], "not found"),
    *[([*CUT, f"{name}.safetensors"], "cannot be read as safetensors") for name in (
        "empty", "short", "endless", "beyond", "words", "bytes", "array", "nested", "outside", "overlap", "minus",
        "dtype", "overflow", "pickle")],
    ([*CUT, "flat.safetensors"], "holds no U-Net"),
    ([*CUT, "other.safetensors"], "holds no U-Net"),
    ([*CUT, "lora.safetensors"], "a LoRA file"),
    *[(["complexity", f"config-{name}"], "teacher=") for name in CONFIGS],
    *[(["shrink", "flora", "--map", "--variant", f"{name}.json"], "variant=") for name in (
        "empty", "list", "deep", "latin", "unknown", "nowhere")],
    *[(["shrink", "flora", "--map", "--variant", f"{name}.json"], line) for name, line in (
        ("text", "fewer_pairs='one'"), ("minus", "fewer_pairs=-1"), ("nan", "fewer_pairs=nan"),
        ("true", "fewer_pairs=True"), ("none", "fewer_pairs=[]"), ("mid", "mid='no'"), ("inner", "innermost='gone'"),
        ("name", "of one line"), ("markup", "removed=7"))],
    (DISTILL[:1], "required: --out"),
    (["distill", "--out", "folder"], "must not exist yet"),
    *[([*DISTILL, option, value], option) for option, value in (
        ("--steps", "0"), ("--steps", "1.5"), ("--steps", "inf"), ("--batch", "-3"), ("--accumulate", "0"),
        ("--lr", "0"), ("--lr", "nan"), ("--lr", "-inf"), ("--lr", "1e999"), ("--ema", "1"), ("--ema", "nan"),
        ("--alpha", "1.01"), ("--alpha", "nan"), ("--beta", "-1"), ("--gamma", "inf"), ("--temperature", "0"),
        ("--reading", "some"), ("--label", "none"), ("--schedule", "step"), ("--precision", "fp8"),
        ("--snr-gamma", "-1"), ("--per-class", "0"), ("--views", "0"), ("--sheet-every", "-1"), ("--seed", "x"),
        ("--protocol", "mine"), ("--objective", "mse"), ("--teacher", "fauna"), ("--data", "nowhere"),
        ("--variant", "tiny"), ("--device", "cuda:99"), ("--output-weight", "nan"))],
    ([*DISTILL, "--output-weight", "1"], "belongs to --objective bk-sdm"),
    ([*DRAW, ""], "must hold at least one word"),
    ([*DRAW, " \t"], "must hold at least one word"),
    ([*DRAW, "a\0b"], "must be text"),
    ([*DRAW, "\udce9"], "must be text"),
    ([*DRAW, "rose " * 10_000], "has 50,000 characters"),
    *[([*DRAW, f"{name}.txt"], "prompts=") for name in (
        "nowhere", "empty", "blank", "latin", "nul", "long", "folder", "a name, with é")],
    *[([*DRAW, f"{name}.json"], "captions=") for name in ("empty", "list", "deep", "latin", "text")],
    *[([*DRAW, f"{name}.csv"], "prompts=") for name in ("nowhere", "empty", "bare", "rows", "utf16", "huge")],
    *[([*DRAW, f"{name}.csv"], "class=") for name in ("up", "slash", "dot", "wide", "esc", "nul")],
    *[([*DRAW, "a rose", option, value], option) for option, value in (
        ("--steps", "0"), ("--guidance", "nan"), ("--guidance", "-1"), ("--guidance", "inf"), ("--seed", "-1"),
        ("--per-prompt", "0"), ("--batch-size", "0"), ("--device", "0"))],
    *[(["generate", name, "--out", "new", "--prompts", "a rose"], "pipeline=") for name in (
        "fauna", "folder", "index-text", "index-list", "index-deep", "index-other", "index-os", "index-own",
        "index-code", "a/b/c")],
    (OWN[:-1], "required: --subject"),
    ([*OWN, "nowhere"], "must be a folder of images"),
    ([*OWN, "folder"], "must hold images"),
    *[([*OWN, "folder", option, value], option) for option, value in (
        ("--noun", ""), ("--noun", "two words"), ("--token", "<s>"), ("--steps", "0"), ("--batch", "0"),
        ("--lr", "nan"), ("--prior-images", "0"), ("--prior-weight", "-1"), ("--lora", "0"), ("--images", "1"),
        ("--extractor", "vgg"), ("--pipeline", "fauna"), ("--out", "folder"))],
    (["encode"], "required: --teacher"),
    (ENCODE[:3], "required: --data, --out"),
    ([*ENCODE, "--data", "nowhere"], "must be a folder of images"),
    ([*ENCODE, "--data", "empty.txt"], "must be a folder of images"),
    ([*ENCODE, "--data", "folder"], "must hold images, or tar shards of them"),
    ([*ENCODE, "--data", "mixed"], "holds 1 tar shards and 1 pictures beside them"),
    ([*ENCODE, "--data", "not-text"], "metadata.csv='"),
    ([*ENCODE, "--data", "no-lines"], "must hold a JSON object a line"),
    ([*ENCODE, "--data", "deep-lines"], "must hold a JSON object a line"),
    ([*ENCODE, "--data", "no-parquet"], "cannot be read as a Parquet table"),
    *[([*ENCODE, "--data", "mixed", option, value], option) for option, value in (
        ("--teacher", "fauna"), ("--resolution", "7"), ("--resolution", "x"), ("--shard", "0"), ("--shard", "1.5"),
        ("--share", "0/2"), ("--share", "3/2"), ("--share", "1"), ("--share", "1/2/3"), ("--share", "-1/2"),
        ("--device", "tpu"))],
    (["continual"], "required: --student"),
    *[([*CONTINUAL, option, value], option) for option, value in (
        ("--student", "fauna"), ("--data", "nowhere"), ("--base", "nowhere"), ("--out", "folder"),
        ("--method", "er"), ("--capacity", "0"), ("--capacity", "nan"), ("--policy", "newest"), ("--codec", "jpeg"),
        ("--steps", "0"), ("--batch", "1"), ("--lr", "0"), ("--lr", "nan"), ("--ema", "1"), ("--per-class", "0"),
        ("--resolution", "7"), ("--images", "0"), ("--sampler-steps", "0"), ("--guidance", "inf"),
        ("--judge-steps", "0"), ("--seed", "-1"), ("--device", "tpu"))],
    ([*CONTINUAL, "--data", "folder"], "must hold class folders with images"),
    ([*CONTINUAL, "--classes", "fern-of-nowhere"], "classes='fern-of-nowhere': must be of"),
    (["evaluate", "nowhere", "folder"], "must be a folder of images"),
    (["evaluate", "folder"], "required: real"),
    (["evaluate", "folder", "folder", "--extractor", "vgg"], "--extractor"),
    (["evaluate", "folder", "folder", "--batch-size", "0"], "--batch-size"),
    (["pretrain", "--unet-steps", "0"], "--unet-steps"),
    (["pretrain", "--ema", "1"], "--ema"),
    (["pretrain", "--unet-lr", "nan"], "--unet-lr"),
    ([*PULL, "nowhere"], "cannot be read as a store"),
    ([*PULL, "s4://bucket"], "cannot be read as a store"),
    ([*PULL, "folder"], "holds no artifact"),
    (["store", "ls", "--artifacts", "nowhere"], "must be the folder of a store"),
    (["store", "gc", "--artifacts", "folder"], "must be the folder of a store"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), COMMANDS, ids=[" ".join(words)[:50] for words, _ in COMMANDS])
def test_a_command_refuses_bad_input_in_one_line(bad, monkeypatch, capsys, words, line):
    monkeypatch.chdir(bad)
    before = state(bad)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and line in said and said.count("\n") == 1 and len(said) < 1100
    assert "Traceback" not in said and said == one_line(said, 2000) + "\n", "nothing in it steers a terminal"
    assert state(bad) == before


def test_debug_shows_where_an_error_arose(bad, monkeypatch, capsys):
    monkeypatch.chdir(bad)
    for words in (["--debug", *CUT, "words.safetensors"], [*CUT, "words.safetensors", "--debug"]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert "Traceback" in said and said.splitlines()[-1].startswith("error: file='words.safetensors'")


def test_a_fault_of_the_program_says_so(monkeypatch, capsys):
    monkeypatch.setattr("kdcdiff.cli.claims.run", lambda args: {}["missing"])
    assert cli.main(["claims"]) == 70
    assert capsys.readouterr().err == (
        "error: KeyError: 'missing' (this is a fault of the program; --debug shows where it arose)\n"
    )


# --- pipelines, whose weights and configurations are read by others --------------------------------------------

UNET = "unet/diffusion_pytorch_model.safetensors"
PIPELINES = {  # what is done to a sound pipeline
    "no weights": lambda f: (f / UNET).unlink(),
    "cut weights": lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-1]),
    "no header": lambda f: (f / UNET).write_bytes(struct.pack("<Q", 2**62)),
    "pickled weights": lambda f: (f / UNET).rename(f / "unet" / "diffusion_pytorch_model.bin"),
    "another's weights": lambda f: shutil.copy(f / "vae" / "diffusion_pytorch_model.safetensors", f / UNET),
    "no configuration": lambda f: (f / "unet" / "config.json").unlink(),
    "configuration is no JSON": lambda f: (f / "unet" / "config.json").write_text("{"),
    "configuration of another type": lambda f: (f / "unet" / "config.json").write_text('{"block_out_channels": "x"}'),
    "no tokenizer": lambda f: shutil.rmtree(f / "tokenizer"),
    "scheduler is no JSON": lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[]"),
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_pipeline(["a rose"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", PIPELINES)
def test_a_pipeline_that_is_not_sound_is_refused(pipeline, tmp_path, capsys, how):
    folder, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(pipeline, folder)
    PIPELINES[how](folder)
    assert cli.main(["generate", str(folder), "--prompts", "a rose", "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: pipeline=") and "cannot be loaded" in said and not out.exists()


# --- parameters of notebooks --------------------------------------------------------------------------------------

CHAPTERS = [REPO / chapter.path for chapter in Book(REPO).chapters()]
WRONG = {  # type -> texts of other types, as from a command line
    int: ["1.5", "one", "nan", "inf", "[1]", "", "9" * 5000, "(" * 1000],
    float: ["one", "[0.5]", "{}", "1,5"],
    bool: ["1", "yes"],
    list: ["1", "{}", "[1", "{[]: 1}"],
    dict: ["[]", "{"],
    str: [],
}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_parameter_of_a_chapter_refuses_other_types_and_values_out_of_range(path):
    known = notebooks.parameters(notebooks.read(path), path.stem)
    cases = 0
    for name, parameter in known.items():
        for text in WRONG[parameter.kind]:
            if not (parameter.optional and text == ""):
                cases += 1
                with pytest.raises(UserError, match=f"^{name}="):
                    parameter.parse(text, path.stem)
        if name in profiles.allowed():
            for value in (math.nan, math.inf, -math.inf, -1, object(), "", [math.nan], [], b"x"):
                cases += 1
                with pytest.raises(UserError, match=f"{name}="):
                    profiles.checked(name, value)
    assert cases >= 8


def test_what_a_chapter_would_refuse_is_refused_before_it_runs():
    for name, value in (("variant", "tiny"), ("policy", "newest"), ("teacher", "fauna"), ("table_subject", "cars")):
        with pytest.raises(UserError, match=f"{value!r}"):
            profiles.checked(name, value)
    assert profiles.Profile.__dataclass_fields__["policy"].metadata["choices"] == tuple(POLICIES)


# --- pictures --------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
FRAMES = [Image.fromarray(NOISE), Image.fromarray(255 - NOISE)]
GOOD_PNG = encoded(FRAMES[0])
BAD_PICTURES = {
    "zero bytes": (b"", "cannot identify"),
    "text": (b"no picture", "cannot identify"),
    "a script": (b"<svg onload='x'/>", "cannot identify"),
    "a pickle": (pickle.dumps(Hostile()), "cannot identify"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n", "cannot identify"),
    "cut": (GOOD_PNG[: len(GOOD_PNG) // 2], "cannot be read"),
    "flipped": (GOOD_PNG[:200] + bytes([GOOD_PNG[200] ^ 1]) + GOOD_PNG[201:], "cannot be read"),
    "one pixel wide": (encoded(Image.new("RGB", (1, 64))), "at least 8"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "at least 8"),
    "bomb": (png(50_000, 50_000), "pixels"),
    "bomb below Pillow's limit": (png(8_193, 8_192), f"at most {MOST_PIXELS:,}"),
    "wide bomb": (png(2**31 - 1, 1), "pixels"),
    "animated PNG": (encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "animated"),
    "animated WebP": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "animated"),
    "32-bit values": (encoded(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("how", BAD_PICTURES)
def test_a_bad_picture_is_named(tmp_path, how):
    content, line = BAD_PICTURES[how]
    (tmp_path / "a b é.png").write_bytes(content)
    with pytest.raises(UserError, match="^image='.*a b é.png': cannot be read") as error:
        read_image(tmp_path / "a b é.png", 16)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_unusual_pictures_are_read_for_what_they_show(tmp_path):
    grey = NOISE[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for image, most in ((deep, 0), (Image.fromarray(NOISE).convert("CMYK"), None), (Image.fromarray(grey), 0)):
        kind = "TIFF" if image.mode == "CMYK" else "PNG"
        (tmp_path / "a.png").write_bytes(encoded(image, kind))
        read = read_image(tmp_path / "a.png")
        assert read.shape == (32, 32, 3) and read.dtype == np.uint8
        if most is not None:
            assert np.array_equal(read, grey[..., None].repeat(3, 2)), "16 bits are scaled, not cut"


# --- folders of pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A sound image folder of two classes, in a path with spaces and unicode."""
    root = tmp_path / "my pictures é"
    for split, count in (("train", 8), ("test", 1)):
        for name in ("rose", "tulip"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(GOOD_PNG)
    return root


def link(to: Path, at: Path) -> None:
    at.symlink_to(to, target_is_directory=to.is_dir())


FOLDERS = {  # what is done to a sound folder -> what is said
    "no split": (lambda f: shutil.rmtree(f / "test"), "has no folder test"),
    "no class": (lambda f: [shutil.rmtree(f / "test" / n) for n in ("rose", "tulip")], "must hold class folders"),
    "too few": (lambda f: (f / "train" / "rose" / "7.png").unlink(), "needs at least 8 training images"),
    "a picture from elsewhere": (
        lambda f: link(REPO / "book" / "results" / "butterflies.png", f / "train" / "rose" / "9.png"),
        "a link that leaves the folder",
    ),
    "a class from elsewhere": (lambda f: link(REPO / "book" / "results", f / "train" / "zinnia"), "a link that leaves"),
    "a loop": (lambda f: link(f / "train" / "rose" / "9.png", f / "train" / "rose" / "9.png"), "image="),
}


@pytest.mark.parametrize("how", FOLDERS)
def test_a_folder_of_pictures_that_is_not_sound_is_refused(photographs, how):
    open_source(str(photographs))
    spoil, line = FOLDERS[how]
    spoil(photographs)
    with pytest.raises((UserError, OSError, RuntimeError), match=line if how != "a loop" else None):
        open_source(str(photographs))


def test_links_within_the_folder_are_taken(photographs):
    link(photographs / "train" / "tulip" / "0.png", photographs / "train" / "rose" / "9.png")
    assert len(image_files(photographs / "train" / "rose", root=photographs)) == 9
    with pytest.raises(UserError, match="leaves the folder"):
        ImageFolder(photographs / "train" / "rose")


TABLES = {
    "not UTF-8": (b"file_name,text\n0.png,ros\xe9\n", "must be text in UTF-8"),
    "wrong columns": (b"name,words\n0.png,a rose\n", "needs the columns file_name and text"),
    "no columns": (b"\n\n0.png\n", "needs the columns"),
    "a caption without end": (b'file_name,text\n0.png,"' + b"x" * 200_000, "cannot be read as a table"),
    "a folder": (None, "cannot be read"),
}


@pytest.mark.parametrize("how", TABLES)
def test_a_table_that_is_not_sound_is_refused(photographs, how):
    content, line = TABLES[how]
    table = photographs / "metadata.csv"
    if content is not None:
        table.write_bytes(content)
        with pytest.raises(UserError, match=line):
            read_metadata(photographs)
    else:
        table.mkdir()
        assert read_metadata(photographs) == []


def test_names_that_lead_elsewhere_and_torn_rows_are_no_rows(photographs):
    rows = f"0.png,a rose\n../../x.png,a\n/etc/passwd,b\n{'x' * 5000}.png,c\n\0.png,d\n,e\ntorn"
    (photographs / "train" / "rose" / "metadata.csv").write_text("file_name,text\n" + rows)
    found = [row["file_name"] for row in read_metadata(photographs / "train" / "rose")]
    assert set(found) <= {"0.png", "/etc/passwd"} and "0.png" in found, "a row is looked up by pictures, never read"


def test_markup_in_captions_is_kept_as_words(photographs):
    words = "<script>alert(1)</script> & {glue:text}`x` $y$"
    (photographs / "train" / "rose" / "metadata.csv").write_text(f'file_name,text\n0.png,"{words}"\n')
    assert read_metadata(photographs / "train" / "rose")[0]["text"] == words


# --- results, and how many there are ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("damaged/")])
def test_a_results_file_that_is_not_sound_is_refused(bad, name):
    with pytest.raises(UserError, match="is not a results file"):
        Results.load(bad / name)


def test_there_are_many():
    assert len(COMMANDS) + len(PIPELINES) + len(BAD_PICTURES) + len(FOLDERS) + len(TABLES) >= 150
