"""The claims: transcription against the papers' text, the verdicts on record, and a judge that can be moved."""

import ast
import csv
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kdcdiff import claims
from kdcdiff.book.results import Result, Results
from kdcdiff.claims import checks, judging, record, tables
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
    UNDECIDED,
    Claim,
)
from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import over_seeds

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
    papers = Counter(c.paper for c in claims.load())
    assert papers["kdc-diff"] + papers["bk-sdm"] > 250
    assert {c.kind for c in claims.load()} == set(KINDS)
    assert {c.severity for c in claims.load()} == set(SEVERITIES)


def test_no_two_claims_have_one_check():
    written = Counter(" ".join(c.check.split()) for c in claims.load() if c.check)
    assert [check for check, count in written.items() if count > 1] == []


def bare_thresholds(claim: Claim) -> list[str]:
    """Numbers on a side of an inequality that neither the sentence nor `ours` has; 0, 1 and exponents of ten aside."""
    found = []
    for node in ast.walk(checks.parse(claim.check)):
        if not isinstance(node, ast.Compare) or any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            continue
        for side in (node.left, *node.comparators):
            factors = [side.left, side.right] if isinstance(side, ast.BinOp) else [side]
            for value in (f.value for f in factors if isinstance(f, ast.Constant)):
                known = value in (0, 0.5, 1, 2, 100) or float(value) >= 1e6 or f"{value}" in claim.quote
                found += [] if known or isinstance(value, str) else [f"{claim.id}: {value}"]
    return found


def test_every_threshold_is_the_sentences_or_marked_as_ours():
    found = [line for claim in claims.load() if claim.check for line in bare_thresholds(claim)]
    structural = ("25 * macs", "50 * macs", "11 - ours")  # steps of sampling, and a rank counted from the other end
    counted = ("kdc.intro.unet-bottleneck", "bk.t3.macs-guided", "kdc.replay.less-memory", "kdc.conclusion.outperforms")
    assert [line for line in found if not line.startswith(counted)] == [], structural


def test_every_recorded_verdict_still_holds():
    """The measured ones from the evidence on record: at which tier, and on which data."""
    verdicts = claims.judge_all(record.evidence())
    assert record.changed(verdicts) == []
    assert set(record.verdicts()) == {c.id for c in claims.load()}
    measured = [v for v in verdicts if v.outcome in (SAME, OPPOSITE, UNDECIDED)]
    assert measured
    for verdict in measured:
        row = record.verdicts()[verdict.claim.id]
        assert (row["tier"], row["dataset"]) == (verdict.tier, verdict.dataset) != ("", "")


def test_nothing_on_record_was_measured_at_smoke():
    assert "smoke" not in {r.profile for r in record.evidence().values()}
    assert "smoke" not in {row["tier"] for row in record.verdicts().values()}


def test_no_paper_is_charged_with_what_small_models_show_or_with_a_sites_words():
    for verdict in claims.judge_all(record.evidence()):
        measured = verdict.claim.kind == "empirical"
        assert verdict.outcome in ((SAME, OPPOSITE, UNDECIDED, NOT_TESTED) if measured
                                   else (REDERIVED, AGREES, INCONSISTENT, REFUTED))  # fmt: skip
        assert verdict.claim.id.startswith("page.") is (verdict.claim.paper == "kdc-diff-page")


