"""`kdcdiff claims`: the table, its filters, the record, and the data set that it writes."""

import csv
import hashlib
import json
import re

import pytest

from kdcdiff import claims, cli
from kdcdiff.book.results import Results
from kdcdiff.claims import export, record, tables
from kdcdiff.claims.model import AGREES, INCONSISTENT, SAME
from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import around

NONE = "no-such-results.json"  # the evidence on record is read in its place


def command(*words: str) -> int:
    args = cli.parser_for("claims").parse_args(["claims", *words])
    return args.run(args)


def test_the_command_prints_the_table_and_the_tallies(capsys):
    assert command("--results", NONE) == 0
    out = capsys.readouterr().out
    assert re.search(r"^inconsistent +kdc\.t1\.flowers-clip ", out, re.MULTILINE)
    assert f"{len(claims.load())} claims: " in out
    assert re.search(r"^\d+ do not hold, by severity: \d+ identity, \d+ conclusion", out, re.MULTILINE)


def test_the_command_filters_and_speaks_json(capsys):
    asked = ("--paper", "bk-sdm", "--verdict", INCONSISTENT, "--severity", "rounding")
    assert command(*asked, "--json", "--results", NONE) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["paper"], r["verdict"], r["severity"]) for r in rows} == {("bk-sdm", INCONSISTENT, "rounding")}
    assert "bk.unet.sdm-count" in {r["id"] for r in rows}


def test_the_command_reads_recorded_results(capsys, tmp_path):
    results = Results(tmp_path / "results.json")
    where = {"profile": "mini", "dataset": "flora", "chapter": "attention"}
    for name, value in (("student", 0.9), ("chance", 0.2)):
        results.record(f"attention.{name}.coverage", around(value, 0.05, n=100), **where)
    assert command("--json", "--results", str(results.path)) == 0
    row = next(r for r in json.loads(capsys.readouterr().out) if r["id"] == "kdc.fig5.attention")
    assert (row["verdict"], row["scale"]) == (SAME, "mini, flora, n = 100")


def test_the_command_exits_with_1_when_a_recorded_verdict_no_longer_holds(monkeypatch, capsys):
    row = next(r for r in tables.load_tables()["kdc-diff-1"].rows if r["row"] == "kdc-diff")
    monkeypatch.setitem(row, "fid", "400.00")
    assert command("--paper", "kdc-diff", "--results", NONE) == 1
    said = capsys.readouterr().err
    assert f"changed: kdc.t1.flowers-fid is inconsistent, on record it was {AGREES}" in said


def test_a_measured_verdict_is_held_against_its_own_tier_alone(capsys, tmp_path):
    """The other way round at full it has changed; at another tier there is nothing to compare it with."""
    for profile, code in (("full", 1), ("mini", 0)):
        results = Results(tmp_path / f"{profile}.json")
        where = {"profile": profile, "dataset": "flora", "chapter": "attention"}
        for name, value in (("student", 0.2), ("chance", 0.9)):
            results.record(f"attention.{name}.coverage", around(value, 0.05, n=100), **where)
        assert command("--results", str(results.path)) == code
        assert ("changed: kdc.fig5.attention is opposite direction" in capsys.readouterr().err) is bool(code)


def test_a_damaged_results_file_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is not a results file"):
        command("--results", str(tmp_path / "results.json"))


def test_the_record_is_written_as_it_is_read(tmp_path):
    record.write(claims.judge_all(record.evidence()), record.evidence(), tmp_path)
    for name in ("verdicts.csv", "evidence.csv"):
        assert (tmp_path / name).read_text(encoding="utf-8") == tables.data_text(name)


def test_what_was_measured_at_smoke_does_not_go_on_record(tmp_path, monkeypatch):
    results = Results(tmp_path / "results.json")
    for name, value in (("student", 0.2), ("chance", 0.9)):
        where = {"profile": "smoke", "dataset": "flora", "chapter": "attention"}
        results.record(f"attention.{name}.coverage", around(value, 0.05, n=100), **where)
    written = []
    monkeypatch.setattr(record, "write", lambda verdicts, evidence, folder: written.append((evidence, folder)))
    assert command("--record", "--results", str(results.path)) == 0
    assert written == [({}, tables.DATA)]


# ---- the data set


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "claims"
    export.write(claims.judge_all(record.evidence()), record.evidence(), folder)
    return folder


def rows(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_data_set_holds_every_claim_with_its_sentences_verdict_and_evidence(exported):
    listed, judged = rows(exported / "claims.csv"), rows(exported / "verdicts.csv")
    assert [r["id"] for r in listed] == [r["id"] for r in judged] == [c.id for c in claims.load()]
    assert all(r["sentences"] for r in listed)
    named = {name for r in judged for name in r["evidence"].split()}
    assert named == {r["name"] for r in rows(exported / "evidence.csv")} and named
    assert (exported / "facts.csv").read_text() == tables.data_text("facts.csv")


def test_every_column_is_described_and_every_file_has_its_checksum(exported):
    package = json.loads((exported / "datapackage.json").read_text())
    for resource in package["resources"]:
        text = (exported / resource["path"]).read_text(encoding="utf-8")
        assert resource["hash"] == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        fields = resource["schema"]["fields"]
        assert [f["name"] for f in fields] == next(csv.reader([text.partition("\n")[0]]))
        assert resource["path"] not in export.SCHEMA or all(f["description"] for f in fields)
    sums = dict(line.split("  ")[::-1] for line in (exported / "checksums.sha256").read_text().splitlines())
    assert set(sums) == {p.name for p in exported.iterdir()} - {"checksums.sha256", export.CRATE}
    assert all(hashlib.sha256((exported / name).read_bytes()).hexdigest() == value for name, value in sums.items())


def test_the_crate_names_every_file_and_refers_to_nothing_that_it_does_not_hold(exported):
    crate = json.loads((exported / export.CRATE).read_text())
    entities = {e["@id"]: e for e in crate["@graph"]}
    assert entities[export.CRATE]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = entities["./"]
    assert {"name", "description", "license", "datePublished"} <= set(root)
    assert {part["@id"] for part in root["hasPart"]} == {p.name for p in exported.iterdir()} - {export.CRATE}
    references = re.findall(r'\{"@id": "([^"]+)"\}', json.dumps(crate))
    assert {r for r in references if not r.startswith("https://w3id")} <= set(entities)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="must be new or empty"):
        export.write([], {}, tmp_path)
