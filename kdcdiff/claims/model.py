"""What a claim, a piece of evidence and a verdict are; the papers, the kinds of claims and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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
    check: str  # an expression of `kdcdiff.claims.checks`; empty where nothing here could decide it
    note: str = ""  # what the check reads into the words, or what the finding is
    needs: str = ""  # what it would take, where it is not tested
    chapter: str = ""  # where it is decided, ``slug#anchor``; empty: where its kind, or its evidence, says

    @property
    def offline(self) -> bool:
        """Say whether the papers' numbers and the networks decide it, without any run."""
        return self.kind != "empirical"


class Evidence(Protocol):
    """What the judge reads of a recorded result; `kdcdiff.book.results.Result` is one."""

    @property
    def value(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...  # 95 %
    @property
    def n(self) -> int | None: ...
    @property
    def profile(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def chapter(self) -> str: ...  # its slug


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, and why."""

    claim: Claim
    outcome: str  # a key of VERDICTS
    reason: str  # one line with the values that decided it
    scale: str = ""  # where measured: profile, data set, device
    evidence: tuple[str, ...] = ()  # names of the results that were read

    def as_row(self) -> dict[str, Any]:
        """Flatten to a row that JSON can say."""
        c = self.claim
        about = {"id": c.id, "paper": c.paper, "kind": c.kind, "verdict": self.outcome, "quote": c.quote}
        why = {"place": c.place, "reason": self.reason, "note": c.note, "scale": self.scale}
        return about | why | {"evidence": list(self.evidence), "chapter": c.chapter}