@pytest.mark.parametrize(("claim", "outcome", "because"), [
    ("kdc.t1.flowers-clip", INCONSISTENT, "30.8017"),
    ("kdc.t1.cl-highest-fid", INCONSISTENT, "308.05"),
    ("kdc.t2.highest-time", INCONSISTENT, "30.7353"),
    ("kdc.t2.largest-count", INCONSISTENT, "865,910,724"),
    ("kdc.t2.variants-both", INCONSISTENT, "3 = 0"),
    ("kdc.loss.soft-equation", INCONSISTENT, "1 = 4"),
    ("kdc.t1.cl-teacher", INCONSISTENT, "realistic-vision-v51"),
    ("kdc.t1.flowers-fid", AGREES, "177.3690 is number 1"),
    ("kdc.unet.pairs-down", REFUTED, "(2, 2, 2)"),
    ("kdc.unet.pairs-up", REDERIVED, "(3, 3, 3)"),
    ("kdc.unet.described-parameters", REFUTED, "420,423,044"),
    ("kdc.t2.one-network", REFUTED, "0 do both"),
    ("kdc.t2.kdc-gmac", REDERIVED, "228.85335"),
    ("kdc.data.flowers-train", REFUTED, "1,020"),
    ("kdc.replay.less-memory-file", REFUTED, "65,536"),
    ("kdc.intro.890m", REFUTED, "85.952"),
    ("kdc.t1.butterflies-all", AGREES, "297.66 is number 1 of 11"),
    ("bk.t1.mid-whole", REFUTED, "935.0336"),
    ("bk.unet.sdm-count", INCONSISTENT, "1.03210"),
    ("bk.t1.whole", REDERIVED, "1,032.0716"),
    ("bk.intro.finetuning-base", INCONSISTENT, "29.3884"),
])  # fmt: skip
def test_headline_findings(claim, outcome, because):
    verdict = claims.judge(BY_ID[claim])
    assert verdict.outcome == outcome
    assert because in verdict.reason


def test_a_rounding_weighs_less_than_another_network():
    order = list(SEVERITIES)
    rounding, network = BY_ID["bk.t1.mid-whole"].severity, BY_ID["kdc.t2.one-network"].severity
    assert (rounding, network) == (order[0], order[-1])


@pytest.mark.parametrize(("table", "key", "column", "text", "claim", "outcome"), [
    ("kdc-diff-1", ("flowers", "kdc-diff"), "clip", "31.00", "kdc.t1.flowers-clip", AGREES),
    ("kdc-diff-1", ("flowers", "kdc-diff-cl"), "fid", "309.00", "kdc.t1.cl-highest-fid", AGREES),
    ("kdc-diff-1", ("butterflies", "sd-2-base"), "clip", "33.90", "kdc.t1.butterflies-clip", INCONSISTENT),
    ("kdc-diff-2", ("flowers", "kdc-diff"), "parameters", "420,423,044", "kdc.t2.one-network", REDERIVED),
    ("kdc-diff-2", ("flowers", "kdc-diff"), "gmac", "228.86", "kdc.t2.kdc-gmac", REFUTED),
    ("kdc-diff-2", ("flowers", "sd-1-5"), "parameters", "859,520,965", "kdc.t2.sd1-parameters", REFUTED),
    ("bk-sdm-1", ("mid-removed",), "whole", "935.0", "bk.t1.mid-whole", REDERIVED),
    ("bk-sdm-5", ("base",), "seconds", "616.0", "bk.intro.finetuning-base", AGREES),
])  # fmt: skip
def test_an_altered_cell_flips_its_verdict(monkeypatch, table, key, column, text, claim, outcome):
    row = next(r for r in tables.load_tables()[table].rows if tuple(r[k] for k in ("dataset", "row") if k in r) == key)
    before = claims.judge(BY_ID[claim])
    monkeypatch.setitem(row, column, text)
    after = claims.judge(BY_ID[claim])
    assert after.outcome == outcome != before.outcome
    assert [v.claim.id for v, _ in record.changed([after])] == [claim]


# ---- thresholds of ours


@pytest.mark.parametrize(("check", "whose"), [
    ("ours(5) > 4", "otherwise at half, refuted"),
    ("2 > ours(1.5)", "otherwise at double, refuted"),
    ("100 > ours(5)", "the same at half and at double"),
    ('stated("kdc/rv-seconds") < 12', "the claim's"),
    ('stated("kdc/rv-metrics") == 4', ""),
    ("1 < 2", ""),
])  # fmt: skip
def test_a_threshold_of_ours_is_tried_at_half_and_double(check, whose):
    verdict = claims.judge(Claim("x", "kdc-diff", "quote", "place", "arithmetic", check))
    assert whose in verdict.threshold and (bool(whose) or not verdict.threshold)
    assert verdict.fragile is ("otherwise" in whose)


