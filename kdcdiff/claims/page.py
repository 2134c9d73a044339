"""The verdicts as one piece of HTML: a table that filters in the browser, without any library or network.

Its style and script are the files ``page.css`` and ``page.js`` beside this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from kdcdiff.claims.model import (
    CONTRADICTED,
    INCONSISTENT,
    KINDS,
    PAPERS,
    REPRODUCED,
    SUPPORTED,
    VERDICTS,
    Evidence,
    Verdict,
)

COLOURS = {REPRODUCED: "#2a9d8f", SUPPORTED: "#7aa95c", CONTRADICTED: "#d1495b", INCONSISTENT: "#e0913a"}
GREY = "#8d99ae"
DECIDED_IN = {  # the chapter, by its slug, and the place in it, of the claims that need no run
    "architectural": "architecture#architectural-verdicts",
    "arithmetic": "plausibility#table-verdicts",
    "table-internal": "plausibility#table-verdicts",
}


def decided_in(verdict: Verdict, evidence: Mapping[str, Evidence]) -> str:
    """Name the chapter and anchor that decide a claim, ``slug#anchor``; empty where nothing has."""
    if verdict.claim.chapter:
        return verdict.claim.chapter
    if verdict.claim.offline:
        return DECIDED_IN[verdict.claim.kind]
    return next((evidence[name].chapter for name in verdict.evidence if evidence[name].chapter), "")


def as_html(
    verdicts: Iterable[Verdict], evidence: Mapping[str, Evidence], pages: Mapping[str, str] | None = None
) -> str:
    """Write the filterable table. `pages`: a chapter's slug -> its page, ``slug.html`` where not given.

    Links are relative to a page that lies beside the chapters'.
    """
    listed = list(verdicts)
    counts = Counter(v.outcome for v in listed)
    options = {
        "verdict": {name: f"{name} ({counts[name]})" for name in VERDICTS if counts[name]},
        "paper": PAPERS,
        "kind": {kind: kind for kind in KINDS},
    }
    filters = "".join(_select(name, choices) for name, choices in options.items())
    search = '<input type="search" name="words" placeholder="words in a claim" aria-label="words in a claim">'
    body = "".join(_row(v, decided_in(v, evidence), pages or {}) for v in listed)
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Verdict", "Claim", "Why"))
    style, script = ((files("kdcdiff.claims") / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        f'<div id="claims"><style>\n{style}</style>'
        f'<div class="claims-filters">{filters}{search}<output>{len(listed)} claims</output></div>'
        f'<table class="claims-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"<script>\n{script}</script></div>"
    )


def _select(name: str, choices: Mapping[str, str]) -> str:
    listed = "".join(f'<option value="{escape(k)}">{escape(v)}</option>' for k, v in choices.items())
    return f'<select name="{name}" aria-label="{name}"><option value="">every {name}</option>{listed}</select>'


def _row(verdict: Verdict, place: str, pages: Mapping[str, str]) -> str:
    claim = verdict.claim
    chapter, _, anchor = place.partition("#")
    target = pages.get(chapter, f"{chapter}.html") + (f"#{anchor}" if anchor else "")
    where = f'<br>decided in <a href="{escape(target)}">{escape(chapter)}</a>' if place else ""
    scale = f"<br>{_small(f'measured: {verdict.scale}')}" if verdict.scale else ""
    note = f"<br>{_small(claim.note)}" if claim.note else ""
    colour = f'style="border-left-color: {COLOURS.get(verdict.outcome, GREY)}"'
    data = f'data-verdict="{escape(verdict.outcome)}" data-paper="{claim.paper}" data-kind="{claim.kind}"'
    return (
        f'<tr id="{escape(claim.id)}" {data}>'
        f'<td class="claims-verdict" {colour}>{escape(verdict.outcome)}<br>{_small(claim.kind)}</td>'
        f"<td>“{escape(claim.quote)}”<br>{_small(f'{PAPERS[claim.paper]}, {claim.place}')}</td>"
        f"<td>{escape(verdict.reason)}{scale}{note}{where}</td></tr>"
    )


def _small(words: str) -> str:
    return f'<span class="claims-small">{escape(words)}</span>'
