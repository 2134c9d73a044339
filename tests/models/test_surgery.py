"""Surgery: what a variant removes, where its weights come from, and that plain diffusers runs what is left."""

import copy
import json
import os
import subprocess
import sys

from kdcdiff.errors import UserError
from kdcdiff.models import surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.surgery import parameter_shapes, shrink, student_config, weight_map
from kdcdiff.models.variants import VARIANTS, Variant, variant

# isort: split
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

SD1_LIKE = {
    "sample_size": 8, "block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 12,
}  # fmt: skip
SD2_LIKE = SD1_LIKE | {
    "attention_head_dim": (2, 4, 4, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 20,
}
LIKE = {"sd-1": SD1_LIKE, "sd-2": SD2_LIKE}
PARAMETERS = {  # of SD-1.x students, as counted independently (FACTS; BK-SDM's published models)
    "original": 859_520_964, "fewer-pairs": 579_384_964, "bk-sdm-base": 579_384_964,
    "bk-sdm-small": 482_346_884, "bk-sdm-tiny": 323_384_964,
    "kdc-described": 420_423_044, "kdc-printed": 482_346_884,
}  # fmt: skip


def teacher(config=SD1_LIKE, seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(**config).eval()


def noise(net, batch=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, net.config.in_channels, 8, 8, generator=g)
    return x, torch.tensor([7] * batch), torch.randn(batch, 5, net.config.cross_attention_dim, generator=g)


@torch.no_grad()
def output(net):
    x, t, prompt = noise(net)
    return net(x, t, prompt).sample


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_students_have_the_published_number_of_parameters(name):
    shapes = parameter_shapes(student_config(CONFIGS["sd-1"], name))
    assert sum(s.numel() for s in shapes.values()) == PARAMETERS[name]


@pytest.mark.parametrize("base", ["sd-1", "sd-2"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_full_size_parameter_comes_from_one_teacher_parameter_of_its_shape(base, name):
    student, source = parameter_shapes(student_config(CONFIGS[base], name)), parameter_shapes(CONFIGS[base])
    names = weight_map(CONFIGS[base], name)
    assert names.keys() == student.keys()
    assert len(set(names.values())) == len(names), "two student parameters from one of the teacher's"
    assert all(student[s] == source[t] for s, t in names.items())


def test_the_first_pairs_and_the_last_up_pair_stay():
    names = weight_map(CONFIGS["sd-1"], "kdc-described")
    assert names["down_blocks.1.resnets.0.conv1.weight"] == "down_blocks.1.resnets.0.conv1.weight"
    assert names["up_blocks.0.resnets.0.conv1.weight"] == "up_blocks.1.resnets.0.conv1.weight"  # re-linked
    last = "attentions.2.transformer_blocks.0.attn2.to_k.weight"
    assert names["up_blocks.2." + last.replace("2", "1", 1)] == "up_blocks.3." + last
    assert not any(
        t.startswith(("down_blocks.3.", "up_blocks.0.", "down_blocks.2.downsamplers")) for t in names.values()
    )
    assert not any(t.startswith("mid_block") for t in weight_map(CONFIGS["sd-1"], "kdc-printed").values())


def by_hand(net, cut):
    """The same amputation with a scalpel: modules taken out of a copy of the teacher."""
    net, n = copy.deepcopy(net), len(net.down_blocks)
    for s, (down, up) in enumerate(zip(net.down_blocks, reversed(net.up_blocks), strict=True)):
        left = len(down.resnets) - cut.fewer_pairs
        if cut.innermost == "down removed" and s == n - 1:
            left = 0
        for block, keep in ((down, range(left)), (up, [*range(left), len(up.resnets) - 1])):
            for kind in ("resnets", "attentions"):
                if hasattr(block, kind):
                    setattr(block, kind, nn.ModuleList(getattr(block, kind)[i] for i in keep))
    if cut.innermost == "both removed":
        net.down_blocks, net.up_blocks = net.down_blocks[:-1], net.up_blocks[1:]
        net.down_blocks[-1].downsamplers = None
    if not cut.mid:
        net.mid_block = None
    return net


@pytest.mark.parametrize("base", LIKE)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_student_computes_what_the_teacher_without_those_modules_computes(base, name):
    whole = teacher(LIKE[base])
    student = shrink(whole, name)
    assert torch.equal(output(student), output(by_hand(whole, VARIANTS[name])))
    assert not student.training


def test_original_is_the_teacher_in_memory_of_its_own():
    whole = teacher()
    student = shrink(whole, "original")
    before = output(whole)
    assert torch.equal(output(student), before)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    assert torch.equal(output(whole), before)
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept_as_found(dtype):
    student = shrink(teacher().to(dtype), "bk-sdm-tiny")
    assert {p.dtype for p in student.parameters()} == {dtype}


def test_a_student_trains():
    student = shrink(teacher().train(), "kdc-described")
    assert student.training
    x, t, prompt = noise(student)
    student(x, t, prompt).sample.square().mean().backward()
    idle = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in idle if "attn" not in n], idle


OUTSIDE = """
import sys, importlib.abc
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kdcdiff":
            raise ImportError("no kdcdiff here")
sys.meta_path.insert(0, Wall())
for name in [m for m in sys.modules if m.split(".")[0] == "kdcdiff"]: del sys.modules[name]
try:
    import kdcdiff
except ImportError:
    pass
else:
    raise SystemExit("kdcdiff could be imported")
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
# clones, of inputs and weights, because the alignment of a mapped file shows in the last bit
given = {k: v.clone() for k, v in load_file("inputs.safetensors").items()}
made = {}
for name in sys.argv[1:]:
    net, report = UNet2DConditionModel.from_pretrained(name, output_loading_info=True)
    assert not any(report.values()), report
    for p in net.parameters(): p.data = p.data.clone()
    with torch.no_grad():
        made[name] = net(given["x"], given["t"], given["prompt"]).sample
save_file(made, "outputs.safetensors")
"""


def test_plain_diffusers_loads_every_student_without_this_package(tmp_path):
    from safetensors.torch import load_file, save_file

    whole = teacher(SD2_LIKE)
    x, t, prompt = noise(whole)
    save_file({"x": x, "t": t, "prompt": prompt}, tmp_path / "inputs.safetensors")
    expected = {}
    for name in VARIANTS:
        student = shrink(whole, name)
        student.save_pretrained(tmp_path / name)
        expected[name] = output(student)
        saved = json.loads((tmp_path / name / "config.json").read_text())
        assert len(saved["down_block_types"]) == len(student.down_blocks), "the config is the student's own"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run([sys.executable, "-P", "-c", OUTSIDE, *VARIANTS], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "outputs.safetensors")
    for name in VARIANTS:
        assert torch.equal(found[name], expected[name]), name


@settings(max_examples=15, deadline=None)
@given(
    stages=st.integers(2, 4), widths=st.lists(st.sampled_from([8, 12, 16]), min_size=3, max_size=3),
    layers=st.integers(1, 3), heads=st.sampled_from([1, 2]), channels=st.sampled_from([1, 4, 9]),
    name=st.sampled_from(sorted(VARIANTS)), linear=st.booleans(),
)  # fmt: skip
def test_any_teacher_of_the_family_shrinks_or_says_why_not(stages, widths, layers, heads, channels, name, linear):
    channels_out = (*widths[: stages - 1], widths[stages - 2])
    config = {
        "sample_size": 8, "in_channels": channels, "block_out_channels": channels_out, "norm_num_groups": 4,
        "layers_per_block": layers, "attention_head_dim": heads, "cross_attention_dim": 8,
        "use_linear_projection": linear,
        "down_block_types": ("CrossAttnDownBlock2D",) * (stages - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (stages - 1),
    }  # fmt: skip
    whole, cut = teacher(config), VARIANTS[name]
    if layers - cut.fewer_pairs < 1:
        with pytest.raises(UserError, match="leaves no R-T pair"):
            shrink(whole, name)
        return
    assert torch.equal(output(shrink(whole, name)), output(by_hand(whole, cut)))


def test_a_variant_of_ones_own_in_three_lines(tmp_path):
    mine = Variant("mine", fewer_pairs=(0, 1, 1, 0), mid=False)
    student = shrink(teacher(), mine)
    assert list(student.config.layers_per_block) == [2, 1, 1, 2]
    assert student.mid_block is None
    (tmp_path / "mine.json").write_text('{"fewer_pairs": [0, 1, 1, 0], "mid": false}')
    assert variant(tmp_path / "mine.json") == mine
    assert "(0, 1, 1, 0)" in mine.description and "mid stage" in mine.description


def test_a_student_can_be_shrunk_again():
    once = shrink(teacher(), "fewer-pairs")
    twice = shrink(once, "mid-removed")
    assert torch.equal(output(twice), output(shrink(teacher(), "bk-sdm-small")))


def test_inpainting_channels_just_work():
    student = shrink(teacher(SD1_LIKE | {"in_channels": 9}), "kdc-described")
    assert output(student).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kdc", "one of original"),
        ("nowhere.json", "one of original"),
        (Variant("none", fewer_pairs=2), "leaves no R-T pair in stage 0"),
        (Variant("five", fewer_pairs=(1,) * 5), "teacher's 4 stages"),
    ],
)
def test_bad_variants_are_one_clear_line(what, words):
    with pytest.raises(UserError, match=words) as error:
        shrink(teacher(), what)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fewer_pairs": -1}, "fewer_pairs=-1"),
        ({"fewer_pairs": 1.5}, "fewer_pairs=1.5"),
        ({"innermost": "up removed"}, "innermost='up removed'"),
        ({"mid": 0}, "mid=0"),
        ({"middle": False}, "fewer_pairs, innermost and mid"),
        ([1], "a JSON object"),
    ],
)
def test_bad_variant_files_name_the_field(tmp_path, fields, words):
    (tmp_path / "v.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=words):
        variant(tmp_path / "v.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addition_embed_type": "text_time"}, "SDXL"),
        ({"_class_name": "ControlNetModel"}, "ControlNetModel"),
        ({"_class_name": "CLIPTextModel", "architectures": ["CLIPTextModel"]}, "CLIPTextModel"),
        ({"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 4}, "stages of another kind"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid stage of another kind"),
        ({"block_out_channels": (8, 16, 24, 32)}, "differ in block_out_channels, 24 and 32"),
        ({"attention_head_dim": (2, 2, 2, 4)}, "differ in attention_head_dim"),
    ],
)
def test_teachers_outside_the_family_are_named(change, words):
    with pytest.raises(UserError, match=words):
        student_config(SD1_LIKE | change, "kdc-described")


