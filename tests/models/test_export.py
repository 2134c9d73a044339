"""`kdcdiff shrink` and what it reads: whole and sharded folders, single files in both namings; memory; refusals."""

import json
import os
import subprocess
import sys

from kdcdiff.errors import UserError
from kdcdiff.models import surgery, unet_files
from kdcdiff.models.pipeline import UNET, _text_config, assemble, load_pipeline, new_autoencoder, train_tokenizer

# isort: split
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from kdcdiff.cli import main
from kdcdiff.models.export import save_portable

from ..imports import REPO

WORDS = ["a photo of a red rose", "a photo of a blue bell"]
SMALL = UNET | {"block_out_channels": (16, 24, 32, 32)}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small pipeline folder with random weights, in fp16."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORDS)
    text = CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer)))
    whole = assemble(new_autoencoder(0), UNet2DConditionModel(**SMALL), text, tokenizer).to(torch.float16)
    folder = tmp_path_factory.mktemp("teacher") / "whole"
    whole.save_pretrained(folder)
    return folder


def weights(folder):
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float16).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def expected(pipeline, name):
    teacher = UNet2DConditionModel.from_pretrained(pipeline / "unet", torch_dtype=torch.float16)
    return surgery.shrink(teacher, name).state_dict()


def test_what_is_written_names_no_folder_of_this_machine(pipeline, tmp_path):
    loaded = load_pipeline(pipeline)
    save_portable(loaded, tmp_path / "whole")
    save_portable(loaded.unet, tmp_path / "unet")
    assert main(["shrink", str(tmp_path / "whole"), "--variant", "original", "--out", str(tmp_path / "cut")]) == 0
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 15 and not [file for file in written if str(pipeline).encode() in file.read_bytes()]
    assert "_name_or_path" not in (tmp_path / "unet" / "config.json").read_text()
    assert same(UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict(), loaded.unet.state_dict())


def test_one_that_still_names_a_folder_is_read_as_ever(pipeline, tmp_path):
    """Artifacts that were published before hold one; it decides nothing."""
    loaded = load_pipeline(pipeline)
    loaded.unet.save_pretrained(tmp_path / "old")
    save_portable(loaded.unet, tmp_path / "new")
    assert str(pipeline) in (tmp_path / "old" / "config.json").read_text()
    old, new = (UNet2DConditionModel.from_pretrained(tmp_path / name) for name in ("old", "new"))
    assert same(old.state_dict(), new.state_dict())
    assert {k: v for k, v in old.config.items() if k != "_name_or_path"} == {
        k: v for k, v in new.config.items() if k != "_name_or_path"
    }


def test_nothing_is_written_past_it():
    """Whatever calls `save_pretrained` itself would publish a path again."""
    saved = [path.name for path in (REPO / "kdcdiff").rglob("*.py") if ".save_pretrained(" in path.read_text()]
    assert saved == ["export.py"]


