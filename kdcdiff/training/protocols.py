"""What a distillation is told, as the papers print it. Does not import torch."""

from __future__ import annotations

from typing import Any

HERE: dict[str, Any] = {  # the objective, and settings of `distill`; what the papers leave out is this
    "objective": "kdc-diff",  # a key of `distill.OBJECTIVES`
    "steps": 2000,
    "batch": 32,
    "accumulate": 1,
    "lr": 5e-4,
    "schedule": "cosine",
    "precision": "no",
    "checkpointing": False,
    "ema": 0.0,
    "snr_gamma": 0.0,
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "here": HERE,
    "kdc-diff": HERE | {"batch": 1, "lr": 5e-5, "precision": "fp16", "checkpointing": True},
    "bk-sdm": HERE
    | {"objective": "bk-sdm", "batch": 64, "accumulate": 4, "lr": 5e-5, "schedule": "constant", "steps": 50_000},
}
