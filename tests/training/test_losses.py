"""The losses against closed forms: what each sees, what it cannot see, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcdiff.errors import UserError
from kdcdiff.training import losses

SHAPE = (3, 4, 5, 6)


def noise(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, x)[0]


# --- soft targets, equation (1) ------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", losses.READINGS)
def test_soft_loss_is_the_divergence_written_out(reading):
    student, teacher, t = noise(0), noise(1), 3.0
    p, q = (torch.softmax(losses.READINGS[reading](x) / t, -1) for x in (teacher, student))
    by_hand = t**2 * (p * (p / q).log()).sum(-1).mean()
    assert losses.soft_target_loss(student, teacher, t, reading).item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert losses.soft_target_loss(teacher, teacher, t, reading).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("reading", losses.READINGS)
def test_at_high_temperature_it_is_half_the_centred_squared_distance(reading):
    """T^2 KL -> 1/2 times the mean over the distribution's values of the squared, centred difference."""
    student, teacher = noise(2), noise(3)
    d = losses.READINGS[reading](student - teacher)
    limit = 0.5 * (d - d.mean(-1, keepdim=True)).square().mean(-1).mean()
    # far above the values' scale, yet low enough for float32's last digits
    assert losses.soft_target_loss(student, teacher, 30.0, reading).item() == pytest.approx(limit.item(), rel=0.02)


def test_how_close_it_is_to_an_output_mse_at_each_temperature():
    """Over 1024 values, standard normal: the ratio to the limit, and the cosine of the two gradients."""
    student, teacher = (
        torch.randn(256, 4, 16, 16, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2)
    )
    student.requires_grad_()
    limit = 0.5 * (student - teacher).square().mean()
    along = gradient(limit, student).flatten()
    expected = {1.0: (0.05, 0.78), 4.0: (0.02, 0.984), 20.0: (5e-3, 0.9992), 1000.0: (1e-3, 0.9998)}
    for temperature, (within, cosine) in expected.items():
        loss = losses.soft_target_loss(student, teacher, temperature)
        assert (loss / limit).item() == pytest.approx(1, abs=within)
        found = F.cosine_similarity(gradient(loss, student).flatten(), along, dim=0).item()
        assert found == pytest.approx(cosine, abs=0.03 if temperature == 1 else 5e-3)


@pytest.mark.parametrize(
    ("reading", "blind"),
    [("all", (3, 1, 1, 1)), ("space", (3, 4, 1, 1)), ("channels", (3, 1, 5, 6))],
)
def test_each_reading_is_blind_to_its_own_shift(reading, blind):
    student, teacher = noise(4).requires_grad_(), noise(5)
    shift = torch.randn(blind, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    loss = losses.soft_target_loss(student, teacher, 2.0, reading)
    assert losses.soft_target_loss(student + shift, teacher, 2.0, reading).item() == pytest.approx(
        loss.item(), rel=1e-4
    )
    assert F.mse_loss(student + shift, teacher) > F.mse_loss(student, teacher) + 0.1
    along = gradient(loss, student).double()
    axes = [i for i, size in enumerate(blind) if size == 1]
    assert along.sum(axes).abs().max() < 1e-5 < along.abs().max()


def test_its_gradient_keeps_its_size_when_the_temperature_grows():
    """The factor T^2 is there for this: without it the gradient would fall as 1/T^2."""
    student, teacher = noise(7).requires_grad_(), noise(8)
    sizes = [gradient(losses.soft_target_loss(student, teacher, t), student).norm().item() for t in (8.0, 64.0)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


# --- hard targets, equation (2) ------------------------------------------------------------------------------


@pytest.mark.parametrize("label", losses.LABELS)
def test_the_teachers_half_of_the_hard_loss_moves_nothing(label):
    student, target = noise(9).requires_grad_(), noise(10)
    grads, values = [], []
    for seed in (11, 12):
        loss = losses.hard_target_loss(student, noise(seed), target, label=label)
        grads.append(gradient(loss, student))
        values.append(loss.item())
    assert torch.equal(grads[0], grads[1]) and values[0] != values[1]


def test_the_hard_loss_is_two_cross_entropies():
    student, teacher, target = noise(13), noise(14), noise(15)
    logits = [x.flatten(1) for x in (student, teacher)]
    truth = torch.softmax(target.flatten(1), -1)
    by_hand = sum(F.cross_entropy(x, truth) for x in logits)
    assert losses.hard_target_loss(student, teacher, target).item() == pytest.approx(by_hand.item(), rel=1e-5)
    index = target.flatten(1).argmax(1)
    by_hand = sum(F.cross_entropy(x, index) for x in logits)
    found = losses.hard_target_loss(student, teacher, target, label="argmax").item()
    assert found == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_hard_loss_is_least_where_the_student_equals_the_truth_up_to_a_constant():
    teacher, target = noise(16), noise(17)
    best = losses.hard_target_loss(target + 5.0, teacher, target)
    for seed in range(18, 22):
        assert losses.hard_target_loss(target + 0.3 * noise(seed), teacher, target) > best


# --- features and outputs, equation (3) ----------------------------------------------------------------------


def test_feature_loss_sums_stages_and_averages_within_them():
    ours = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 2, 2)]
    theirs = [torch.full((2, 3, 4, 4), 2.0), torch.full((2, 6, 2, 2), 3.0)]
    assert losses.feature_loss(ours, theirs).item() == pytest.approx(4 + 9)


