"""From a claim and the evidence to a verdict; and all claims at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from typing import Any

import yaml

from kdcdiff.claims import checks, tables
from kdcdiff.claims.model import (
    CONTRADICTED,
    INCONSISTENT,
    KINDS,
    NOT_TESTED,
    PAPERS,
    REPRODUCED,
    SUPPORTED,
    VERDICTS,
    Claim,
    Evidence,
    Verdict,
)
from kdcdiff.errors import UserError, check

FIELDS = ("id", "quote", "place", "kind", "check", "note", "needs", "chapter")
MEANINGLESS = "smoke"  # the profile that tests the code and measures nothing
FILES = {"kdc-diff": "claims-kdc-diff.yaml", "bk-sdm": "claims-bk-sdm.yaml"}


@lru_cache(maxsize=1)
def _loaded() -> tuple[Claim, ...]:
    claims = [_claim(paper, entry) for paper, file in FILES.items() for entry in yaml.safe_load(tables.data_text(file))]
    ids = [c.id for c in claims]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    check(not twice, "claim id", twice, "must be unique")
    return tuple(claims)


def load() -> list[Claim]:
    """Read every claim of both papers. UserError: an unknown kind, a check that does not parse or names nothing."""
    return list(_loaded())


def _claim(paper: str, entry: Mapping[str, Any]) -> Claim:
    """Make a `Claim` of one entry of a claims file."""
    name = f"claim {entry.get('id', '?')}"
    for field in entry:
        check(field in FIELDS, name, field, f"is not a field; there are {', '.join(FIELDS)}")
    for field in ("id", "quote", "place", "kind"):
        check(bool(entry.get(field)), name, field, "must be there")
    claim = Claim(paper=paper, **{"check": "", **{k: " ".join(str(v).split()) for k, v in entry.items()}})
    validate(claim)
    return claim


def validate(claim: Claim) -> None:
    """Raise `UserError` where a claim cannot be judged as written."""
    name = f"claim {claim.id}"
    check(claim.paper in PAPERS, name, claim.paper, f"paper must be one of {', '.join(PAPERS)}")
    check(claim.kind in KINDS, name, claim.kind, f"kind must be one of {', '.join(KINDS)}")
    check(bool(claim.check) or not claim.offline, name, claim.kind, "needs a check")
    check(bool(claim.needs) or claim.offline, name, claim.kind, "must say in `needs` what it would take")
    asks = checks.evidence_names(claim.check) if claim.check else ()
    check(not asks or not claim.offline, name, asks, "only an empirical claim asks for evidence")
    asking = bool(asks) or claim.offline or not claim.check
    check(asking, name, claim.check, "an empirical check must ask for evidence")


def judge(claim: Claim, evidence: Mapping[str, Evidence] | None = None) -> Verdict:
    """Decide a claim by the papers' numbers, the networks or the recorded `evidence`: results by their names."""
    known = evidence or {}
    if not claim.check:
        return Verdict(claim, NOT_TESTED, f"it would take {claim.needs}")
    checker = checks.Checker(known)
    missing = [n for n in checks.evidence_names(claim.check) if n not in known]
    if missing:
        return Verdict(claim, NOT_TESTED, f"not recorded: {', '.join(missing)}; it would take {claim.needs}")
    result = checker.decide(claim.check)
    reason = "; ".join(checker.trace)
    if claim.offline:
        against = CONTRADICTED if checks.looks_outside(claim.check) else INCONSISTENT
        return Verdict(claim, REPRODUCED if result else against, reason)
    used = tuple(dict.fromkeys(checker.read))
    scale = _scale([known[name] for name in used])
    if any(known[name].profile == MEANINGLESS for name in used):
        why = f"measured at {MEANINGLESS}, where figures mean nothing"
        return Verdict(claim, NOT_TESTED, f"{why}; it would take {claim.needs}", scale, used)
    if result is None:
        bare = [n for n in used if known[n].interval is None and known[n].unit not in checks.EXACT_UNITS]
        unknown = f"recorded without an interval: {', '.join(bare)}"
        why = unknown if bare else "the interval of the difference holds zero"
        if checker.void:
            why = f"this teacher cannot tell; it would take one on which that holds, and {claim.needs}"
            return Verdict(claim, NOT_TESTED, f"{reason}: {why}", scale, used)
        return Verdict(claim, NOT_TESTED, f"{reason}: {why}; it would take more samples or seeds", scale, used)
    return Verdict(claim, SUPPORTED if result else CONTRADICTED, reason, scale, used)


def _scale(results: list[Evidence]) -> str:
    """Say profile, data set, device and sample count of what was read, each once."""
    places = [*(r.profile for r in results), *(r.dataset for r in results), *(r.device for r in results)]
    words = [word for word in dict.fromkeys(places) if word]
    counts = sorted({r.n for r in results if r.n})
    if counts:
        words.append(f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}")
    return ", ".join(words)


@lru_cache(maxsize=1)
def context() -> dict[str, str]:
    """Read the patterns of results that chapters record for the record, and why no claim asks for them."""
    found: dict[str, str] = yaml.safe_load(tables.data_text("context.yaml"))
    return found


def unasked(evidence: Iterable[str], claims: Iterable[Claim] | None = None) -> list[str]:
    """Name the recorded results that no claim asks for and that are not declared as context."""
    wanted = {n for c in (claims or load()) if c.check for n in checks.evidence_names(c.check)}
    return sorted(n for n in evidence if n not in wanted and not any(fnmatch(n, p) for p in context()))


def judge_all(evidence: Mapping[str, Evidence] | None = None, claims: Iterable[Claim] | None = None) -> list[Verdict]:
    """Judge every claim. UserError: evidence that nobody asked for, so that no result goes unread."""
    chosen = list(claims) if claims is not None else load()
    stray = unasked(evidence or {})
    if stray:
        raise UserError(
            f"evidence={', '.join(stray)}: no claim asks for it; "
            "name it in a claim's check or in kdcdiff/claims/data/context.yaml"
        )
    return [judge(claim, evidence) for claim in chosen]


@lru_cache(maxsize=1)
def recorded() -> dict[str, str]:
    """Read the verdicts on record of every claim that needs no run: claim id to verdict."""
    found = {r["id"]: r["verdict"] for r in tables.read_csv("verdicts.csv", ("id", "verdict"))}
    for id, verdict in found.items():
        check(verdict in VERDICTS, f"verdicts.csv {id}", verdict, f"must be one of {', '.join(VERDICTS)}")
    return found


def changed(verdicts: Iterable[Verdict]) -> list[tuple[Verdict, str]]:
    """List the verdicts that differ from the record, with what it says; a claim without a record has changed."""
    pairs = [(v, recorded().get(v.claim.id, "nothing")) for v in verdicts if v.claim.offline]
    return [(v, before) for v, before in pairs if v.outcome != before]
