"""The claims: transcription against the papers' text, the pinned verdicts, and a judge that can be moved."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from kdcdiff import claims, cli
from kdcdiff.book.results import Result, Results
from kdcdiff.claims import checks, judging, page, tables
from kdcdiff.claims.model import CONTRADICTED, INCONSISTENT, KINDS, NOT_TESTED, REPRODUCED, SUPPORTED, Claim
from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import around

EXCERPTS = Path(__file__).parent / "excerpts"  # the tables as they stand in the papers' text
BY_ID = {c.id: c for c in claims.load()}


def excerpt(name: str) -> list[str]:
    return (EXCERPTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def transcribed(name: str, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row[c] for c in columns) for row in tables.load_tables()[name].rows]


# ---- transcription: by hand in the data, parsed from the text here


def kdc_rows(name: str, cells: str) -> list[tuple[str, ...]]:
    """Data set, label and cells of each line of a KDC-Diff table."""
    rows, dataset = [], ""
    for line in excerpt(name)[1:]:
        if line in ("Oxford-102-Flower", "Butterfly & Moths"):
            dataset = {"O": "flowers", "B": "butterflies"}[line[0]]
            continue
        label, rest = re.fullmatch(rf"(.+?) ({cells}.*)", line).groups()
        rows.append((dataset, label.replace(" ,", ","), rest))
    return rows


def test_kdc_table_1_is_transcribed_exactly():
    parsed = []
    for dataset, label, rest in kdc_rows("kdc-diff-1", r"\d+\.\d+ \d+\.\d+ "):
        fid, clip, rest = rest.split(" ", 2)
        kid, pm = re.match(r"(\d\.\d{4}) ?± ?(\d\.\d{4})", rest).groups()
        parsed.append((dataset, label, fid, clip, kid, pm, rest.split()[-1]))
    assert len(parsed) == 33
    columns = ("dataset", "label", "fid", "clip", "kid", "kid_pm", "lpips")
    assert transcribed("kdc-diff-1", *columns) == parsed


def test_kdc_table_2_is_transcribed_exactly():
    rows = kdc_rows("kdc-diff-2", r"\d+\.\d+ \d")
    parsed = [(dataset, label, *rest.split()) for dataset, label, rest in rows]
    assert len(parsed) == 33
    assert transcribed("kdc-diff-2", "dataset", "label", "seconds", "parameters", "gmac") == parsed


def test_both_kdc_tables_name_the_same_rows():
    keys = ("dataset", "row", "label", "role")
    assert transcribed("kdc-diff-1", *keys) == transcribed("kdc-diff-2", *keys)


def test_bk_table_1_is_transcribed_exactly():
    parsed = [tuple(re.findall(r"\d+\.\d+", line.partition("\t")[2])) for line in excerpt("bk-sdm-1")[2:]]
    columns = ("fid", "is", "unet", "unet_cut", "whole", "whole_cut")
    assert [tuple(v for v in row if v) for row in transcribed("bk-sdm-1", *columns)] == parsed


def test_bk_table_2_is_transcribed_exactly():
    parsed = []
    for line in excerpt("bk-sdm-2")[1:]:
        _, kind, fid, score, parameters, pairs = line.split("\t")
        parsed.append((kind, fid, score, re.sub(r"[ _B]", "", parameters), pairs.rstrip("M")))
    assert len(parsed) == 16
    assert transcribed("bk-sdm-2", "type", "fid", "is", "parameters", "pairs") == parsed


def test_bk_table_4_is_transcribed_exactly():
    parsed = [tuple(line.split("\t")) for line in excerpt("bk-sdm-4")[3:]]
    assert len(parsed) == 8
    numbers = [(batch, fid, score, clip) for _, _, _, _, batch, _, fid, score, clip in parsed]
    assert transcribed("bk-sdm-4", "batch", "fid", "is", "clip") == numbers
    # The text lost its ticks and kept its crosses.
    crosses = [tuple("no" if c else "yes" for c in (p[2], p[3], p[5])) for p in parsed[:-1]]
    assert transcribed("bk-sdm-4", "output_kd", "feature_kd", "mid_removed")[:-1] == crosses


def test_bk_table_5_is_transcribed_exactly():
    parsed = [tuple(c.rstrip("sB") for c in line.split("\t")[1:]) for line in excerpt("bk-sdm-5")[1:]]
    assert len(parsed) == 6
    assert transcribed("bk-sdm-5", "dino", "clip_i", "clip_t", "seconds", "parameters") == parsed


def test_numbers_are_the_numbers_of_their_quotations():
    """Wherever a quotation holds digits, the transcribed value is one of them."""
    checked = 0
    for figure in tables.printed_numbers("numbers.csv").values():
        digits = re.findall(r"(?<!\w)\d[\d,]*\.?\d*(?:e-?\d+)?", figure.quote)
        if not digits or "equation" in figure.source or "×10" in figure.quote:
            continue
        values = [float(d.rstrip(",.").replace(",", "")) for d in digits]
        values += [v * 1000 for v in values if f"{v:g}K" in figure.quote]
        assert figure.value in values, figure
        checked += 1
    assert checked >= 60


# ---- the set of claims


def test_there_are_enough_claims_of_every_kind():
    papers = [c.paper for c in claims.load()]
    assert papers.count("kdc-diff") >= 120
    assert papers.count("bk-sdm") >= 75
    assert {c.kind for c in claims.load()} == set(KINDS)


def test_every_recorded_verdict_still_holds():
    assert judging.changed(claims.judge_all({})) == []
    assert set(judging.recorded()) == {c.id for c in claims.load() if c.offline}


@pytest.mark.parametrize(("claim", "outcome", "because"), [
    ("kdc.t1.flowers-clip", INCONSISTENT, "30.8017"),
    ("kdc.t1.cl-highest-fid", INCONSISTENT, "308.05"),
    ("kdc.t2.highest-time", INCONSISTENT, "30.7353"),
    ("kdc.t2.largest-count", INCONSISTENT, "865,910,724"),
    ("kdc.loss.soft-equation", INCONSISTENT, "1 = 4"),
    ("kdc.t1.cl-teacher", INCONSISTENT, "realistic-vision-v51"),
    ("kdc.unet.pairs-down", CONTRADICTED, "(2, 2, 2)"),
    ("kdc.unet.pairs-up", REPRODUCED, "(3, 3, 3)"),
    ("kdc.unet.described-parameters", CONTRADICTED, "420,423,044"),
    ("kdc.t2.one-network", CONTRADICTED, "0 do both"),
    ("kdc.t2.kdc-gmac", REPRODUCED, "228.85335"),
    ("kdc.t2.bk-small-gmac", CONTRADICTED, "217.89377"),
    ("kdc.data.flowers-train", CONTRADICTED, "1,020"),
    ("kdc.intro.890m", CONTRADICTED, "85.952"),
    ("kdc.t1.butterflies-all", REPRODUCED, "297.66 is number 1 of 11"),
    ("bk.t1.mid-whole", CONTRADICTED, "935.0336"),
    ("bk.unet.sdm-count", INCONSISTENT, "1.03210"),
    ("bk.t1.whole", REPRODUCED, "1,032.0716"),
    ("bk.intro.finetuning-base", INCONSISTENT, "29.3884"),
])  # fmt: skip
def test_headline_findings(claim, outcome, because):
    verdict = claims.judge(BY_ID[claim])
    assert verdict.outcome == outcome
    assert because in verdict.reason


@pytest.mark.parametrize(("table", "key", "column", "text", "claim", "outcome"), [
    ("kdc-diff-1", ("flowers", "kdc-diff"), "clip", "31.00", "kdc.t1.flowers-clip", REPRODUCED),
    ("kdc-diff-1", ("flowers", "kdc-diff-cl"), "fid", "309.00", "kdc.t1.cl-highest-fid", REPRODUCED),
    ("kdc-diff-1", ("butterflies", "sd-2-base"), "clip", "33.90", "kdc.t1.butterflies-clip", INCONSISTENT),
    ("kdc-diff-2", ("flowers", "kdc-diff"), "parameters", "420,423,044", "kdc.t2.one-network", REPRODUCED),
    ("kdc-diff-2", ("flowers", "kdc-diff"), "gmac", "228.86", "kdc.t2.kdc-gmac", CONTRADICTED),
    ("kdc-diff-2", ("flowers", "sd-1-5"), "parameters", "859,520,965", "kdc.t2.sd1-parameters", CONTRADICTED),
    ("bk-sdm-1", ("mid-removed",), "whole", "935.0", "bk.t1.mid-whole", REPRODUCED),
    ("bk-sdm-5", ("base",), "seconds", "616.0", "bk.intro.finetuning-base", REPRODUCED),
])  # fmt: skip
def test_an_altered_cell_flips_its_verdict(monkeypatch, table, key, column, text, claim, outcome):
    row = next(r for r in tables.load_tables()[table].rows if tuple(r[k] for k in ("dataset", "row") if k in r) == key)
    before = claims.judge(BY_ID[claim])
    monkeypatch.setitem(row, column, text)
    after = claims.judge(BY_ID[claim])
    assert after.outcome == outcome != before.outcome
    assert [v.claim.id for v, _ in judging.changed([after])] == [claim]


# ---- evidence


def result(name, value, interval=None, unit="", **more):
    return Result(name, value, unit, interval, profile="mini", dataset="flora", device="cpu", **more)


def judged(claim, *results):
    return claims.judge(BY_ID[claim], {r.name: r for r in results})


def forgetting(replay, naive):
    return judged("kdc.abstract.stable", result("continual.latent-replay.forgetting", *replay, n=200),
                  result("continual.naive.forgetting", *naive, n=400))  # fmt: skip


def test_an_empirical_claim_follows_its_evidence():
    assert judged("kdc.abstract.stable").outcome == NOT_TESTED
    assert "it would take" in judged("kdc.abstract.stable").reason
    held = forgetting((0.1, (0.05, 0.15)), (0.6, (0.5, 0.7)))
    assert held.outcome == SUPPORTED
    assert held.scale == "mini, flora, cpu, n = 200 to 400"
    assert held.evidence == ("continual.latent-replay.forgetting", "continual.naive.forgetting")
    assert forgetting((0.6, (0.5, 0.7)), (0.1, (0.05, 0.15))).outcome == CONTRADICTED


def test_overlapping_or_missing_intervals_decide_nothing():
    overlapping = forgetting((0.3, (0.1, 0.5)), (0.4, (0.2, 0.6)))
    assert overlapping.outcome == NOT_TESTED
    assert "holds zero" in overlapping.reason
    bare = forgetting((0.1,), (0.6,))
    assert bare.outcome == NOT_TESTED
    assert "without an interval" in bare.reason


def test_what_smoke_measures_decides_nothing():
    names = ("continual.latent-replay.forgetting", "continual.naive.forgetting")
    values = ((0.1, (0.05, 0.15)), (0.6, (0.5, 0.7)))
    listed = [dataclasses.replace(result(n, *v), profile="smoke") for n, v in zip(names, values, strict=True)]
    verdict = judged("kdc.abstract.stable", *listed)
    assert verdict.outcome == NOT_TESTED
    assert "measured at smoke" in verdict.reason


def test_counted_evidence_needs_no_interval():
    verdict = judged("kdc.replay.pixel-cost", result("replay.bytes", 4096, unit="B"),
                     result("replay.pixel_bytes", 49152, unit="B"))  # fmt: skip
    assert verdict.outcome == SUPPORTED


def test_the_difference_of_two_intervals_combines_in_quadrature():
    """10 ± 3 against 14 ± 2.6: the arms add to 3.97, under 4, though the intervals overlap."""
    a, b = result("teacher.class_accuracy", 14, (11.4, 16.6)), result("x", 10, (7.0, 13.0))
    checker = checks.Checker({"teacher.class_accuracy": a, "x": b})
    assert checker.decide('seen("teacher.class_accuracy") > seen("x")') is True
    assert checker.decide('seen("teacher.class_accuracy") > seen("x") + 0.1') is None
    assert checker.decide('not seen("teacher.class_accuracy") > seen("x") + 0.1') is None


def test_unasked_evidence_is_an_error_and_context_is_not():
    stray = {"student.kdc.colour": result("student.kdc.colour", 1.0)}
    with pytest.raises(UserError, match=r"student\.kdc\.colour: no claim asks for it"):
        claims.judge_all(stray)
    declared = {"stage.teacher.seconds": result("stage.teacher.seconds", 1.0, unit="s")}
    assert len(claims.judge_all(declared)) == len(claims.load())


# ---- refusals


@pytest.mark.parametrize(("change", "message"), [
    ({"check": 'lowest("kdc-diff-1/flowers/kdc-diff-z/fid")'}, "no such row"),
    ({"check": 'lowest("kdc-diff-1/flowers/kdc-diff/ssim")'}, "no such column"),
    ({"check": 'lowest("kdc-diff-9/flowers/kdc-diff/fid")'}, "no such table"),
    ({"check": 'stated("kdc/no-such-number") > 1'}, "there is no such number"),
    ({"check": 'parameters("sd-9") > 1'}, "there is no network"),
    ({"check": 'macs("sd-1", "flops") > 1'}, "there is no convention 'flops'; there are fvcore, thop, hooks, all"),
    ({"check": "__import__('os').system('true') == 0"}, "only plain functions"),
    ({"check": 'open("x") == 1'}, "there is no open"),
    ({"check": "1 <"}, "check="),
    ({"check": 'seen("teacher.class_accuracy") > 1'}, "only an empirical claim asks for evidence"),
    ({"check": ""}, "needs a check"),
    ({"kind": "hearsay"}, "kind must be one of"),
    ({"kind": "empirical", "check": ""}, "must say in `needs`"),
    ({"kind": "empirical", "needs": "a run", "check": "1 < 2"}, "must ask for evidence"),
])  # fmt: skip
def test_a_claim_that_cannot_be_judged_is_refused_in_one_line(change, message):
    sound = Claim("a", "kdc-diff", "quote", "place", "arithmetic", "1 < 2")
    judging.validate(sound)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        judging.validate(dataclasses.replace(sound, **change))
    assert "\n" not in str(error.value)


def test_a_table_with_a_word_for_a_number_is_refused(monkeypatch):
    text = tables.data_text("bk-sdm-5.csv").replace("0.723", "high")
    monkeypatch.setattr(tables, "data_text", lambda name: text)
    rows = list(csv.DictReader(text.splitlines()))
    table = dataclasses.replace(tables.load_tables()["bk-sdm-5"], rows=rows)
    with pytest.raises(UserError, match="bk-sdm-5/base/dino='high': must be a number"):
        tables._validate(table)


# ---- the command


def command(*words: str) -> int:
    args = cli.parser_for("claims").parse_args(["claims", *words])
    return args.run(args)


def test_the_command_prints_the_table_and_the_tally(capsys, tmp_path):
    assert command("--results", str(tmp_path / "none.json")) == 0
    out = capsys.readouterr().out
    assert re.search(r"^inconsistent +kdc\.t1\.flowers-clip ", out, re.MULTILINE)
    assert f"{len(claims.load())} claims: " in out


def test_the_command_filters_and_speaks_json(capsys, tmp_path):
    assert command("--paper", "bk-sdm", "--verdict", INCONSISTENT, "--json", "--results", str(tmp_path / "no")) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["paper"], r["verdict"]) for r in rows} == {("bk-sdm", INCONSISTENT)}
    assert "bk.unet.sdm-count" in {r["id"] for r in rows}


def test_the_command_reads_recorded_results(capsys, tmp_path):
    results = Results(tmp_path / "results.json")
    for name, value in (("latent-replay", 0.9), ("naive", 0.2)):
        share = around(value, 0.05, n=100)
        where = {"profile": "mini", "dataset": "flora", "chapter": "latent-replay"}
        results.record(f"continual.{name}.average_accuracy", share, **where)
    assert command("--json", "--results", str(results.path)) == 0
    row = next(r for r in json.loads(capsys.readouterr().out) if r["id"] == "kdc.replay.average")
    assert (row["verdict"], row["scale"]) == (SUPPORTED, "mini, flora, n = 100")


def test_the_command_exits_with_1_when_a_recorded_verdict_no_longer_holds(monkeypatch, capsys, tmp_path):
    row = next(r for r in tables.load_tables()["kdc-diff-1"].rows if r["row"] == "kdc-diff")
    monkeypatch.setitem(row, "fid", "400.00")
    assert command("--paper", "kdc-diff", "--results", str(tmp_path / "none.json")) == 1
    said = capsys.readouterr().err
    assert "changed: kdc.t1.flowers-fid is inconsistent, on record it was reproduced exactly" in said


def test_a_damaged_results_file_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is not a results file"):
        command("--results", str(tmp_path / "results.json"))


# ---- the page


def averages() -> dict[str, Result]:
    found = {}
    for method, value in (("latent-replay", 0.9), ("naive", 0.2)):
        name = f"continual.{method}.average_accuracy"
        found[name] = result(name, value, (value - 0.05, value + 0.05), chapter="latent-replay")
    return found


def test_the_page_holds_every_claim_once_and_links_to_what_decides_it():
    evidence = averages()
    verdicts = claims.judge_all(evidence)
    html = page.as_html(verdicts, evidence, {"architecture": "03-architecture.html"})
    assert [html.count(f'<tr id="{c.id}"') for c in claims.load()] == [1] * len(verdicts)
    places = {v.claim.id: page.decided_in(v, evidence) for v in verdicts}
    assert places["kdc.replay.average"] == "latent-replay"
    assert places["kdc.t2.one-network"] == "architecture#readings"
    assert places["kdc.fig4.fidelity"] == ""
    assert all(places[v.claim.id] for v in verdicts if v.claim.offline)
    assert 'href="03-architecture.html#readings"' in html  # the page that was named
    assert 'href="latent-replay.html"' in html  # the page that a slug has by itself
    assert "http" not in html  # nothing is fetched


def test_the_page_holds_its_style_and_script_and_no_class_of_the_theme():
    html = page.as_html(claims.judge_all({}, claims.load()[:3]), {})
    assert ".claims-table .claims-verdict {" in html and "addEventListener" in html
    classes = re.findall(r"""class=["']([^"']+)""", html)
    assert classes and all(name.startswith("claims-") for name in classes)  # the theme paints its own `mark` yellow


def test_the_page_escapes_what_the_papers_wrote():
    claim = Claim("x", "kdc-diff", "<b>5 & 6</b>", "here", "arithmetic", "1 < 2")
    html = page.as_html([claims.judge(claim)], {})
    assert "<b>5" not in html
    assert "&lt;b&gt;5 &amp; 6&lt;/b&gt;" in html


def test_links_lead_to_labels_that_the_chapters_have():
    folder = Path(__file__).parents[2] / "notebooks"
    verdicts = claims.judge_all({})
    for place in {page.decided_in(v, {}) for v in verdicts if v.claim.offline}:
        slug, _, label = place.partition("#")
        (file,) = folder.glob(f"*-{slug}.ipynb")
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert any(f"({label})=" in "".join(c["source"]) for c in cells), place


def test_a_part_that_does_nothing_decides_nothing():
    """What is said of a stage is not judged on a teacher whose prediction does not depend on that stage."""
    claim = BY_ID["bk.t1.minor-measured"]
    where = {"profile": "mini", "dataset": "flora", "seed": 0, "device": "cpu", "chapter": "surgery"}

    def verdict(alive):
        shares = {"teacher.alive.mid_block": alive, "teacher.class_accuracy": 0.95,
                  "surgery.mid-removed.class_accuracy": 0.94}  # fmt: skip
        found = {n: Result(n, v, "", (v * 0.98, min(1.0, v * 1.02)), 100, **where) for n, v in shares.items()}
        return claims.judge(claim, found)

    assert verdict(0.02).outcome == SUPPORTED
    asleep = verdict(0.0002)
    assert asleep.outcome == NOT_TESTED and "this teacher cannot tell" in asleep.reason
