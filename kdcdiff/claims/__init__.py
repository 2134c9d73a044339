"""Every printed number and every comparative sentence of the two papers, as data; and the judge.

``load()`` gives the claims, ``judge(claim, evidence)`` a `Verdict`. Data live in ``data/``: the papers'
tables as CSV, the claims as YAML, both validated on load. The networks that architectural claims speak of
are built at full size on the meta device.
"""

from kdcdiff.claims.command import add_parser, read_evidence
from kdcdiff.claims.judging import changed, context, judge, judge_all, load, recorded, unasked, validate
from kdcdiff.claims.model import KINDS, PAPERS, VERDICTS, Claim, Evidence, Verdict
from kdcdiff.claims.page import as_html, decided_in
from kdcdiff.claims.transcript import Cell, Table, cell, cells, fact, stated, tables

__all__ = [
    "KINDS",
    "PAPERS",
    "VERDICTS",
    "Cell",
    "Claim",
    "Evidence",
    "Table",
    "Verdict",
    "add_parser",
    "as_html",
    "cell",
    "cells",
    "changed",
    "context",
    "decided_in",
    "fact",
    "judge",
    "judge_all",
    "load",
    "read_evidence",
    "recorded",
    "stated",
    "tables",
    "unasked",
    "validate",
]
