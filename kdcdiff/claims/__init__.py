"""Every printed number and every comparative sentence of the two papers, as data; and the judge.

``load()`` gives the claims, ``judge(claim, evidence)`` a `Verdict`. Data live in ``data/``: the papers'
tables as CSV, the claims as YAML, both validated on load. The networks that architectural claims speak of
are built at full size on the meta device.
"""

from kdcdiff.claims.judging import changed, context, judge, judge_all, load, read_evidence, recorded, unasked, validate
from kdcdiff.claims.model import KINDS, PAPERS, VERDICTS, Claim, Evidence, Verdict
from kdcdiff.claims.page import as_html, decided_in

__all__ = [
    "KINDS",
    "PAPERS",
    "VERDICTS",
    "Claim",
    "Evidence",
    "Verdict",
    "as_html",
    "changed",
    "context",
    "decided_in",
    "judge",
    "judge_all",
    "load",
    "read_evidence",
    "recorded",
    "unasked",
    "validate",
]
