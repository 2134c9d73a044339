"""Stable Diffusion's forward process: what a scheduler's noise schedule makes of a clean latent.

It is worked out from ``alphas_cumprod``, which every scheduler of the family has. Their own `add_noise` will not do: a
pipeline may ship with a scheduler that scales its latents otherwise (Euler, Heun), for sampling alone, and some have no
velocity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import DDIMScheduler


def _scales(scheduler: DDIMScheduler, clean: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of signal and noise at `timestep` (N,), each (N, 1, 1, 1) in the dtype of `clean`."""
    kept = scheduler.alphas_cumprod.to(clean.device, clean.dtype)[timestep.to(clean.device)]
    shape = (-1, *[1] * (clean.dim() - 1))
    return (kept**0.5).view(shape), ((1 - kept) ** 0.5).view(shape)


def noised(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Noise `clean` (N, C, h, w) to `timestep` (N,): Ho et al. 2020, equation (4)."""
    signal, rest = _scales(scheduler, clean, timestep)
    return signal * clean + rest * noise


def velocity(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Compute the target of v-prediction: Salimans & Ho 2022, appendix D."""
    signal, rest = _scales(scheduler, clean, timestep)
    return signal * noise - rest * clean
