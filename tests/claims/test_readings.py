"""The audit's counts against the real counting libraries; the two ways of building a network together."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdcdiff.claims import readings
from kdcdiff.errors import UserError
from kdcdiff.models.configs import CONFIGS, network_count
from kdcdiff.models.macs import count

SMALL = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 48,
}


def inputs(device: str) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(1, 4, 8, 8, device=device),
        torch.zeros(1, device=device),
        torch.zeros(1, 7, 48, device=device),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["conv projections", "linear projections"])
def small(request):
    return UNet2DConditionModel(**SMALL, use_linear_projection=request.param).eval()


@pytest.fixture(scope="module")
def counted(small):
    return count(small.to("meta"), *inputs("meta"))


@pytest.fixture
def real(small):
    return UNet2DConditionModel.from_config(small.config).eval()


def test_the_fvcore_convention_is_fvcore(real, counted):
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(real, inputs("cpu")).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counted.fvcore == analysis.total()


def test_the_thop_convention_is_thop(real, counted):
    from thop import profile

    macs, parameters = profile(real, inputs("cpu"), verbose=False)
    assert counted.thop == macs
    assert counted.parameters == sum(p.numel() for p in real.parameters())


def test_the_hooks_convention_is_convolutions_and_linear_layers_with_bias(real, counted):
    total = 0

    def add(module, args, output):
        nonlocal total
        weight = module.weight[0].numel() + (module.bias is not None)
        total += output.numel() * weight

    for module in real.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        real(*inputs("cpu"))
    assert counted.hooks == total


def test_all_products_holds_the_attention_products(real, counted):
    """Against attention written out as matrix products: torch's counter misses the CPU's fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    real.set_attn_processor(AttnProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        real(*inputs("cpu"))
    assert 2 * counted.all == counter.get_total_flops()


def test_counting_leaves_no_hooks_behind(small):
    count(small.to("meta"), *inputs("meta"))
    assert not any(m._forward_hooks for m in small.modules())


def test_an_unknown_convention_is_refused(counted):
    with pytest.raises(UserError, match="convention='flops': one of fvcore, thop, hooks, all"):
        counted.macs("flops")


# Full size, published or established: parameters, fvcore and all products to the printed digits.
KNOWN = {
    "sd-1": (859_520_964, "339.013", "401.64"),
    "sd-2": (865_910_724, "339.505", "402.13"),
    "bk-sdm-base": (579_384_964, "223.924", "261.50"),
    "bk-sdm-small": (482_346_884, "217.894", "255.45"),
    "bk-sdm-tiny": (323_384_964, "205.197", "242.75"),
    "kdc-described": (420_423_044, "228.853", "266.62"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_full_size_counts(name):
    found = network_count(name)
    assert (found.parameters, f"{found.fvcore / 1e9:.3f}", f"{found.all / 1e9:.2f}") == KNOWN[name]


@pytest.mark.parametrize("name", [n for n in CONFIGS if readings.as_design(n)])
def test_added_parts_are_the_whole_network(name):
    design = readings.as_design(name)
    assert readings.design_count(design) == network_count(name)


def test_the_family_names_each_reading_once():
    listed = list(readings.family())
    assert len(listed) == len(set(listed)) == len({d.label for d in listed})


def test_the_printed_row_is_no_network():
    by_parameters = {d for d, _ in readings.matching(482_346_884)}
    by_macs = readings.matching(gmac="228.85")
    assert by_parameters == {readings.as_design("bk-sdm-small")}
    assert readings.as_design("kdc-described") in {d for d, _ in by_macs}
    assert {convention for _, convention in by_macs} == {"fvcore"}
    assert not by_parameters & {d for d, _ in by_macs}


def test_a_student_inherits_from_its_own_family_only():
    assert readings.inherits("kdc-described", "sd-1")
    assert readings.inherits("bk-sdm-tiny", "sd-1")
    assert not readings.inherits("kdc-described", "sd-2")


@pytest.mark.parametrize(("value", "text", "holds"), [
    (339.5054, "339.50", True),  # cut
    (339.4951, "339.50", True),  # rounded
    (339.5154, "339.50", False),
    (481.9, "482", True),
    (482.9, "482", True),
    (483.0, "482", False),
])  # fmt: skip
def test_what_prints_as_what(value, text, holds):
    assert readings.printed(round(value * 10**6), 10**6, text) is holds