def test_denoising_loss_and_its_weights():
    a, b = noise(23), noise(24)
    assert losses.denoising_loss(a, b).item() == pytest.approx(F.mse_loss(a, b).item(), rel=1e-5)
    ones = losses.denoising_loss(a, b, torch.ones(3))
    assert ones.item() == pytest.approx(F.mse_loss(a, b).item(), rel=1e-5)
    only = losses.denoising_loss(a, b, torch.tensor([3.0, 0.0, 0.0]))
    assert only.item() == pytest.approx(F.mse_loss(a[0], b[0]).item(), rel=1e-5)


# --- the total, equation (6) ---------------------------------------------------------------------------------


def total(**weights):
    objective = losses.KDCLoss(**weights)
    features = {"student_features": [noise(30)], "teacher_features": [noise(31)]}
    return objective(student=noise(32), teacher=noise(33), target=noise(34), **features)


@settings(max_examples=30, deadline=None)
@given(alpha=st.floats(0, 1), beta=st.floats(0, 10), gamma=st.floats(0, 10), temperature=st.floats(0.1, 50))
def test_the_total_is_its_weighted_terms(alpha, beta, gamma, temperature):
    value, terms = total(alpha=alpha, beta=beta, gamma=gamma, temperature=temperature)
    weights = {"soft": alpha, "hard": 1 - alpha, "feature": beta, "mse": gamma}
    assert value.item() == pytest.approx(sum(weights[k] * terms[k].item() for k in weights), rel=1e-4, abs=1e-5)
    assert set(terms) == set(weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5: must be between 0 and 1"),
        ({"beta": -0.1}, "beta=-0.1: must be 0 or more"),
        ({"gamma": math.inf}, "gamma=inf: must be 0 or more, and finite"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"temperature": math.nan}, "temperature=nan: must be above 0"),
        ({"reading": "pixels"}, "reading='pixels': must be one of all, space, channels"),
        ({"label": "noise"}, "label='noise': must be one of distribution, argmax"),
    ],
)
def test_bad_weights_are_refused_by_name(weights, message):
    with pytest.raises(UserError, match=message):
        losses.KDCLoss(**weights)


def test_shapes_that_differ_are_refused_by_name():
    a, b = noise(40), noise(41)[:, :2]
    for call in (
        lambda: losses.soft_target_loss(a, b, 1.0),
        lambda: losses.hard_target_loss(a, a, b),
        lambda: losses.denoising_loss(a, b),
        lambda: losses.feature_loss([a], [b]),
        lambda: losses.feature_loss([a], [a, a]),
    ):
        with pytest.raises(UserError, match="must be"):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1000.0])
def test_half_precision_gives_finite_losses_and_gradients(dtype, temperature):
    student = (60 * noise(42)).to(dtype).requires_grad_()
    teacher, target = (60 * noise(43)).to(dtype), noise(44).to(dtype)
    value, terms = losses.KDCLoss(alpha=0.5, temperature=temperature)(
        student=student,
        teacher=teacher,
        target=target,
        student_features=[student],
        teacher_features=[teacher],
    )
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()
    assert all(t.isfinite() for t in terms.values())


def test_values_that_are_not_finite_are_refused_by_name():
    bad = noise(0)
    bad[0, 0, 0, :2] = float("nan")
    with pytest.raises(UserError, match=r"teacher='2 of \d+ values not finite': every value must be finite"):
        losses.soft_target_loss(noise(1), bad, 4.0)
    with pytest.raises(UserError, match="target="):
        losses.denoising_loss(noise(1), bad)


def test_min_snr_weights_by_hand():
    alphas = torch.tensor([0.5, 0.9, 0.99])  # SNR 1, 9, 99
    steps = torch.tensor([0, 1, 2])
    close = lambda kind, expected: torch.testing.assert_close(  # noqa: E731
        losses.min_snr_weight(alphas, steps, 5.0, kind), torch.tensor(expected), rtol=1e-4, atol=0
    )
    close("epsilon", [1.0, 5 / 9, 5 / 99])
    close("v_prediction", [1 / 2, 5 / 10, 5 / 100])
    close("sample", [1.0, 5.0, 5.0])
    with pytest.raises(UserError, match="prediction type='score': must be one of epsilon, v_prediction, sample"):
        losses.min_snr_weight(alphas, steps, 5.0, "score")


def test_the_ancestors_total_is_its_weighted_terms():
    student, teacher, target = noise(1), noise(2), noise(3)
    features = [noise(4)], [noise(5)]
    inputs = {"student": student, "teacher": teacher, "target": target}
    inputs |= {"student_features": features[0], "teacher_features": features[1]}
    total, terms = losses.BKSDMLoss(output=0.5, feature=2.0)(**inputs)
    expected = (student - target).square().mean() + 0.5 * (student - teacher).square().mean()
    expected = expected + 2.0 * (features[0][0] - features[1][0]).square().mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5) and set(terms) == {"mse", "output", "feature"}
    with pytest.raises(UserError, match="output=-1: must be 0 or more"):
        losses.BKSDMLoss(output=-1)
