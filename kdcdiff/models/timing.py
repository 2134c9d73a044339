"""Time and memory of a call, measured warm and told with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kdcdiff.errors import check
from kdcdiff.models import surgery
from kdcdiff.models.configs import CONFIGS, TOKENS
from kdcdiff.provenance import PeakMemory

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import UNet2DConditionModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Seconds of one warm call: the median of `n`, and the quartiles as its spread."""

    seconds: float
    low: float
    high: float
    n: int
    device: str
    dtype: str
    peak_bytes: int  # resident on a CPU (the whole process), allocated on a GPU


def measure(
    call: Callable[[], Any], n: int = 5, *, device: str = "cpu", dtype: str = "float32", warm: int = 1
) -> Timing:
    """Time `call` n times after `warm` calls that are thrown away; a GPU is waited for. UserError: n below 1."""
    check(isinstance(n, int) and n >= 1, "n", n, "a whole number from 1")
    for _ in range(warm):
        call()
    with _peak(device) as peak:
        seconds = []
        for _ in range(n):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            seconds.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if n > 1 else seconds * 3
    return Timing(middle, low, high, n, device, dtype, peak())


def _wait(device: str) -> None:
    """Wait until a GPU has done what it was told; a CPU already has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _peak(device: str) -> Iterator[Callable[[], int]]:
    """Watch the peak memory of a `with` block; what it yields reads the bytes, afterwards."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with PeakMemory() as memory:
        yield lambda: memory.peak_bytes


def random_unet(
    config: Mapping[str, Any], *, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> UNet2DConditionModel:
    """Make a U-Net of a configuration with seeded random weights. UserError: a dtype that is not in `DTYPES`.

    Its time is the real one's, since no operation's time depends on the values; so each tensor repeats one block of a
    million normal values, which is drawn once.
    """
    check(dtype in DTYPES, "dtype", dtype, f"one of {', '.join(DTYPES)}")
    block = (torch.randn(2**20, generator=torch.Generator().manual_seed(seed)) * 0.02).to(device, DTYPES[dtype])
    weights = {}
    for name, shape in surgery.parameter_shapes(config).items():
        size = math.prod(shape)
        repeated = block.repeat(size // len(block) + 1)[:size]
        weights[name] = repeated.clone().view(shape)  # in memory of its own size
    net = surgery.on_meta(config)
    net.load_state_dict(weights, assign=True)
    return net


@torch.inference_mode()
def latency(
    unet: UNet2DConditionModel, n: int = 5, *, latent: int | None = None, tokens: int = TOKENS, warm: int = 1
) -> Timing:
    """Time U-Net calls on one latent of `latent` squared, on the network's own device and in its own dtype."""
    device, dtype, size = str(unet.device), unet.dtype, latent or unet.config.sample_size
    x = torch.zeros(1, unet.config.in_channels, size, size, device=device, dtype=dtype)
    prompt = torch.zeros(1, tokens, unet.config.cross_attention_dim, device=device, dtype=dtype)
    step = torch.zeros(1, device=device, dtype=torch.long)
    name = str(dtype).removeprefix("torch.")
    return measure(lambda: unet(x, step, prompt), n, device=device, dtype=name, warm=warm)


def full_size(names: Sequence[str], *, dtype: str = "bfloat16", device: str = "cpu") -> dict[str, UNet2DConditionModel]:
    """Make U-Nets of Stable Diffusion's size with random weights: ``sd-1``, ``sd-2``, or variants of ``sd-1``.

    The variants borrow the memory of ``sd-1``'s weights, so that any number of them costs one teacher.
    """
    teacher = random_unet(CONFIGS["sd-1"], dtype=dtype, device=device)
    weights, nets = teacher.state_dict(), {}
    for name in names:
        if name in CONFIGS:
            nets[name] = teacher if name == "sd-1" else random_unet(CONFIGS[name], dtype=dtype, device=device)
            continue
        nets[name] = surgery.on_meta(surgery.student_config(CONFIGS["sd-1"], name))
        borrowed = {new: weights[old] for new, old in surgery.weight_map(CONFIGS["sd-1"], name).items()}
        nets[name].load_state_dict(borrowed, assign=True)
    return nets


def rounds_of(
    nets: Mapping[str, UNet2DConditionModel], rounds: int = 5, *, latent: int | None = None
) -> dict[str, list[float]]:
    """Time each network once a round, so that drift hits all: seconds of its warm calls, (rounds,), by name.

    UserError: fewer than 2 rounds.
    """
    check(isinstance(rounds, int) and rounds >= 2, "rounds", rounds, "a whole number from 2")
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for i in range(rounds + 1):
        for name, net in nets.items():
            taken = latency(net, 1, latent=latent, warm=0).seconds
            if i > 0:  # the first round warms up
                seconds[name].append(taken)
    return seconds
