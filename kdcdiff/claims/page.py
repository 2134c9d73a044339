"""The verdicts as one piece of HTML: a table that filters in the browser, without any library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from kdcdiff.claims.model import CONTRADICTED, INCONSISTENT, KINDS, PAPERS, REPRODUCED, SUPPORTED, VERDICTS, Verdict

COLOURS = {REPRODUCED: "#2a9d8f", SUPPORTED: "#7aa95c", CONTRADICTED: "#d1495b", INCONSISTENT: "#e0913a"}
GREY = "#8d99ae"
DECIDED_IN = {  # page and place of the claims that need no run
    "architectural": "audit-architecture#architectural-verdicts",
    "arithmetic": "audit-plausibility#table-verdicts",
    "table-internal": "audit-plausibility#table-verdicts",
}

STYLE = """
.claims-filters {display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .5rem 0}
.claims-filters select, .claims-filters input {font: inherit; padding: .2rem .4rem}
.claims-table {border-collapse: collapse; width: 100%; font-size: .85rem; line-height: 1.35}
.claims-table th, .claims-table td {text-align: left; vertical-align: top; padding: .45rem .5rem;
  border-bottom: 1px solid rgba(128, 128, 128, .35)}
.claims-table .mark {border-left: .4rem solid; padding-left: .4rem; white-space: nowrap}
.claims-table .small {opacity: .75; font-size: .92em}
"""

SCRIPT = """
(function () {
  const root = document.getElementById('claims');
  const rows = Array.from(root.querySelectorAll('tbody tr'));
  const fields = Array.from(root.querySelectorAll('select, input'));
  const shown = root.querySelector('output');
  function filter() {
    let count = 0;
    for (const row of rows) {
      const fits = fields.every(f => !f.value || (f.tagName === 'INPUT'
        ? row.textContent.toLowerCase().includes(f.value.toLowerCase()) : row.dataset[f.name] === f.value));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = count + ' of ' + rows.length + ' claims';
  }
  for (const f of fields) f.addEventListener('input', filter);
  filter();
})();
"""


def decided_in(verdict: Verdict, evidence: Mapping[str, Any]) -> str:
    """Page and anchor of the cell that decides a claim; empty where nothing has."""
    if verdict.claim.chapter:
        return verdict.claim.chapter
    if verdict.claim.offline:
        return DECIDED_IN[verdict.claim.kind]
    return next((str(evidence[n].chapter) for n in verdict.evidence if evidence[n].chapter), "")


def as_html(verdicts: Iterable[Verdict], evidence: Mapping[str, Any]) -> str:
    """The filterable table. Links are relative to a page beside the chapters."""
    listed = list(verdicts)
    counts = Counter(v.outcome for v in listed)
    options = {
        "verdict": {name: f"{name} ({counts[name]})" for name in VERDICTS if counts[name]},
        "paper": PAPERS,
        "kind": {kind: kind for kind in KINDS},
    }
    filters = "".join(_select(name, choices) for name, choices in options.items())
    search = '<input type="search" name="words" placeholder="words in a claim" aria-label="words in a claim">'
    body = "".join(_row(v, decided_in(v, evidence)) for v in listed)
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Verdict", "Claim", "Why"))
    return (
        f'<div id="claims"><style>{STYLE}</style>'
        f'<div class="claims-filters">{filters}{search}<output>{len(listed)} claims</output></div>'
        f'<table class="claims-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"<script>{SCRIPT}</script></div>"
    )


def _select(name: str, choices: Mapping[str, str]) -> str:
    listed = "".join(f'<option value="{escape(k)}">{escape(v)}</option>' for k, v in choices.items())
    return f'<select name="{name}" aria-label="{name}"><option value="">every {name}</option>{listed}</select>'


def _row(verdict: Verdict, place: str) -> str:
    claim = verdict.claim
    page, _, anchor = place.partition("#")
    target = f"{page}.html#{anchor}" if anchor else f"{page}.html"
    where = f'<br>decided in <a href="{escape(target)}">{escape(page)}</a>' if place else ""
    scale = f"<br><span class='small'>measured: {escape(verdict.scale)}</span>" if verdict.scale else ""
    note = f"<br><span class='small'>{escape(claim.note)}</span>" if claim.note else ""
    mark = f'<td class="mark" style="border-left-color: {COLOURS.get(verdict.outcome, GREY)}">'
    data = f'data-verdict="{escape(verdict.outcome)}" data-paper="{claim.paper}" data-kind="{claim.kind}"'
    source = f"{PAPERS[claim.paper]}, {escape(claim.place)}"
    return (
        f'<tr id="{escape(claim.id)}" {data}>{mark}{escape(verdict.outcome)}'
        f"<br><span class='small'>{claim.kind}</span></td>"
        f"<td>“{escape(claim.quote)}”<br><span class='small'>{source}</span></td>"
        f"<td>{escape(verdict.reason)}{scale}{note}{where}</td></tr>"
    )
