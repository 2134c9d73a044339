"""From a claim and the evidence to a verdict; and all claims at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import yaml

from kdcdiff.claims import checks, record, tables
from kdcdiff.claims.model import (
    AGREES,
    INCONSISTENT,
    KINDS,
    NOT_TESTED,
    OPPOSITE,
    REDERIVED,
    REFUTED,
    SAME,
    SEVERITIES,
    SOURCES,
    UNDECIDED,
    Claim,
    Evidence,
    Verdict,
)
from kdcdiff.claims.statistics import holm
from kdcdiff.errors import UserError, check

FIELDS = ("id", "quote", "place", "kind", "check", "severity", "note", "needs", "chapter")
FILES = {
    "claims-kdc-diff.yaml": "kdc-diff",
    "claims-kdc-diff-results.yaml": "kdc-diff",
    "claims-bk-sdm.yaml": "bk-sdm",
    "claims-kdc-diff-page.yaml": "kdc-diff-page",
}
LEVEL = 0.05  # of the family of all measured claims, after Holm


@lru_cache(maxsize=1)
def _loaded() -> tuple[Claim, ...]:
    claims = [_claim(paper, entry) for file, paper in FILES.items() for entry in yaml.safe_load(tables.data_text(file))]
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
    for field, words in (("paper", SOURCES), ("kind", KINDS), ("severity", SEVERITIES)):
        value = getattr(claim, field)
        check(value in words, name, value, f"{field} must be one of {', '.join(words)}")
    check(bool(claim.check) or not claim.offline, name, claim.kind, "needs a check")
    check(bool(claim.needs) or claim.offline, name, claim.kind, "must say in `needs` what it would take")
    asks = checks.evidence_names(claim.check) if claim.check else ()
    check(not asks or not claim.offline, name, asks, "only an empirical claim asks for evidence")
    asking = bool(asks) or claim.offline or not claim.check
    check(asking, name, claim.check, "an empirical check must ask for evidence")


def judge(claim: Claim, evidence: Mapping[str, Evidence] | None = None) -> Verdict:
    """Decide a claim by the papers' numbers, the networks or the recorded `evidence`: results by their names.

    By itself: the correction for the number of claims is `judge_all`'s.
    """
    known = evidence or {}
    verdict = _judged(claim, known, 1.0)
    whose = checks.threshold_of(claim.check) if claim.check else ""
    if whose != "ours" or verdict.outcome == NOT_TESTED:
        return replace(verdict, threshold=whose)
    other = {word: _judged(claim, known, f).outcome for word, f in (("half", 0.5), ("double", 2.0))}
    flips = [f"otherwise at {word}, {outcome}" for word, outcome in other.items() if outcome != verdict.outcome]
    return replace(verdict, threshold=f"ours; {'; '.join(flips) or 'the same at half and at double of it'}")


def _judged(claim: Claim, known: Mapping[str, Evidence], factor: float) -> Verdict:
    """Decide a claim with every threshold of ours times `factor`."""
    if not claim.check:
        return Verdict(claim, NOT_TESTED, f"it would take {claim.needs}")
    checker = checks.Checker(known, factor)
    missing = [n for n in checks.evidence_names(claim.check) if n not in known]
    if missing:
        return Verdict(claim, NOT_TESTED, f"not recorded: {', '.join(missing)}; it would take {claim.needs}")
    result = checker.decide(claim.check)
    reason = "; ".join(checker.trace)
    if claim.offline:
        holds, fails = (REDERIVED, REFUTED) if checks.looks_outside(claim.check) else (AGREES, INCONSISTENT)
        return Verdict(claim, holds if result else fails, reason)
    used = tuple(dict.fromkeys(checker.read))
    read = [known[name] for name in used]
    tier, dataset = (", ".join(dict.fromkeys(getattr(r, key) for r in read)) for key in ("profile", "dataset"))
    measured: dict[str, Any] = {"scale": _scale(read), "evidence": used, "tier": tier, "dataset": dataset}
    if record.MEANINGLESS in {r.profile for r in read}:
        why = f"measured at {record.MEANINGLESS}, where figures mean nothing"
        return Verdict(claim, NOT_TESTED, f"{why}; it would take {claim.needs}", **measured)
    if checker.void:
        why = f"these models cannot tell; it would take some for which that holds, and {claim.needs}"
        return Verdict(claim, NOT_TESTED, f"{reason}: {why}", **measured)
    p = max(checker.ps, default=None)
    if result is None:
        return Verdict(claim, UNDECIDED, f"{reason}: {_open(checker)}", p=p, **measured)
    return Verdict(claim, SAME if result else OPPOSITE, reason, p=p, **measured)


def _open(checker: checks.Checker) -> str:
    """Say why evidence does not decide."""
    if checker.divided:
        return "the endpoints do not agree"
    known = ((name, checker.evidence[name]) for name in dict.fromkeys(checker.read))
    bare = [name for name, r in known if r.interval is None and r.unit not in checks.EXACT_UNITS]
    if bare:
        return f"recorded without an interval: {', '.join(bare)}; it would take more samples or seeds"
    return "the interval of a difference holds zero; it would take more samples or seeds"


def _scale(results: list[Evidence]) -> str:
    """Say profile, data set, device and sample count of what was read, each once."""
    places = [*(r.profile for r in results), *(r.dataset for r in results), *(r.device for r in results)]
    words = [word for word in dict.fromkeys(places) if word]
    counts = sorted({r.n for r in results if r.n})
    if counts:
        words.append(f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}")
    return ", ".join(words)


def judge_all(evidence: Mapping[str, Evidence] | None = None, claims: Iterable[Claim] | None = None) -> list[Verdict]:
    """Judge every claim, and correct the measured ones for their number by Holm's method.

    A direction that is not clear of chance at 5 % over all measured claims together is undecided. UserError: evidence
    that nobody asked for, so that no result goes unread.
    """
    chosen = list(claims) if claims is not None else load()
    stray = record.unasked(evidence or {}, load())
    if stray:
        raise UserError(
            f"evidence={', '.join(stray)}: no claim asks for it; "
            "name it in a claim's check or in kdcdiff/claims/data/context.yaml"
        )
    return corrected([judge(claim, evidence) for claim in chosen])


def corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """Leave undecided what Holm's correction over all the measured verdicts does not leave standing."""
    family = [i for i, v in enumerate(verdicts) if v.p is not None]
    found = list(verdicts)
    for i, p in zip(family, holm([verdicts[i].p or 0.0 for i in family]), strict=True):
        if verdicts[i].outcome in (SAME, OPPOSITE) and p >= LEVEL:
            why = f"{verdicts[i].reason}: alone {verdicts[i].outcome}, p = {verdicts[i].p:.2g}; among"
            found[i] = replace(
                verdicts[i], outcome=UNDECIDED, reason=f"{why} {len(family)} measured claims p = {p:.2g} (Holm)"
            )
    return found
