"""The rows of the audit's tables: what is printed of BK-SDM beside what is counted, verdicts in words, tallies."""

import pytest

from kdcdiff import claims
from kdcdiff.claims import rows
from kdcdiff.claims.model import VERDICTS


@pytest.fixture(scope="module")
def verdicts():
    return [claims.judge(claim) for claim in claims.load() if claim.kind == "table-internal"]


def test_bk_sdms_counts_agree_where_they_were_not_rounded_twice():
    found = rows.bk_sdm_counts()
    assert found[0] == {"parameters": "U-Net, Table 1", "printed": "859.5M", "derived": "859.52M", "agrees": True}
    doubtful = {row["printed"]: row["derived"] for row in found if not row["agrees"]}
    assert doubtful == {"935.1M": "935.03M", "1.04B": "1.0321B", "0.76B": "0.7519B", "0.66B": "0.6549B"}


def test_a_verdict_says_its_sentence_its_place_and_why(verdicts):
    listed = rows.of_verdicts(verdicts)
    assert len(listed) == len(verdicts)
    assert all(row["sentence"] and row["why"] and row["verdict"] in VERDICTS for row in listed)
    assert {row["place"].split(", ")[0] for row in listed} == {"KDC-Diff", "BK-SDM"}


def test_a_tally_counts_every_verdict_once_and_only_those_there_are(verdicts):
    counted = rows.tally(verdicts, "paper", lambda verdict: verdict.claim.paper)
    assert [row["paper"] for row in counted] == ["kdc-diff", "bk-sdm"]
    assert sum(row["all"] for row in counted) == len(verdicts)
    for row in counted:
        outcomes = {name: count for name, count in row.items() if name in VERDICTS}
        assert sum(outcomes.values()) == row["all"]
    assert {name for row in counted for name in row} - {"paper", "all"} == {v.outcome for v in verdicts}


def test_ptflops_engines_count_the_attention_that_the_printed_figures_lack():
    found = rows.ptflops_gmac("kdc-described")
    if not found:
        pytest.skip("ptflops is not installed")
    assert found == pytest.approx({"pytorch": 287.58, "aten": 266.74}, abs=0.01)
