"""Counts, exact to the integer against independent figures and the tools themselves; times; the command."""

import json

from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import Estimate, ratio
from kdcdiff.models import complexity, surgery, timing
from kdcdiff.models.configs import AUTOENCODER, CONFIGS, TEXT_ENCODER
from kdcdiff.models.macs import CONVENTIONS, count
from kdcdiff.models.variants import VARIANTS

# isort: split
import pytest
import thop
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig

from kdcdiff.cli import main

TINY = {
    "sample_size": 16, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 12,
}  # fmt: skip
ROWS = [  # teacher, variant, parameters; fvcore, torch / 2, thop in GMAC as established, None where not
    ("sd-1", "original", 859_520_964, "339.013", "401.64", "338.75"),
    ("sd-2", "original", 865_910_724, "339.505", "402.13", "339.24"),
    ("sd-1", "bk-sdm-base", 579_384_964, "223.924", "261.50", "223.76"),
    ("sd-1", "bk-sdm-small", 482_346_884, "217.894", "255.45", "217.73"),
    ("sd-1", "kdc-described", 420_423_044, "228.853", "266.62", "228.68"),
    ("sd-1", "bk-sdm-tiny", 323_384_964, None, "242.75", "205.04"),
]


@pytest.mark.parametrize(("teacher", "variant", "parameters", "fvcore", "products", "thop"), ROWS)
def test_full_size_counts_are_the_established_ones(teacher, variant, parameters, fvcore, products, thop):
    cost = complexity.count(surgery.student_config(CONFIGS[teacher], variant))
    assert cost.parameters == parameters
    for convention, printed in (("fvcore", fvcore), ("all", products), ("thop", thop)):
        if printed is not None:
            places = len(printed.partition(".")[2])
            assert f"{cost.macs[convention] / 1e9:.{places}f}" == printed, convention


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_and_layers_add_up_to_the_whole(variant):
    config = surgery.student_config(CONFIGS["sd-1"], variant)
    cost = complexity.count(config)
    assert sum(p.parameters for p in cost.stages.values()) == cost.parameters
    net = surgery.on_meta(config)
    inputs = complexity.meta_inputs(net, 64)
    fine = complexity.count_parts(net, inputs, fine=True)
    assert sum(c.parameters for c in fine.values()) == cost.parameters
    for name in CONVENTIONS:
        assert sum(p.macs[name] for p in cost.stages.values()) == cost.macs[name]
        assert sum(c.macs[name] for c in fine.values()) == cost.macs[name]


# --- the conventions, each against what it is named after


def tiny_inputs() -> tuple[torch.Tensor, ...]:
    return torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 77, 12)


@pytest.fixture(params=["original", "kdc-described", "down-removed", "linear projections"])
def real(request):
    """A small U-Net on the CPU, for the tools: they run it."""
    linear = request.param == "linear projections"
    config = TINY | {"use_linear_projection": True} if linear else surgery.student_config(TINY, request.param)
    return UNet2DConditionModel(**surgery.with_defaults(config)).eval()


def test_the_fvcore_convention_is_fvcore(real):
    analysis = FlopCountAnalysis(real, tiny_inputs())
    quiet = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert complexity.count(real).macs["fvcore"] == quiet.total()


def test_the_thop_convention_is_thop(real):
    cost = complexity.count(real)
    assert cost.macs["thop"] == int(thop.profile(real, inputs=tiny_inputs(), verbose=False)[0])
    assert cost.parameters == sum(p.numel() for p in real.parameters())


def test_the_hooks_convention_is_convolutions_and_linear_layers_with_bias(real):
    total = 0

    def add(module, args, output):
        nonlocal total
        total += output.numel() * (module.weight[0].numel() + (module.bias is not None))

    for module in real.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        real(*tiny_inputs())
    assert complexity.count(real).macs["hooks"] == total


