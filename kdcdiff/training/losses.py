"""The losses, one pure function for each equation of KDC-Diff (1)-(3), (6) and BK-SDM (1)-(4).

A distillation loss for classifiers needs probabilities; a denoiser predicts noise. The paper never says what the
"probabilities" of a noise prediction are, so the reading is a parameter (`READINGS`): a softmax over

    all       every latent value of a sample: one distribution of C*H*W values (the default)
    space     the positions of each channel: C distributions of H*W values
    channels  the channels at each position: H*W distributions of C values

A softmax cannot see a constant added to its logits. `all` loses one number of a sample that way, `space` one for each
channel (its mean, that is its colour), `channels` one for each position (a whole map): hence the default.

Softmaxes are computed in float64, the rest in float32, whatever the autocast; results are float32 scalars. Nothing here
waits for an accelerator: only tensors in main memory are looked at for values that are not finite, and on a device the
loop (`kdcdiff.training`) finds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcdiff.errors import check

READINGS = {  # (N, C, H, W) -> logits (N, distributions, values)
    "all": lambda x: x.flatten(1).unsqueeze(1),
    "space": lambda x: x.flatten(2),
    "channels": lambda x: x.flatten(2).transpose(1, 2),
}
_WIDE = {"mps": torch.float32}  # the one device without float64
LABELS = ("distribution", "argmax")  # the "true label" of equation (2): the true noise's softmax, or its largest value

_WEIGHT: tuple[Callable[[Any], bool], str] = (lambda x: 0 <= x < math.inf, "must be 0 or more, and finite")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {  # setting -> what it may be, in code and in words
    "alpha": (lambda x: 0 <= x <= 1, "must be between 0 and 1"),
    **dict.fromkeys(("beta", "gamma", "output", "feature"), _WEIGHT),
    "temperature": (lambda x: isinstance(x, int | float) and 0 < x < math.inf, "must be above 0 and finite"),
    "reading": (lambda x: x in READINGS, f"must be one of {', '.join(READINGS)}"),
    "label": (lambda x: x in LABELS, f"must be one of {', '.join(LABELS)}"),
}


def _check_settings(**settings: Any) -> None:
    """Raise `UserError` on the first setting beyond its limits."""
    for name, value in settings.items():
        allowed, words = LIMITS[name]
        check(allowed(value), name, value, words)


def _check_tensors(**tensors: Tensor) -> None:
    """Raise `UserError` unless all are of the first one's shape, and finite where looking costs no wait."""
    first, shape = next((name, tuple(t.shape)) for name, t in tensors.items())
    for name, tensor in tensors.items():
        check(tuple(tensor.shape) == shape, f"{name}.shape", tuple(tensor.shape), f"must be {shape}, that of {first}")
        if tensor.device.type == "cpu" and not bool(tensor.detach().sum(dtype=torch.float64).isfinite()):
            count = int((~tensor.isfinite()).sum())
            check(count == 0, name, f"{count} of {tensor.numel()} values not finite", "every value must be finite")


def _log_probabilities(x: Tensor, reading: str, temperature: float = 1.0) -> Tensor:
    """Compute the log-softmax of `x` (N, C, H, W) as `reading` has it, (N, distributions, values), float64.

    At temperature T the divergence is a sum of terms of size 1/T that cancel to 1/T^2: float32 loses it above T = 1000.
    """
    _check_settings(reading=reading, temperature=temperature)
    return F.log_softmax(READINGS[reading](x.to(_WIDE.get(x.device.type, torch.float64))) / temperature, dim=-1)


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float, reading: str = "all") -> Tensor:
    """Compute KDC-Diff (1): T^2 KL(softmax(teacher / T) || softmax(student / T)), (N, C, H, W) to a scalar.

    Summed over a distribution's values, averaged over distributions and samples. As T grows it tends to half the mean
    of the squared, mean-centred difference: an output MSE that is blind to a constant.
    """
    _check_tensors(student=student, teacher=teacher)
    log_s, log_t = (_log_probabilities(x, reading, temperature) for x in (student, teacher))
    return (temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()).float()


def hard_target_loss(
    student: Tensor, teacher: Tensor, target: Tensor, reading: str = "all", label: str = "distribution"
) -> Tensor:
    """Compute KDC-Diff (2): cross-entropy of the true noise with the student's and with the teacher's distribution.

    (N, C, H, W) to a scalar, averaged over distributions and samples. The teacher's half has no gradient for the
    student: it adds a constant that only says how well the teacher does.
    """
    _check_tensors(student=student, teacher=teacher, target=target)
    _check_settings(label=label)
    log_s, log_t = (_log_probabilities(x, reading) for x in (student, teacher))
    truth = _log_probabilities(target, reading).exp()
    if label == "argmax":
        truth = F.one_hot(truth.argmax(-1), truth.shape[-1]).to(truth.dtype)
    return -(truth * (log_s + log_t)).sum(-1).mean().float()


