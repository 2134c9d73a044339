"""The verdicts as one piece of HTML: a table to sort, filter, link to and download, without any library or network.

Its style and script are the files ``page.css`` and ``page.js`` beside this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from kdcdiff.claims.model import (
    AGAINST,
    AGREES,
    INCONSISTENT,
    KINDS,
    OPPOSITE,
    REDERIVED,
    REFUTED,
    SAME,
    SEVERITIES,
    SOURCES,
    SUMMARIES,
    UNDECIDED,
    VERDICTS,
    Evidence,
    Verdict,
)

COLOURS = {  # Okabe and Ito's, apart for every kind of colour vision
    REDERIVED: "#009e73",
    AGREES: "#56b4e9",
    INCONSISTENT: "#e69f00",
    REFUTED: "#d55e00",
    SAME: "#0072b2",
    OPPOSITE: "#cc79a7",
    UNDECIDED: "#8a8a8a",
}
GREY = "#c8c8c8"  # what has not been tested
DECIDED_IN = {  # the chapter, by its slug, and the place in it, of the claims that need no run
    "architectural": "architecture#architectural-verdicts",
    "arithmetic": "plausibility#table-verdicts",
    "table-internal": "plausibility#table-verdicts",
}
SORTS = {"order": "the papers' order", "verdict": "verdict", "severity": "severity", "kind": "kind"}


def decided_in(verdict: Verdict, evidence: Mapping[str, Evidence]) -> str:
    """Name the chapter and anchor that decide a claim, ``slug#anchor``; empty where nothing has."""
    if verdict.claim.chapter:
        return verdict.claim.chapter
    if verdict.claim.offline:
        return DECIDED_IN[verdict.claim.kind]
    return next((evidence[name].chapter for name in verdict.evidence if evidence[name].chapter), "")


def as_html(
    verdicts: Iterable[Verdict],
    evidence: Mapping[str, Evidence],
    chapters: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """Write the table. `chapters`: a slug -> its page and its title; where not given, both are made of the slug.

    Links are relative to a page that lies beside the chapters'. Counts are of the two papers' claims; those of a
    summary are shown where one asks for them. Without a script, every row is shown.
    """
    listed = list(verdicts)
    counts = Counter(v.outcome for v in listed if v.claim.paper not in SUMMARIES)
    options = {
        "verdict": {name: f"{name} ({counts[name]})" for name in VERDICTS if counts[name]},
        "severity": {name: name for name in SEVERITIES},
        "paper": SOURCES,
        "kind": {kind: kind for kind in KINDS},
    }
    every = {"paper": "both papers"}
    chosen = "".join(_select(name, every.get(name, f"every {name}"), own) for name, own in options.items())
    search = '<label>words <input type="search" name="words" placeholder="in a claim"></label>'
    sort = _select("sort", "", SORTS)
    buttons = "".join(f'<button type="button" name="{kind}">{kind.upper()}</button>' for kind in ("csv", "json"))
    download = f'<span class="claims-download">download {buttons}</span>'
    body = "".join(_row(place, v, decided_in(v, evidence), chapters or {}) for place, v in enumerate(listed))
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Verdict", "Claim", "Why"))
    apart = len(listed) - counts.total()
    said = f"{counts.total()} claims" + f", and {apart} of a summary" * bool(apart)
    style, script = ((files("kdcdiff.claims") / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f'<div id="claims"><style>\n{style}</style>'
        f'<form class="claims-filters">{chosen}{search}{sort}{download}</form>'
        f'<p class="claims-count"><output aria-live="polite">{said}</output></p>'
        f'<table class="claims-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f'<button type="button" class="claims-more" name="more" hidden>Show all</button>'
        f"<script>\n{script}</script></div>"
    )


def _select(name: str, everything: str, choices: Mapping[str, str]) -> str:
    first = f'<option value="">{escape(everything)}</option>' if everything else ""
    listed = "".join(f'<option value="{escape(k)}">{escape(v)}</option>' for k, v in choices.items())
    return f'<label>{name} <select name="{name}">{first}{listed}</select></label>'


def _row(place: int, verdict: Verdict, decided: str, chapters: Mapping[str, tuple[str, str]]) -> str:
    claim = verdict.claim
    data = {
        "order": f"{place:04}",
        "verdict": verdict.outcome,
        "severity": claim.severity,
        "paper": claim.paper,
        "kind": claim.kind,
        "place": claim.place,
        "reason": verdict.reason,
        "note": claim.note,
        "threshold": verdict.threshold,
        "measured": verdict.scale,
        "check": claim.check,
        "apart": "yes" * (claim.paper in SUMMARIES),
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items() if value)
    slug, _, anchor = decided.partition("#")
    page, title = chapters.get(slug, (f"{slug}.html", slug.replace("-", " ")))
    target = page + (f"#{anchor}" if anchor else "")
    link = f' Decided in <a href="{escape(target)}">{escape(title)}</a>.' if decided else ""
    measured = f" Measured: {escape(verdict.scale)}." if verdict.scale else ""
    fragile = " <em>Hangs on a threshold of ours.</em>" if verdict.fragile else ""
    weighs = f"weighs: {claim.severity}" if verdict.outcome in AGAINST else claim.kind
    colour = f'style="border-left-color: {COLOURS.get(verdict.outcome, GREY)}"'
    return (
        f'<tr id="{escape(claim.id)}" {attributes}>'
        f'<td class="claims-verdict" {colour}><b>{escape(verdict.outcome)}</b> <br>{_small(weighs)}</td>'
        f"<td><q>{escape(claim.quote)}</q><br>{_small(f'{SOURCES[claim.paper]}, {claim.place}')}"
        f' <a class="claims-link" href="#{escape(claim.id)}" aria-label="link to {escape(claim.id)}">¶</a></td>'
        f"<td>{escape(claim.note or verdict.reason)}{fragile}<br>{_small_html(measured + link)}</td></tr>"
    )


def _small(words: str) -> str:
    return _small_html(escape(words))


def _small_html(html: str) -> str:
    return f'<span class="claims-small">{html}</span>'
