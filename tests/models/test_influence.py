"""What each part does: bypassing keeps shapes, touches nothing else, and finds the part that works."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from kdcdiff.errors import UserError
from kdcdiff.models import influence, surgery
from kdcdiff.models.pipeline import SCHEDULER


class Small:
    """What `influence` needs of a pipeline."""

    def __init__(self, **config):
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(**TINY | config).eval()
        self.scheduler = DDIMScheduler(**SCHEDULER)


TINY = {
    "sample_size": 16, "block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 16, "layers_per_block": 2,
}  # fmt: skip
INPUTS = (torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 5, 16))


def predict(unet):
    with torch.no_grad():
        return unet(*INPUTS, return_dict=False)[0]


def test_every_part_can_be_bypassed_and_comes_back():
    unet = Small().unet
    before = predict(unet)
    for part in [*influence.stages(unet), *influence.pairs(unet)]:
        with influence.bypassed(unet, part):
            without = predict(unet)
        assert without.shape == before.shape and not torch.equal(without, before), part
    assert torch.equal(predict(unet), before)


def test_removable_parts_are_what_the_variants_remove():
    unet = Small().unet
    config = dict(unet.config)
    kept = surgery.layers_kept(config, "bk-sdm-small")
    gone = {layer for layer, stays in kept.items() if not stays and "resnets" in layer}
    named = set(influence.removable(unet))
    pairs = {layer.replace(".resnets", "") for layer in gone if not layer.startswith("mid_block")}
    assert named == pairs | {"mid_block", "down_blocks.3", "up_blocks.0"}


def test_a_part_that_adds_nothing_has_no_influence_and_one_that_adds_more_has_more():
    pipeline, found = Small(), []
    mid = pipeline.unet.mid_block
    adds = [*(r.conv2 for r in mid.resnets), *(a.proj_out for a in mid.attentions)]
    for gain in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        for layer in adds:
            torch.nn.init.normal_(layer.weight, std=0.05).data.mul_(gain)
            torch.nn.init.zeros_(layer.bias)
        levels = influence.spread(pipeline.scheduler, 3)
        changes = influence.influence(pipeline.unet, pipeline.scheduler, INPUTS[0], INPUTS[2], levels, ["mid_block"])
        assert levels == [167, 500, 833] and changes["mid_block"].shape == (3, 2)
        found.append(changes["mid_block"].mean().item())
    assert found[0] == 0 < found[1] < found[2]


def test_bypassing_the_mid_stage_is_removing_it():
    pipeline = Small()
    with influence.bypassed(pipeline.unet, "mid_block"):
        without = predict(pipeline.unet)
    assert torch.allclose(predict(surgery.shrink(pipeline.unet, "mid-removed")), without, atol=1e-6)


def test_the_innermost_down_stage_hands_its_input_on():
    """KDC-Diff's DownBlock2D removed with UpBlock2D kept: the same as residual branches that add nothing."""
    whole, hand = Small().unet, Small().unet
    for layer in hand.down_blocks[-1].resnets:
        torch.nn.init.zeros_(layer.conv2.weight)
        torch.nn.init.zeros_(layer.conv2.bias)
    with influence.bypassed(whole, "down_blocks.3"):
        assert torch.allclose(predict(whole), predict(hand), atol=1e-6)
        assert not torch.allclose(predict(whole), predict(Small().unet), atol=1e-4)


def test_an_unknown_part_and_unequal_numbers_are_refused():
    pipeline = Small()
    with pytest.raises(UserError, match="part='mid': one of down_blocks.0"), influence.bypassed(pipeline.unet, "mid"):
        pass
    with pytest.raises(UserError, match="prompts=1: one for each of the 2 latents"):
        influence.influence(pipeline.unet, pipeline.scheduler, INPUTS[0], INPUTS[2][:1], [500])


def test_the_smallest_time_steps_are_spread_and_none_is_refused():
    assert influence.spread(Small().scheduler, 1) == [500]
    with pytest.raises(UserError, match="levels=0"):
        influence.spread(Small().scheduler, 0)
