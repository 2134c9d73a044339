"""The rows of the audit's tables: verdicts in words and counted, and printed counts beside derived ones."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from kdcdiff.claims.model import AGAINST, SEVERITIES, SOURCES, VERDICTS, Verdict
from kdcdiff.claims.readings import COMPANIONS, network_count, unet
from kdcdiff.claims.tables import cell
from kdcdiff.models.configs import LATENT, TOKENS

Row = Mapping[str, Any]

UNITS = {"M": (1e6, 2), "B": (1e9, 4), "%": (0.01, 2)}  # of a printed count: what it is counted in, and our digits
BK_SDM_COUNTS = (  # what is counted, the printed cell, its unit, the network, and what is counted with it
    ("U-Net, Table 1", "bk-sdm-1/sdm/unet", "M", "sd-1", ()),
    ("whole, Table 1", "bk-sdm-1/sdm/whole", "M", "sd-1", COMPANIONS),
    ("U-Net without mid stage", "bk-sdm-1/mid-removed/unet", "M", "mid-removed", ()),
    ("what that cuts", "bk-sdm-1/mid-removed/unet_cut", "%", "mid-removed", ()),
    ("whole without mid stage", "bk-sdm-1/mid-removed/whole", "M", "mid-removed", COMPANIONS),
    ("what that cuts", "bk-sdm-1/mid-removed/whole_cut", "%", "mid-removed", COMPANIONS),
    ("whole, Table 2", "bk-sdm-2/sdm/parameters", "B", "sd-1", COMPANIONS),
    ("whole of Base, Table 2", "bk-sdm-2/base/parameters", "B", "bk-sdm-base", COMPANIONS),
    ("whole of Small, Table 2", "bk-sdm-2/small/parameters", "B", "bk-sdm-small", COMPANIONS),
)


def of_verdicts(verdicts: Iterable[Verdict]) -> list[Row]:
    """Say of each claim which sentence it is, where it stands, what became of it, what that weighs, and why."""
    return [
        {
            "sentence": f"“{v.claim.quote}”",
            "place": f"{SOURCES[v.claim.paper]}, {v.claim.place}",
            "verdict": v.outcome,
            "severity": v.claim.severity,
            "why": v.claim.note or v.reason,
        }
        for v in verdicts
    ]


def severities(verdicts: Iterable[Verdict], group: Callable[[Verdict], str]) -> list[Row]:
    """Count what does not hold by its severity, the heaviest first: a column for each group, and what it means."""
    found = [v for v in verdicts if v.outcome in AGAINST]
    groups = list(dict.fromkeys(group(v) for v in found))
    return [
        {
            "severity": name,
            **{g: sum(v.claim.severity == name and group(v) == g for v in found) for g in groups},
            "of which hang on a threshold of ours": sum(v.claim.severity == name and v.fragile for v in found),
            "meaning": meaning,
        }
        for name, meaning in reversed(SEVERITIES.items())
    ]


def tally(verdicts: Iterable[Verdict], of: str, group: Callable[[Verdict], str]) -> list[Row]:
    """Count the verdicts of each group: a row has its name under `of`, a column for each verdict there is, and all."""
    groups: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        groups.setdefault(group(verdict), Counter())[verdict.outcome] += 1
    found = [outcome for outcome in VERDICTS if any(counts[outcome] for counts in groups.values())]
    return [
        {of: name, **{outcome: counts[outcome] for outcome in found}, "all": counts.total()}
        for name, counts in groups.items()
    ]


def bk_sdm_counts() -> list[Row]:
    """Set the parameter counts that BK-SDM's Tables 1 and 2 print beside those of the networks."""
    found: list[Row] = []
    for what, address, unit, name, companions in BK_SDM_COUNTS:
        whole, now = (sum(network_count(part).parameters for part in (base, *companions)) for base in ("sd-1", name))
        scale, digits = UNITS[unit]
        value = (1 - now / whole if unit == "%" else now) / scale
        printed = cell(address).text
        agrees = f"{value:.{len(printed.partition('.')[2])}f}" == printed
        derived = f"{value:.{digits}f}{unit}"
        found.append({"parameters": what, "printed": printed + unit, "derived": derived, "agrees": agrees})
    return found


def ptflops_gmac(name: str) -> dict[str, float]:
    """Ask each engine of ptflops for the GMac of one call of a network; nothing where it is not installed."""
    if find_spec("ptflops") is None:
        return {}
    import torch
    from ptflops import get_model_complexity_info

    net = deepcopy(unet(name))  # it hangs its counters on the network

    def inputs(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            prompt = torch.empty(1, TOKENS, net.config.cross_attention_dim)
            return {"sample": torch.empty(1, *shape), "timestep": torch.zeros(1), "encoder_hidden_states": prompt}

    asked = {"as_strings": False, "print_per_layer_stat": False, "input_constructor": inputs}
    with redirect_stdout(io.StringIO()):  # it says more than it is asked
        return {
            engine: get_model_complexity_info(net, (4, LATENT, LATENT), backend=engine, **asked)[0] / 1e9
            for engine in ("pytorch", "aten")
        }