def test_modules_that_are_no_unet_and_weights_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="ControlNetModel.*Stable Diffusion 1.x"):
        shrink(ControlNetModel.from_unet(teacher()), "original")
    names = dict(teacher().state_dict())
    first = names.pop("conv_in.bias")
    with pytest.raises(UserError, match="conv_in.bias'?: 1 missing tensor"):
        surgery.check_weights(names, SD1_LIKE)
    with pytest.raises(UserError, match="2 surplus tensors"):
        surgery.check_weights(names | {"conv_in.bias": first, "zz": first, "zy": first}, SD1_LIKE)
    with pytest.raises(UserError, match=r"conv_in.bias.*shape \(1,\)"):
        surgery.check_weights(names | {"conv_in.bias": torch.zeros(1)}, SD1_LIKE)
    with pytest.raises(UserError, match="LoRA"):
        surgery.check_weights(names | {"mid_block.lora_A.weight": first}, SD1_LIKE)


def test_planning_a_cut_needs_torch_and_nothing_slower():
    """diffusers and transformers take longer to import than torch, and only networks need them."""
    names = ("surgery", "variants", "feature_hooks", "classifier", "configs", "complexity", "timing", "export")
    rooms = ", ".join(f"kdcdiff.models.{name}" for name in names)
    slow = "[m for m in ('diffusers', 'transformers', 'scipy', 'torch._dynamo') if m in sys.modules]"
    run = subprocess.run([sys.executable, "-c", f"import sys, {rooms}; print({slow})"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr
