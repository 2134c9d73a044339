"""The audit as a data set that others can cite and reuse: CSV with a schema, sources, verdicts, evidence, checksums.

The folder is a Frictionless data package (``datapackage.json``) and an RO-Crate (``ro-crate-metadata.json``) at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdcdiff import __version__
from kdcdiff.claims import coverage, record, tables
from kdcdiff.claims.model import SEVERITIES, SOURCES, VERDICTS, Evidence, Verdict
from kdcdiff.errors import check

NAME = "Claims and verdicts on KDC-Diff and BK-SDM"
ABOUT = (
    "Every sentence of two papers on distilled diffusion models that can be true or false: where it stands, how it was "
    "checked, what became of it, and the results that this rests on. Verdicts of measurements are of small models and "
    "carry their tier and data set; they say nothing of the papers' own models."
)
LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"
CRATE = "ro-crate-metadata.json"
ARTICLES = {
    "kdc-diff": (
        "KDC-Diff: A Latent-Aware Diffusion Model with Knowledge Retention for Memory-Efficient Image Generation"
    ),
    "bk-sdm": "On Architectural Compression of Text-to-Image Diffusion Models",
}
SCHEMA: dict[str, dict[str, str]] = {  # of each file of our own making: its columns, and what they hold
    "claims.csv": {
        "id": "name of the claim",
        "source": f"who says it: {', '.join(SOURCES)}",
        "kind": "what could decide it",
        "severity": f"what it weighs where it does not hold: {', '.join(SEVERITIES)}",
        "quote": "a short quotation",
        "place": "where it stands",
        "sentences": "numbers of the sentences in sentences.csv",
        "check": "an expression of kdcdiff.claims.checks; empty where nothing here could decide it",
        "note": "what the check reads into the words",
        "needs": "what it would take, where it is not tested",
    },
    "verdicts.csv": {
        "id": "name of the claim",
        "verdict": f"one of {', '.join(VERDICTS)}",
        "threshold": "whose the threshold is; of one of ours, what half and double of it make",
        "p": "two-sided p value of the weakest comparison, before Holm's correction",
        "tier": "profile at which it was measured",
        "dataset": "data set on which it was measured",
        "reason": "the values that decided it",
        "evidence": "names of the results in evidence.csv, blank between",
    },
    "evidence.csv": {
        "name": "name of the result",
        "value": "the figure",
        "low": "lower end of its 95 % interval",
        "high": "upper end of its 95 % interval",
        "n": "samples behind it: trained students, or pictures of one model",
        "replicates": "of a mean over seeds or orders of classes, each one's value, blank between",
        "unit": "what it is counted in",
        "profile": "tier",
        "dataset": "data set",
        "device": "device",
        "chapter": "chapter of the book that made it",
    },
    "sentences.csv": {
        "source": f"one of {', '.join(SOURCES)}",
        "sentence": "its number in the text",
        "words": "its first words",
        "sha256": "first 12 hexadecimal places of the digest of its letters and digits, in lower case",
        "kind": f"one of {', '.join(coverage.KINDS)}",
        "claims": "the claims that are made of it, blank between",
    },
}
COPIED = ("numbers.csv", "facts.csv")  # sources: what running text states, and what others publish


def write(verdicts: Iterable[Verdict], evidence: Mapping[str, Evidence], folder: Path) -> list[Path]:
    """Write the data set into `folder`, new or empty; return its files. UserError: there is something in it."""
    check(not folder.exists() or not any(folder.iterdir()), "export", str(folder), "must be new or empty")
    folder.mkdir(parents=True, exist_ok=True)
    contents = _own(list(verdicts), evidence)
    contents |= {name: tables.data_text(name) for name in (*COPIED, *(f"{t}.csv" for t in tables.load_tables()))}
    contents["datapackage.json"] = json.dumps(_package(contents), indent=1, ensure_ascii=False) + "\n"
    contents["checksums.sha256"] = "".join(f"{_sha256(text)}  {name}\n" for name, text in sorted(contents.items()))
    contents[CRATE] = json.dumps(_crate(contents), indent=1, ensure_ascii=False) + "\n"
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in contents]


def _own(verdicts: list[Verdict], evidence: Mapping[str, Evidence]) -> dict[str, str]:
    """Make the files of `SCHEMA`: name -> text."""
    where: dict[str, list[str]] = {}
    sentences: list[list[Any]] = []
    for source in SOURCES:
        for s in coverage.load(source):
            sentences.append([source, s.number, s.words, s.digest, s.kind, " ".join(s.claims)])
            for id in s.claims:
                where.setdefault(id, []).append(str(s.number))
    claims, judged = [], []
    for v in verdicts:
        c = v.claim
        about = [c.id, c.paper, c.kind, c.severity, c.quote, c.place, " ".join(where.get(c.id, []))]
        claims.append([*about, c.check, c.note, c.needs])
        p = "" if v.p is None else f"{v.p:.3g}"
        judged.append([c.id, v.outcome, v.threshold, p, v.tier, v.dataset, v.reason, " ".join(v.evidence)])
    used = sorted({name for v in verdicts for name in v.evidence})
    read = [record.line(name, evidence[name]) for name in used]
    bodies: tuple[Iterable[Any], ...] = (claims, judged, read, sentences)
    return {name: _csv([list(SCHEMA[name]), *body]) for name, body in zip(SCHEMA, bodies, strict=True)}


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _package(contents: Mapping[str, str]) -> dict[str, Any]:
    """Describe every CSV file and its columns as a Frictionless data package."""
    resources = []
    for name, text in contents.items():
        described = SCHEMA.get(name, {})
        columns = next(csv.reader([text.partition("\n")[0]]))
        fields = [{"name": c, "type": "string"} | ({"description": described[c]} if described else {}) for c in columns]
        resources.append(
            {"name": name.removesuffix(".csv"), "path": name, "format": "csv", "encoding": "utf-8"}
            | {"hash": f"sha256:{_sha256(text)}", "schema": {"fields": fields}}
        )
    licence = {"name": "Apache-2.0", "path": LICENCE}
    about = {"name": "kdcdiff-claims", "title": NAME, "description": ABOUT, "version": __version__}
    return about | {"licenses": [licence], "resources": resources}


def _crate(contents: Mapping[str, str]) -> dict[str, Any]:
    """Describe the folder as an RO-Crate 1.1: its files with checksums, the papers, the software."""
    kinds = {"csv": "text/csv", "json": "application/json", "sha256": "text/plain"}
    parts = [
        {
            "@id": name,
            "@type": "File",
            "encodingFormat": kinds[name.rpartition(".")[2]],
            "contentSize": str(len(text.encode())),
            "sha256": _sha256(text),
        }
        for name, text in contents.items()
    ]
    papers = [{"@id": f"#{id}", "@type": "ScholarlyArticle", "name": title} for id, title in ARTICLES.items()]
    software = {"@id": "#kdcdiff", "@type": "SoftwareApplication", "name": "kdcdiff", "version": __version__}
    made = {"@id": "#judged", "@type": "CreateAction", "instrument": {"@id": "#kdcdiff"}, "result": {"@id": "./"}}
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": NAME,
        "description": ABOUT,
        "version": __version__,
        "datePublished": datetime.now(UTC).date().isoformat(),
        "license": {"@id": LICENCE},
        "about": [{"@id": paper["@id"]} for paper in papers],
        "hasPart": [{"@id": part["@id"]} for part in parts],
        "mentions": {"@id": "#judged"},
    }
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    licence = {"@id": LICENCE, "@type": "CreativeWork", "name": "Apache License 2.0"}
    graph = [descriptor, root, *parts, *papers, software, made, licence]
    return {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}
