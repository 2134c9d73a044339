"""Where latents come from. Does not import diffusers: the replay buffer is small beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kdcdiff.provenance import sha256_weights

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import AutoencoderKL


class Origin(NamedTuple):
    """Where latents come from: those of another autoencoder, or scaled otherwise, mean something else."""

    autoencoder: str
    scaling_factor: float


def origin_of(vae: AutoencoderKL) -> Origin:
    """Say what makes this autoencoder's latents its own: a checksum of its weights, and its scaling factor."""
    return Origin(sha256_weights(vae.state_dict())[:16], vae.config.scaling_factor)