def test_all_products_hold_the_attention_products(real):
    """Against attention written out as matrix products, which torch's counter sees on a CPU as well."""
    counted = complexity.count(real).macs["all"]
    real.set_attn_processor(AttnProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        real(*tiny_inputs())
    assert 2 * counted == counter.get_total_flops()


class Attention(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_counts_on_the_meta_device_and_only_there():
    """Two products, queries by keys and weights by values; a CPU count, which would lack them, is refused."""
    n, heads, queries, keys, width = 2, 3, 5, 7, 11
    with torch.device("meta"):
        q, k = torch.empty(n, heads, queries, width), torch.empty(n, heads, keys, width)
    found = count(Attention(), q, k, k)
    assert found.macs == {"fvcore": 0, "thop": 0, "hooks": 0, "all": 2 * n * heads * queries * keys * width}
    with pytest.raises(AssertionError, match="attention is not counted"):
        count(torch.nn.Linear(2, 2), torch.zeros(1, 2))


def test_counting_leaves_no_hooks_behind(real):
    net = real.to("meta")
    count(net, *complexity.meta_inputs(net, 16))
    assert not any(module._forward_hooks for module in net.modules())


# --- a whole U-Net, and the pipeline around it


def test_a_network_and_its_configuration_count_the_same_and_size_matters():
    net = UNet2DConditionModel(**TINY)
    assert complexity.count(net) == complexity.count(TINY)
    assert complexity.count(net, latent=32).macs["fvcore"] > 3 * complexity.count(net).macs["fvcore"]
    doubled = complexity.count(net, batch=2)
    assert doubled.macs["all"] == pytest.approx(2 * complexity.count(net).macs["all"], rel=1e-9)


def test_kept_activations_are_what_a_real_step_keeps():
    net = UNet2DConditionModel(**TINY)
    own, kept = {p.untyped_storage()._cdata for p in net.parameters()}, {}

    def pack(t):
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    x, prompt = torch.zeros(1, 4, 16, 16), torch.zeros(1, 77, 12)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x, torch.zeros(1), prompt)
    real = sum(s.nbytes() for s in kept.values())
    assert complexity.count(net).kept_bytes == pytest.approx(real, rel=0.02)


def test_a_picture_costs_its_parts():
    unet = complexity.count(CONFIGS["sd-1"])
    guided, plain = (complexity.pipeline_cost(unet, steps=25, guidance=g) for g in (True, False))
    assert guided.parameters == 859_520_964 + 123_060_480 + 49_490_199
    by_hand = plain.text_encoder.macs["all"] + 25 * unet.macs["all"] + plain.decoder.macs["all"]
    assert plain.macs["all"] == by_hand
    assert guided.macs["all"] - plain.macs["all"] == plain.text_encoder.macs["all"] + 25 * unet.macs["all"]
    with pytest.raises(UserError, match="steps=0"):
        complexity.pipeline_cost(unet, steps=0)


def test_a_pipeline_folders_companions_are_counted_by_its_own_configurations(tmp_path):
    unet, sd = complexity.count(CONFIGS["sd-1"]), complexity.pipeline_cost(complexity.count(CONFIGS["sd-1"]))
    with torch.device("meta"):
        AutoencoderKL(**AUTOENCODER).save_config(tmp_path / "vae")
    (tmp_path / "text_encoder").mkdir()
    CLIPTextConfig(**TEXT_ENCODER).to_json_file(tmp_path / "text_encoder" / "config.json")
    assert complexity.pipeline_cost(unet, tmp_path) == sd
    CLIPTextConfig(**TEXT_ENCODER | {"num_hidden_layers": 6}).to_json_file(tmp_path / "text_encoder" / "config.json")
    assert complexity.pipeline_cost(unet, tmp_path).text_encoder.parameters < sd.text_encoder.parameters
    with pytest.raises(UserError, match="cannot be read as JSON"):
        complexity.pipeline_cost(unet, tmp_path / "vae")


def test_times_are_medians_of_warm_calls():
    calls = []
    taken = timing.measure(lambda: calls.append(1), n=4, warm=2)
    assert len(calls) == 6
    assert 0 <= taken.low <= taken.seconds <= taken.high
    assert taken.n == 4 and taken.peak_bytes > 2**20
    net = timing.random_unet(TINY, dtype="bfloat16")
    taken = timing.latency(net, 2)
    assert taken.dtype == "bfloat16" and taken.device == "cpu" and taken.seconds > 0


def test_random_weights_follow_the_seed():
    a, b, c = (timing.random_unet(TINY, seed=s).conv_in.weight for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_command_prints_a_table_and_json(capsys, tmp_path):
    assert main(["complexity", "kdc-described", "--steps", "50"]) == 0
    table = capsys.readouterr().out
    assert "420,423,044" in table and "228.853" in table and "50 steps with guidance" in table
    assert main(["complexity", "kdc-printed", "--json", "--no-guidance"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unet"]["parameters"] == 482_346_884 and told["pipeline"]["guidance"] is False
    UNet2DConditionModel(**TINY).save_pretrained(tmp_path / "net")
    assert main(["complexity", str(tmp_path / "net"), "--calls", "1", "--latent", "8"]) == 0
    assert "random weights" in capsys.readouterr().out
    assert main(["complexity", "bk-sdm-tiny", "--teacher", str(tmp_path / "net")]) == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nothing/like/this"], "not found"),
        (["original", "--latent", "0"], "--latent: must be a whole number from 1, not '0'"),
        (["original", "--steps", "0"], "--steps: must be a whole number from 1"),
        (["original", "--calls", "-1"], "--calls: must be a whole number from 0"),
    ],
)
def test_bad_input_is_one_line(capsys, words, error):
    assert main(["complexity", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert error in told and told.startswith("error: ") and "\n" not in told


def test_times_are_compared_round_by_round():
    big = timing.random_unet(TINY | {"block_out_channels": (32, 64, 64, 64)})
    found = timing.rounds_of({"big": big, "small": timing.random_unet(TINY | {"layers_per_block": 1})}, 3)
    assert ratio(found["big"], found["big"]) == Estimate(1, 1, 1, 3)
    small = ratio(found["small"], found["big"])
    assert small.low <= small.value <= small.high and small.value < 1 and small.n == 3
    with pytest.raises(UserError, match="rounds=1"):
        timing.rounds_of({"big": big}, 1)
