"""Feature taps: stages matched by role on every variant, under checkpointing, compilation and exceptions."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdcdiff.errors import UserError
from kdcdiff.models import feature_hooks, surgery
from kdcdiff.models.variants import VARIANTS
from kdcdiff.training import losses

TINY = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16, 24, 24),
    "layers_per_block": 2, "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 8,
}  # fmt: skip


def unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(**TINY | changes)


@pytest.fixture(scope="module")
def teacher():
    return unet().eval().requires_grad_(False)


def call(net, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([10, 700]), torch.randn(2, 5, 8, generator=g)
    return net(*inputs, return_dict=False)[0]


def hooks(net) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_shares_stages_of_one_shape_with_its_teacher(teacher, variant):
    student = surgery.shrink(teacher, variant)
    with feature_hooks.Taps(student, teacher) as taps:
        call(student)
        call(teacher)
        ours, theirs = taps.pop()
    assert len(ours) == len(taps.roles) >= 4
    assert [f.shape for f in ours] == [f.shape for f in theirs]


def test_a_network_shares_every_stage_with_itself_and_the_distance_is_zero(teacher):
    twin = surgery.shrink(teacher, "original")
    with feature_hooks.Taps(twin, teacher) as taps:
        call(twin)
        call(teacher)
        assert losses.feature_loss(*taps.pop()).item() == pytest.approx(0, abs=1e-10)
    assert taps.roles == ["down.0", "down.1", "down.2", "down.3", "mid.4", "up.3", "up.2", "up.1", "up.0"]


def test_the_described_student_is_matched_by_role_and_not_by_index(teacher):
    """Its first up stage is its teacher's second; its middle works at a resolution where the teacher's does not."""
    assert feature_hooks.shared_roles(surgery.shrink(teacher, "kdc-described"), teacher) == [
        "down.0", "down.1", "down.2", "up.2", "up.1", "up.0",
    ]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_stage_gets_a_gradient_from_its_feature(teacher, checkpointing):
    student = surgery.shrink(teacher, "bk-sdm-base").requires_grad_(True).train()
    if checkpointing:
        student.enable_gradient_checkpointing()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.1)
    with feature_hooks.Taps(student, teacher) as taps:
        call(student)
        call(teacher)
        losses.feature_loss(*taps.pop()).backward()
        found = {
            role: max((p.grad.abs().max().item() for p in module.parameters() if p.grad is not None), default=0.0)
            for role, (module, _) in feature_hooks.stage_ends(student).items()
            if role in taps.roles
        }
    assert min(found.values()) > 0, found


def test_checkpointing_changes_no_gradient(teacher):
    grads = []
    for checkpointing in (False, True):
        student = surgery.shrink(teacher, "kdc-described").requires_grad_(True).train()
        with torch.no_grad():
            student.conv_in.weight.mul_(1.2)
        if checkpointing:
            student.enable_gradient_checkpointing()
        with feature_hooks.Taps(student, teacher) as taps:
            call(student)
            call(teacher)
            losses.feature_loss(*taps.pop()).backward()
        grads.append(student.conv_in.weight.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-7) and grads[0].abs().max() > 0


def test_taps_survive_compilation(teacher):
    student = surgery.shrink(teacher, "kdc-described")
    with feature_hooks.Taps(student, teacher) as taps:
        plain = (call(student), call(teacher), taps.pop())[2][0]
        compiled = torch.compile(student, backend="eager")
        again = (call(compiled), call(teacher), taps.pop())[2][0]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, again, strict=True))


def test_hooks_are_removed_after_an_exception(teacher):
    student = surgery.shrink(teacher, "kdc-described")
    before = hooks(student), hooks(teacher)
    with pytest.raises(RuntimeError, match="stop"), feature_hooks.Taps(student, teacher):
        assert hooks(student) > before[0]
        raise RuntimeError("stop")
    assert (hooks(student), hooks(teacher)) == before


def test_another_width_is_refused_by_stage(teacher):
    with pytest.raises(UserError, match="channels of down.0=4: must be the teacher's 8"):
        feature_hooks.Taps(unet(block_out_channels=(4, 16, 24, 24)), teacher)