def test_shrink_writes_a_whole_pipeline_that_plain_diffusers_runs(pipeline, tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["shrink", str(pipeline), "--variant", "kdc-described", "--out", str(out)]) == 0
    assert "-> " in capsys.readouterr().out
    assert same(weights(out / "unet"), expected(pipeline, "kdc-described"))
    card = (out / "README.md").read_text()
    assert "DownBlock2D and UpBlock2D" in card and "float16" in card and "not been retrained" in card
    code = (
        "import sys; sys.modules['kdcdiff'] = None\n"
        "import torch; from diffusers import StableDiffusionPipeline as P\n"
        "p = P.from_pretrained('student', safety_checker=None, torch_dtype=torch.float16)\n"
        "g = torch.Generator().manual_seed(0)\n"
        "i = p('a red rose', height=64, width=64, num_inference_steps=2, generator=g, output_type='pt')\n"
        "print(tuple(i.images.shape))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("(1, 3, 64, 64)")
    assert not [f.name for f in tmp_path.iterdir() if f.name.startswith(".")], "nothing half-made is left"


def test_sharded_and_single_files_give_the_same_student(pipeline, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet", torch_dtype=torch.float16)
    unet.save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    save_file(unet.state_dict(), tmp_path / "diffusers.safetensors")
    save_file(original_names(unet), tmp_path / "original.safetensors")
    wanted = expected(pipeline, "bk-sdm-small")
    for source, config in (
        ("sharded", None),
        ("diffusers.safetensors", pipeline),
        ("original.safetensors", pipeline),
    ):
        found = unet_files.open_unet(tmp_path / source, config)
        assert same(surgery.shrink_checkpoint(found, "bk-sdm-small").state_dict(), wanted), source


def original_names(unet):
    """A U-Net's tensors under the original code's names, written from its layout: blocks numbered in order."""
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
              "norm2": "out_layers.0", "conv2": "out_layers.3",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    ends = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_out": "out.2",
            "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0"}  # fmt: skip
    names = {}
    for name, tensor in unet.state_dict().items():
        p = name.split(".")
        if p[0] == "down_blocks":
            place = f"input_blocks.{1 + 3 * int(p[1]) + (2 if p[2] == 'downsamplers' else int(p[3]))}"
            slot = {"resnets": "0", "attentions": "1", "downsamplers": "0"}[p[2]]
            rest = ["op", p[-1]] if p[2] == "downsamplers" else p[4:]
        elif p[0] == "up_blocks":
            place = f"output_blocks.{3 * int(p[1]) + (2 if p[2] == 'upsamplers' else int(p[3]))}"
            slot = {"resnets": "0", "attentions": "1", "upsamplers": "1" if p[1] == "0" else "2"}[p[2]]
            rest = p[4:]
        elif p[0] == "mid_block":
            place, slot, rest = "middle_block", "1" if p[1] == "attentions" else str(2 * int(p[2])), p[3:]
        else:
            names[unet_files.LDM + ends[".".join(p[:-1])] + "." + p[-1]] = tensor
            continue
        rest = [resnet.get(rest[0], rest[0]), *rest[1:]] if "resnets" in p[:3] else rest
        names[unet_files.LDM + ".".join([place, slot, *rest])] = tensor
    return names


def test_the_shipped_pipeline_is_a_teacher_as_any_other(tmp_path, capsys):
    out = tmp_path / "student"
    assert main(["shrink", "flora", "--variant", "kdc-described", "--out", str(out)]) == 0
    assert "a pipeline; U-Net parameters" in capsys.readouterr().out
    assert len(load_pipeline(out).unet.down_blocks) == 3 and "a student of flora" in (out / "README.md").read_text()


def test_the_map_is_printed(pipeline, capsys):
    assert main(["shrink", str(pipeline), "--variant", "kdc-described", "--map"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "up_blocks.0.resnets.1.conv1.weight <- up_blocks.1.resnets.2.conv1.weight" in lines


def test_a_full_size_single_file_is_recognised_by_its_shapes(tmp_path):
    sizes = {"block_out_channels": (16, 24, 32, 32), "norm_num_groups": 8, "attention_head_dim": 2}
    meta = surgery.on_meta(sizes | {"in_channels": 9, "cross_attention_dim": 1024})
    save_file({k: torch.zeros(v.shape) for k, v in meta.state_dict().items()}, tmp_path / "model.safetensors")
    found = unet_files.open_unet(tmp_path / "model.safetensors")
    assert (found.config["cross_attention_dim"], found.config["in_channels"]) == (1024, 9)
    with pytest.raises(UserError, match="has shape"):
        surgery.shrink_checkpoint(found, "original")


MEMORY = """
import resource, sys
from kdcdiff.models import surgery, unet_files
import torch
torch.zeros(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
found = unet_files.open_unet(sys.argv[1])
surgery.weight_map(found.config, sys.argv[2])
before = peak()
student = surgery.shrink_checkpoint(found, sys.argv[2])
print(peak() - before, sum(p.nbytes for p in student.parameters()))
"""


def test_memory_stays_below_teacher_and_student(tmp_path):
    net = UNet2DConditionModel(sample_size=8, block_out_channels=(96, 192, 384, 384), cross_attention_dim=128)
    net.save_pretrained(tmp_path / "net")
    teacher = sum(p.nbytes for p in net.parameters())
    del net
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "net"), "kdc-described"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    grown, student = map(int, run.stdout.split())
    assert student > 100 * 2**20
    assert grown < teacher + student + 2**26, (grown / 2**20, teacher / 2**20, student / 2**20)


def failing(capsys, *words):
    assert main(["shrink", *map(str, words)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


def test_refusals_are_one_clear_line(pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    tail = ("--variant", "kdc-described", "--out", out)
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    assert "one of original" in failing(capsys, pipeline, "--variant", "kdc", "--out", out)
    assert "not found; must be flora, garden, a pipeline or U-Net folder" in failing(
        capsys, tmp_path / "nowhere", *tail
    )
    assert "name a new folder" in failing(capsys, pipeline, "--variant", "original")
    assert "new or empty folder" in failing(capsys, pipeline, "--variant", "original", "--out", pipeline)
    assert "CLIPTextModel" in failing(capsys, text_encoder(pipeline, tmp_path), *tail)
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "control")
    assert "ControlNetModel" in failing(capsys, tmp_path / "control", *tail)
    (tmp_path / "lora").mkdir()
    save_file({"unet.lora_A": torch.zeros(1)}, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert "LoRA" in failing(capsys, tmp_path / "lora", *tail)
    assert "LoRA" in failing(capsys, tmp_path / "lora" / "pytorch_lora_weights.safetensors", *tail)
    (tmp_path / "old.ckpt").write_bytes(b"x")
    assert "unpickled" in failing(capsys, tmp_path / "old.ckpt", *tail)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert "cannot be read as safetensors" in failing(capsys, tmp_path / "torn.safetensors", *tail)
    assert not out.exists()


def text_encoder(pipeline, tmp_path):
    """A text encoder's folder, as one might name by mistake."""
    config = json.loads((pipeline / "text_encoder" / "config.json").read_text())
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "text" / "diffusion_pytorch_model.safetensors")
    return tmp_path / "text"


def test_missing_surplus_and_lost_shards_are_named(pipeline, tmp_path, capsys):
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    unet.save_pretrained(tmp_path / "net")
    file = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    tail = ("--variant", "original", "--out", tmp_path / "out")
    save_file({k: v for k, v in whole.items() if k != "conv_in.bias"}, file)
    assert "conv_in.bias': 1 missing tensor" in failing(capsys, tmp_path / "net", *tail)
    save_file(whole | {"extra": torch.zeros(1)}, file)
    assert "extra': 1 surplus tensor" in failing(capsys, tmp_path / "net", *tail)
    unet.save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    lost = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    lost.unlink()
    assert "missing" in failing(capsys, tmp_path / "sharded", *tail)


def test_a_variant_file_works_on_the_command_line(pipeline, tmp_path):
    (tmp_path / "thin.json").write_text('{"fewer_pairs": [1, 1, 0, 0]}')
    out = tmp_path / "thin"
    assert main(["shrink", str(pipeline), "--variant", str(tmp_path / "thin.json"), "--out", str(out)]) == 0
    assert json.loads((out / "unet" / "config.json").read_text())["layers_per_block"] == [1, 1, 2, 2]
    assert StableDiffusionPipeline.from_pretrained(out, safety_checker=None).unet is not None