def feature_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Compute KDC-Diff (3), BK-SDM (3): the squared distance of matching stages, summed over stages; a scalar.

    The paper sums a sample's squared differences; here they are averaged over a stage's values, so that beta means the
    same at every resolution and width.
    """
    ours, theirs = len(student_features), len(teacher_features)
    check(ours == theirs > 0, "features", ours, f"must be as many as the teacher's ({theirs}), at least one")
    distances = []
    for s, t in zip(student_features, teacher_features, strict=True):
        _check_tensors(student_feature=s, teacher_feature=t)
        distances.append(F.mse_loss(s.float(), t.float()))
    return torch.stack(distances).sum()


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute KDC-Diff's L_mse, BK-SDM (1): the mean squared error against what the network should predict; a scalar.

    `weight` (N,) weighs samples, such as by their signal-to-noise ratio.
    """
    _check_tensors(prediction=prediction, target=target)
    if weight is None:
        return F.mse_loss(prediction.float(), target.float())
    return (weight.float() * (prediction.float() - target.float()).square().flatten(1).mean(1)).mean()


def output_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute BK-SDM (2): the mean squared error against the teacher's output; a scalar."""
    return denoising_loss(student, teacher)


def min_snr_weight(alphas_cumprod: Tensor, timestep: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weigh each sample's denoising loss for timesteps (N,), (N,): min(SNR, gamma), as a weight of the error in x_0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """
    check(gamma > 0, "min-SNR gamma", gamma, "must be above 0")
    signal = alphas_cumprod.to(timestep.device)[timestep].float()
    snr = signal / (1 - signal)
    per = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    check(prediction_type in per, "prediction type", prediction_type, f"must be one of {', '.join(per)}")
    return snr.clamp(max=gamma) / per[prediction_type]


@dataclass(frozen=True)
class Outputs:
    """What both networks made of one batch."""

    student: Tensor  # (N, C, H, W)
    teacher: Tensor  # (N, C, H, W)
    target: Tensor  # (N, C, H, W), what the scheduler's prediction type asks for
    student_features: Sequence[Tensor]  # of each shared stage, (N, c, h, w)
    teacher_features: Sequence[Tensor]
    weight: Tensor | None = None  # (N,), of the samples in the denoising term


@dataclass(frozen=True)
class DistillationLoss:
    """A weighted sum of named terms, each of them computed and logged even at weight zero."""

    def __post_init__(self) -> None:
        _check_settings(**asdict(self))

    def terms(self, seen: Outputs) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def weights(self) -> dict[str, float]:
        raise NotImplementedError

    def __call__(self, **outputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the scalar and each term, unweighted, from the fields of `Outputs`."""
        terms = self.terms(Outputs(**outputs))
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum(), terms


@dataclass(frozen=True)
class KDCLoss(DistillationLoss):
    """KDC-Diff (6): alpha soft + (1 - alpha) hard + beta feature + gamma mse. The paper prints no weights.

    No setting turns both the soft and the hard term off: whatever alpha is, they share a weight of one.
    """

    alpha: float = 0.9
    beta: float = 0.1
    gamma: float = 1.0
    temperature: float = 4.0
    reading: str = "all"
    label: str = "distribution"

    @property
    def weights(self) -> dict[str, float]:
        return {"soft": self.alpha, "hard": 1 - self.alpha, "feature": self.beta, "mse": self.gamma}

    def terms(self, seen: Outputs) -> dict[str, Tensor]:
        return {
            "soft": soft_target_loss(seen.student, seen.teacher, self.temperature, self.reading),
            "hard": hard_target_loss(seen.student, seen.teacher, seen.target, self.reading, self.label),
            "feature": feature_loss(seen.student_features, seen.teacher_features),
            "mse": denoising_loss(seen.student, seen.target, seen.weight),
        }


@dataclass(frozen=True)
class BKSDMLoss(DistillationLoss):
    """BK-SDM (4): task + output * L_OutKD + feature * L_FeatKD. Its authors set both weights to one."""

    output: float = 1.0
    feature: float = 1.0

    @property
    def weights(self) -> dict[str, float]:
        return {"mse": 1.0, "output": self.output, "feature": self.feature}

    def terms(self, seen: Outputs) -> dict[str, Tensor]:
        return {
            "mse": denoising_loss(seen.student, seen.target, seen.weight),
            "output": output_loss(seen.student, seen.teacher),
            "feature": feature_loss(seen.student_features, seen.teacher_features),
        }