# ---- evidence


def result(name, value, interval=None, unit="", **more):
    return Result(name, value, unit, interval, **{"profile": "mini", "dataset": "flora", "device": "cpu"} | more)


def judged(claim, *results):
    return claims.judge(BY_ID[claim], {r.name: r for r in results})


def replay(kept, lost, average=((0.9, (0.85, 0.95)), (0.2, (0.1, 0.3)))):
    """Forgetting with and without replay, and the average accuracy of both."""
    values = {"forgetting": (kept, lost), "average_accuracy": average}
    return judged("kdc.abstract.stable", *(
        result(f"continual.{method}.{score}", *pair[k], n=200 * (k + 1))
        for score, pair in values.items() for k, method in enumerate(("latent-replay", "naive"))
    ))  # fmt: skip


def test_an_empirical_claim_follows_its_evidence():
    assert judged("kdc.abstract.stable").outcome == NOT_TESTED
    assert "it would take" in judged("kdc.abstract.stable").reason
    held = replay((0.1, (0.05, 0.15)), (0.6, (0.5, 0.7)))
    assert held.outcome == SAME
    assert held.scale == "mini, flora, cpu, n = 200 to 400"
    assert (held.tier, held.dataset) == ("mini", "flora")
    assert held.evidence[:2] == ("continual.latent-replay.forgetting", "continual.naive.forgetting")
    assert held.p < 0.001
    other = replay((0.6, (0.5, 0.7)), (0.1, (0.05, 0.15)), ((0.2, (0.1, 0.3)), (0.9, (0.85, 0.95))))
    assert other.outcome == OPPOSITE


def test_endpoints_that_do_not_agree_decide_nothing():
    """One endpoint of two does not make the verdict, whichever way it points."""
    divided = replay((0.6, (0.5, 0.7)), (0.1, (0.05, 0.15)))
    assert divided.outcome == UNDECIDED
    assert "the endpoints do not agree" in divided.reason


def test_overlapping_or_missing_intervals_decide_nothing():
    overlapping = replay((0.3, (0.1, 0.5)), (0.4, (0.2, 0.6)))
    assert overlapping.outcome == UNDECIDED
    assert "holds zero" in overlapping.reason
    bare = replay((0.1,), (0.6,))
    assert bare.outcome == UNDECIDED
    assert "without an interval" in bare.reason


def test_what_smoke_measures_decides_nothing():
    listed = [dataclasses.replace(result(n, v, (v - 0.01, v + 0.01)), profile="smoke")
              for n, v in (("attention.student.coverage", 0.9), ("attention.chance.coverage", 0.5))]  # fmt: skip
    verdict = judged("kdc.fig5.attention", *listed)
    assert verdict.outcome == NOT_TESTED
    assert "measured at smoke" in verdict.reason


def test_counted_evidence_needs_no_interval_and_no_correction():
    verdict = judged("kdc.replay.pixel-cost", result("replay.bytes", 4096, unit="B"),
                     result("replay.jpeg_bytes", 3000, unit="B"))  # fmt: skip
    assert (verdict.outcome, verdict.p) == (OPPOSITE, None)


def test_the_difference_of_two_intervals_combines_in_quadrature():
    """10 ± 3 against 14 ± 2.6: the arms add to 3.97, under 4, though the intervals overlap."""
    a, b = result("teacher.class_accuracy", 14, (11.4, 16.6)), result("x", 10, (7.0, 13.0))
    checker = checks.Checker({"teacher.class_accuracy": a, "x": b})
    assert checker.decide('seen("teacher.class_accuracy") > seen("x")') is True
    assert checker.decide('seen("teacher.class_accuracy") > seen("x") + 0.1') is None
    assert checker.decide('not seen("teacher.class_accuracy") > seen("x") + 0.1') is None
    assert checker.ps[0] < 0.05 < checker.ps[1]


