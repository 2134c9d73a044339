"""What chapters show of the paper's tables beside ours: rows side by side, the best, and costs as shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from diffusers import UNet2DConditionModel

from kdcdiff.claims import tables
from kdcdiff.experiments.paper_tables import METRICS, SUBJECTS, Row, Table
from kdcdiff.metrics.estimate import Estimate, ratio
from kdcdiff.models import complexity, timing

REFERENCE = "realistic-vision-v51"  # the paper's teacher: its row is what Table 2's costs are shares of
NETWORKS = {"sd-1": "teacher", "kdc": "student"}  # the paper's word for a row's network, and who has it here


def beside(lines: Sequence[Row], figures: Mapping[str, Table], subject: str) -> list[dict[str, Any]]:
    """Table 1's rows: our estimate of each metric, and the paper's figure where it prints one."""
    rows = []
    for line in lines:
        printed = line.printed.get(subject, {})
        ours = {metric: figures[subject][line.name][metric] for metric in METRICS}
        theirs = {f"{metric}, printed": printed.get(metric) for metric in METRICS if metric != "class accuracy"}
        rows.append({"row": line.name, **ours, **theirs})
    return rows


def best(
    lines: Sequence[Row], figures: Mapping[str, Table], subject: str, metric: str, kinds: Sequence[str] | None = None
) -> str:
    """Name the best row of these kinds by one metric, or all that are; None: of the rows that the paper's table has.

    Nothing where there is no such row.
    """
    names = [row.name for row in lines if (subject in row.printed if kinds is None else row.kind in kinds)]
    values = {name: figures[subject][name][metric].value for name in names}
    most = (max if METRICS[metric] else min)(values.values(), default=None)
    return ", ".join(name for name, value in values.items() if value == most)


def same_order(agreement: Mapping[str, Estimate]) -> str:
    """In words, whether the rows come in the paper's order by the metrics of `agreement`."""
    sides = {metric: correlation.above(0) for metric, correlation in agreement.items()}
    for side, words in ((True, "Yes by"), (False, "The other way round by")):
        found = [metric for metric, own in sides.items() if own is side]
        if found:
            return f"{words} {', '.join(found)}"
    return "Undecided: every correlation's interval holds zero"


def costs(nets: Mapping[str, UNet2DConditionModel], rounds: int = 15) -> dict[str, dict[str, float | Estimate]]:
    """What each network weighs and takes, and its time over the first's, from `rounds` that time all of them."""
    seconds, reference = timing.rounds_of(nets, rounds), next(iter(nets))
    found: dict[str, dict[str, float | Estimate]] = {}
    for who, net in nets.items():
        count = complexity.count(net)
        found[who] = {
            "parameters (millions)": count.parameters / 1e6,
            "MMac of a call": count.macs["all"] / 1e6,
            "ms of a call": 1e3 * median(seconds[who]),
            "time ratio": ratio(seconds[who], seconds[reference]),
        }
    return found


def table_2(found: Mapping[str, Mapping[str, float | Estimate]]) -> list[dict[str, Any]]:
    """Table 2's rows as shares of its teacher's: the paper's, and ours where a row's network is one of `found`.

    `found` maps ``teacher``, ``student`` and the names of rows that have a network of their own to their `costs`.
    """
    printed = {(row["dataset"], row["row"]): row for row in tables.load_tables()["kdc-diff-2"].rows}
    whole = found["teacher"]

    def share(dataset: str, name: str, column: str) -> float | None:
        if (dataset, name) not in printed:
            return None
        values = [tables.number(printed[dataset, who][column]) for who in (name, REFERENCE)]
        return values[0] / values[1]

    rows = []
    for (dataset, name), row in printed.items():
        if dataset != next(iter(SUBJECTS)):
            continue
        own = found.get(name) or found.get(NETWORKS.get(row["network"], ""))
        mine = {key: own[key] / whole[key] if own else None for key in ("parameters (millions)", "MMac of a call")}  # type: ignore[operator]
        rows.append({
            "row": name,
            **{f"seconds, {subject}": share(subject, name, "seconds") for subject in SUBJECTS},
            "seconds, here": own["time ratio"] if own else None,
            "parameters, paper": share(dataset, name, "parameters"),
            "parameters, here": mine["parameters (millions)"],
            "MACs, paper": share(dataset, name, "gmac"),
            "MACs, here": mine["MMac of a call"],
        })  # fmt: skip
    return rows
