"""What a claim, a piece of evidence and a verdict are; where sentences come from, and the words that verdicts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

PAPERS = {"kdc-diff": "KDC-Diff", "bk-sdm": "BK-SDM"}
SUMMARIES = {"kdc-diff-page": "a site's summary of KDC-Diff"}  # not the authors' words: judged, and counted apart
SOURCES = PAPERS | SUMMARIES
KINDS = {
    "arithmetic": "decided by recomputing from the papers' own numbers",
    "table-internal": "decided by reading the papers' own tables and text",
    "architectural": "decided by building the networks at full size",
    "empirical": "decided by what the chapters measure",
}
REDERIVED, AGREES = "rederived", "agrees with its own tables"
INCONSISTENT, REFUTED = "inconsistent", "refuted"
SAME, OPPOSITE, UNDECIDED = "same direction", "opposite direction", "undecided"
NOT_TESTED = "not tested"
VERDICTS = {
    REDERIVED: "an independent computation, or a published source, gives what is printed",
    AGREES: "the paper's own numbers and words say the same; nobody else has computed them",
    INCONSISTENT: "the paper says otherwise itself",
    REFUTED: "the network, a computation or a published source says otherwise",
    SAME: "measured here, on small models: the direction is the claim's, and its interval leaves out zero",
    OPPOSITE: "measured here, on small models: the direction is the other one, and its interval leaves out zero",
    UNDECIDED: "measured here: the interval holds zero, or the endpoints do not agree",
    NOT_TESTED: "not measured, or not where it means something; the row says what it would take",
}
HOLDING, AGAINST = (REDERIVED, AGREES), (INCONSISTENT, REFUTED)
MEASURED = (SAME, OPPOSITE, UNDECIDED)
SEVERITIES = {  # what it weighs where a claim does not hold, the lightest first
    "rounding": "a last digit",
    "wording": "a word, a unit or a reference, on which no figure depends",
    "discrepancy": "a sentence and a figure disagree",
    "conclusion": "a finding that the paper draws falls with it",
    "identity": "figures of another network, data set or clock than the text says",
}


@dataclass(frozen=True)
class Claim:
    """One sentence, or one atom of it, that can be true or false."""

    id: str
    paper: str  # a key of SOURCES
    quote: str  # verbatim, short
    place: str
    kind: str  # a key of KINDS
    check: str  # an expression of `kdcdiff.claims.checks`; empty where nothing here could decide it
    severity: str = "discrepancy"  # a key of SEVERITIES
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
    def replicates(self) -> tuple[float, ...]: ...  # of a mean over seeds or orders, each one's value
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
    scale: str = ""  # where measured: profile, data set, device, number of samples
    evidence: tuple[str, ...] = ()  # names of the results that were read
    threshold: str = ""  # whose the threshold is; of one of ours, what half and double of it make
    p: float | None = None  # two-sided, of the weakest comparison that the outcome rests on; None: nothing sampled
    tier: str = ""  # the profile at which it was measured
    dataset: str = ""

    @property
    def fragile(self) -> bool:
        """Say whether half or double of a threshold of ours gives another verdict."""
        return "otherwise" in self.threshold

    def as_row(self) -> dict[str, Any]:
        """Flatten to a row that JSON can say."""
        c = self.claim
        about = {"id": c.id, "paper": c.paper, "kind": c.kind, "severity": c.severity, "verdict": self.outcome}
        words = {"quote": c.quote, "place": c.place, "reason": self.reason, "note": c.note, "needs": c.needs}
        where = {"threshold": self.threshold, "tier": self.tier, "dataset": self.dataset, "scale": self.scale}
        rest = {"p": self.p, "evidence": list(self.evidence), "chapter": c.chapter, "check": c.check}
        return about | words | where | rest
