"""What a claim, a piece of evidence and a verdict are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAPERS = {"kdc-diff": "KDC-Diff", "bk-sdm": "BK-SDM"}
KINDS = {
    "arithmetic": "decided by recomputing from the papers' own numbers",
    "table-internal": "decided by reading the papers' own tables and text",
    "architectural": "decided by building the networks at full size",
    "empirical": "decided by what the chapters measure",
}
REPRODUCED, SUPPORTED, CONTRADICTED = "reproduced exactly", "supported", "contradicted"
INCONSISTENT, NOT_TESTED = "inconsistent", "not tested"
VERDICTS = {
    REPRODUCED: "it follows, to the digit, from the paper's numbers or from the networks themselves",
    SUPPORTED: "its direction holds in what was measured here, with an interval",
    CONTRADICTED: "what was built, looked up or measured says otherwise",
    INCONSISTENT: "the paper says otherwise itself",
    NOT_TESTED: "no evidence yet; the row says what it would take",
}


@dataclass(frozen=True)
class Claim:
    """One sentence, or one atom of it, that can be true or false."""

    id: str
    paper: str  # a key of PAPERS
    quote: str  # verbatim, short
    place: str
    kind: str  # a key of KINDS
    check: str  # an expression of `kdcdiff.claims.language`; empty where nothing here could decide it
    note: str = ""  # what the check reads into the words, or what the finding is
    needs: str = ""  # what it would take, where it is not tested
    chapter: str = ""  # the chapter that decides it

    @property
    def offline(self) -> bool:
        """Whether the papers' numbers and the networks decide it, without any run."""
        return self.kind != "empirical"


@dataclass(frozen=True)
class Evidence:
    """One recorded result; `kdcdiff.results` gives these fields, and any object with them serves."""

    name: str
    value: float
    unit: str = "1"
    interval: tuple[float, float] | None = None  # 95 %
    n: int | None = None
    profile: str = ""
    dataset: str = ""
    seed: int | None = None
    device: str = ""
    chapter: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, and why."""

    claim: Claim
    outcome: str  # a key of VERDICTS
    reason: str  # one line with the values that decided it
    scale: str = ""  # where measured: profile, data set, device
    evidence: tuple[str, ...] = ()  # names of the results that were read

    def as_row(self) -> dict[str, Any]:
        """A flat, JSON-ready row."""
        c = self.claim
        return {
            "id": c.id,
            "paper": c.paper,
            "kind": c.kind,
            "verdict": self.outcome,
            "quote": c.quote,
            "place": c.place,
            "reason": self.reason,
            "note": c.note,
            "scale": self.scale,
            "evidence": list(self.evidence),
            "chapter": c.chapter,
        }