def test_figures_over_the_same_seeds_are_compared_seed_by_seed(tmp_path):
    seeds, names = (0.1, 0.5, 0.2, 0.9, 0.4), ("continual.naive.forgetting", "continual.original.naive.forgetting")
    results = Results(tmp_path / "results.json")
    for name, gain in zip(names, ((0.05, 0.06, 0.05, 0.04, 0.05), (0.0,) * 5), strict=True):
        where = {"profile": "mini", "dataset": "flora", "device": "cpu", "chapter": "latent-replay"}
        results.record(name, over_seeds(np.add(seeds, gain)), **where)
    read = Results.load(results.path)
    verdict = claims.judge(BY_ID["kdc.intro.pruned-forgets"], read)
    assert verdict.outcome == "same direction" and "(paired)" in verdict.reason and verdict.p < 0.001
    alone = {name: dataclasses.replace(read[name], replicates=()) for name in names}
    assert claims.judge(BY_ID["kdc.intro.pruned-forgets"], alone).outcome == "undecided", "two independent means"
    judged = [claims.judge(BY_ID["kdc.intro.pruned-forgets"], read)]
    record.write(judged, read, tmp_path)
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "evidence.csv").open())}
    assert [float(x) for x in rows[names[1]]["replicates"].split()] == list(seeds), "and so on record"


def test_many_measured_claims_are_corrected_for_their_number():
    """One direction just clear of zero stands by itself and falls among twenty."""

    def claim(number):
        return Claim(f"x{number}", "kdc-diff", "quote", "place", "empirical", f'seen("e.{number}") > 0', needs="more")

    evidence = {f"e.{k}": result(f"e.{k}", 1.0, (0.05 if k == 0 else -0.5, 2.0)) for k in range(20)}
    verdicts = [judging.judge(claim(k), evidence) for k in range(20)]
    assert verdicts[0].outcome == SAME
    corrected = judging.corrected(verdicts)
    assert corrected[0].outcome == UNDECIDED and "among 20 measured claims" in corrected[0].reason
    assert judging.corrected(verdicts[:1])[0].outcome == SAME


def test_unasked_evidence_is_an_error_and_context_is_not():
    stray = {"student.kdc.colour": result("student.kdc.colour", 1.0)}
    with pytest.raises(UserError, match=r"student\.kdc\.colour: no claim asks for it"):
        claims.judge_all(stray)
    declared = {"stage.teacher.seconds": result("stage.teacher.seconds", 1.0, unit="s")}
    assert len(claims.judge_all(declared)) == len(claims.load())


def test_no_pattern_exempts_a_result_that_nobody_has_named():
    assert record.context()
    assert not any(set(name) & set("*?[{") for name in record.context())
    wanted = {n for c in claims.load() if c.check for n in checks.evidence_names(c.check)}
    assert record.unasked(wanted, claims.load()) == []
    assert record.unasked(["surgery.no-such-cut.class_accuracy"], claims.load()) != []


def test_what_chapters_record_under_a_fixed_name_is_asked_for_or_listed():
    """Before any run; names that a loop makes are seen by the judge when the results are there."""
    notebooks = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
    cells = [cell for path in notebooks for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    names = {name for cell in cells for name in re.findall(r'chapter\.record\("([^"]+)"', "".join(cell["source"]))}
    assert len(names) > 20
    assert record.unasked(names, claims.load()) == []


def test_a_part_that_does_nothing_decides_nothing():
    """What is said of a stage is not judged on a teacher whose prediction does not depend on that stage."""

    def verdict(alive):
        shares = {"garden.alive.mid_block": alive, "garden.surgery.original.class_accuracy": 0.95,
                  "garden.surgery.mid-removed.class_accuracy": 0.94}  # fmt: skip
        return judged("bk.t1.minor-measured", *(
            result(n, v, (v * 0.98, min(1.0, v * 1.02)), n=100) for n, v in shares.items()))  # fmt: skip

    assert verdict(0.02).outcome == SAME
    asleep = verdict(0.0002)
    assert asleep.outcome == NOT_TESTED and "these models cannot tell" in asleep.reason
    assert asleep.p is None


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
    ({"severity": "dire"}, "severity must be one of"),
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
