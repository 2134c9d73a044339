"""Training through the bottleneck leaves a plain U-Net behind, and withholds what it says it does."""

import torch

from kdcdiff.models import influence
from kdcdiff.training import bottleneck
from tests.models.test_influence import INPUTS, Small, predict


def shares(pipeline: Small) -> dict[str, float]:
    """How much of the prediction hangs on each part that the variants remove, averaged."""
    steps = influence.spread(pipeline.scheduler, 2)
    found = influence.influence(pipeline.unet, pipeline.scheduler, INPUTS[0], INPUTS[2], steps)
    return {part: changes.mean().item() for part, changes in found.items()}


def test_gains_are_felt_at_once_and_fold_into_a_plain_network():
    pipeline = Small()
    names, before = set(pipeline.unet.state_dict()), shares(pipeline)
    bottleneck.tilt(pipeline.unet, 2.0)
    tilted, after = predict(pipeline.unet), shares(pipeline)
    assert all(after[part] > 3 * before[part] for part in ("mid_block", "down_blocks.3", "up_blocks.0"))
    bottleneck.level(pipeline.unet)
    assert set(pipeline.unet.state_dict()) == names
    assert torch.allclose(predict(pipeline.unet), tilted, atol=1e-5)


def test_a_withheld_prompt_still_reaches_the_middle():
    unet, nobody = Small().unet, torch.zeros(2, 4, dtype=torch.bool)
    empty = torch.zeros(5, 16)
    with bottleneck.withheld(unet, empty, torch.tensor([True, False]), nobody):
        hidden = predict(unet)
        for attention in unet.mid_block.attentions:
            for block in attention.transformer_blocks:  # deaf to the prompt
                torch.nn.init.zeros_(block.attn2.to_v.weight)
        deaf = predict(unet)
    told = predict(unet)
    assert not torch.equal(hidden[0], deaf[0])  # the mid stage still heard the prompt
    assert not torch.allclose(deaf[0], told[0])  # the outer ones did not
    assert torch.allclose(deaf[1], told[1], atol=1e-6)  # the second sample was told everything


def test_withheld_skips_make_a_sample_depend_on_what_is_below_alone():
    unet, first = Small().unet, torch.tensor([[True] * 4, [False] * 4])
    with bottleneck.withheld(unet, torch.zeros(5, 16), torch.zeros(2, dtype=torch.bool), first):
        without = predict(unet)
    whole = predict(unet)
    assert not torch.allclose(without[0], whole[0], atol=1e-3) and torch.allclose(without[1], whole[1], atol=1e-6)


def test_what_is_withheld_follows_its_shares_and_the_noise():
    draw = bottleneck.Withholding(prompt=0.5, skips=0.8).draw
    timestep = torch.cat([torch.zeros(4000), torch.full((4000,), 500), torch.full((4000,), 1000)])
    prompt, skips = draw(timestep, 1000, 4, torch.Generator().manual_seed(0))
    assert abs(prompt.float().mean() - 0.5) < 0.03
    for noise, part in zip((0.0, 0.5, 1.0), skips.float().split(4000), strict=True):
        wanted = 0.8 * noise * torch.tensor([1, 2 / 3, 1 / 3, 0])
        assert torch.allclose(part.mean(0), wanted, atol=0.03)
    never = bottleneck.Withholding().draw(timestep, 1000, 4, torch.Generator().manual_seed(0))
    assert not never[0].any() and not never[1].any()
