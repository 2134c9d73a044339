"""The ten baselines: complete, consistent with the paper's table, and with what their networks count to."""

from kdcdiff.claims import tables
from kdcdiff.errors import UserError
from kdcdiff.experiments import paper_models

# isort: split
import pytest


@pytest.mark.parametrize("dataset", ["flowers", "butterflies"])
def test_the_registry_is_the_papers_ten_rows_and_their_counts_agree(dataset):
    printed = [
        float(r["seconds"])
        for r in tables.load_tables()["kdc-diff-2"].rows
        if r["dataset"] == dataset and r["role"] == "baseline"
    ]
    rows = paper_models.table_2(dataset)
    assert sorted(r.seconds for r in rows) == sorted(printed)
    assert len(rows) == 10
    assert all(r.agrees for r in rows)
    assert {r.parameters for r in rows if r.baseline.family == "sd-1"} == {859_520_964}
    assert {r.parameters for r in rows if r.baseline.family == "sd-2"} == {865_910_724}


def test_every_baseline_says_where_it_is_and_what_it_predicts():
    for b in paper_models.BASELINES:
        assert b.prediction in ("epsilon", "v_prediction") and b.resolution in (512, 768) and b.licence
        assert b.source.count("/") == 1 or b.note, b.label
        assert (b.prediction == "v_prediction") == (b.resolution == 768)
    assert paper_models.named("stable-diffusion-v1-5").source == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert {b.family for b in paper_models.BASELINES} == {"sd-1", "sd-2"}


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match="baseline='sdxl': one of stable-diffusion-v1-4"):
        paper_models.named("sdxl")
    with pytest.raises(UserError, match="dataset='cats'"):
        paper_models.table_2("cats")
