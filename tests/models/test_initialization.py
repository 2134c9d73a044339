"""A U-Net that passes on: the same parameters, streams that keep their size, inner stages that are heard."""

import pytest
import torch

from kdcdiff.models import influence
from kdcdiff.models.initialization import pass_on
from kdcdiff.models.pipeline import new_unet
from tests.models.test_influence import INPUTS, Small

INNER = ("mid_block", "down_blocks.3", "up_blocks.0")


def heard(pipeline: Small) -> dict[str, float]:
    """The relative change of the prediction without each part that the variants remove."""
    steps = influence.spread(pipeline.scheduler, 2)
    found = influence.influence(pipeline.unet, pipeline.scheduler, INPUTS[0], INPUTS[2], steps)
    return {part: changes.mean().item() for part, changes in found.items()}


@pytest.mark.parametrize("config", [{}, {"block_out_channels": (8, 16, 16, 32)}])
def test_the_inner_stages_are_heard_from_the_start(config):
    pipeline = Small(**config)
    before, branch = heard(pipeline), pipeline.unet.mid_block.resnets[0].conv1.weight.clone()
    pass_on(pipeline.unet, 0)
    after = heard(pipeline)
    assert all(after[part] > 1.5 * before[part] for part in INNER)
    assert torch.equal(pipeline.unet.mid_block.resnets[0].conv1.weight, branch), "what learns is as it was drawn"


def test_without_branches_and_skip_connections_noise_comes_through_at_its_size():
    """White noise keeps its variance on the way down, as far as it is averaged; on the way up it is not changed."""
    unet = Small().unet
    pass_on(unet, 0)
    down = unet.down_blocks[0].downsamplers[0]
    noise = torch.randn(64, 8, 16, 16)
    assert down(noise).var().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(down(torch.ones(1, 8, 4, 4)), torch.full((1, 8, 2, 2), 2.0))
    up = unet.up_blocks[0].upsamplers[0]
    small = torch.randn(2, 32, 2, 2)
    assert torch.equal(up(small), small.repeat_interleave(2, -1).repeat_interleave(2, -2))
    for stage, inputs in zip(unet.up_blocks, (32, 32, 32, 16), strict=True):
        matrix = stage.resnets[0].conv_shortcut.weight[:, :inputs, 0, 0]
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5)


def test_it_is_the_same_for_the_same_seed_and_another_for_another():
    one, two, other = (new_unet(0, (8, 16, 32, 32), 16) for _ in range(3))
    for unet, seed in ((one, 0), (two, 0), (other, 1)):
        pass_on(unet, seed)
    one, two, other = (unet.state_dict() for unet in (one, two, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [name for name in one if not torch.equal(one[name], other[name])]
