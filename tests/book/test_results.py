"""The results file: one owner and one value for a name, intervals where there are any, stages with their costs."""

import math
from pathlib import Path

import numpy as np
import pytest

from kdcdiff.book.results import Results
from kdcdiff.metrics.estimate import Estimate, as_estimate, over_seeds
from kdcdiff.store import Store


def where(chapter: str) -> dict:
    return {"profile": "smoke", "dataset": "flora", "seed": 0, "device": "cpu", "chapter": chapter}


def test_an_estimate_is_read_back_as_recorded(tmp_path):
    results = Results(tmp_path / "_build" / "results.json")
    results.record("teacher.class_accuracy", Estimate(np.float64(0.9), 0.8, 0.95, np.int64(40), "share"), **where("a"))
    found = Results.load(results.path)["teacher.class_accuracy"]
    assert (found.value, found.interval, found.n, found.unit) == (0.9, (0.8, 0.95), 40, "share")
    assert (found.profile, found.dataset, found.seed, found.device, found.chapter) == tuple(where("a").values())
    assert type(found.value) is float and Results.load(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "figure", [7, as_estimate(7), Estimate(7, 7, 7, n=3), over_seeds([7.0]), Estimate(7, -math.inf, 9)], ids=str
)
def test_exact_and_unknown_figures_have_no_interval(tmp_path, figure):
    results = Results(tmp_path / "r.json")
    assert results.record("a", figure, unit="things", **where("a")).interval is None
    assert (Results.load(results.path)["a"].value, Results.load(results.path)["a"].unit) == (7, "things")


def test_an_interval_that_runs_backwards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="runs backwards"):
        Results(tmp_path / "r.json").record("a", Estimate(7, 9, 5), **where("a"))


def test_a_name_has_one_owner_and_one_value(tmp_path):
    results = Results(tmp_path / "results.json")
    results.record("a.b", 1, **where("surgery"))
    results.record("a.b", 1, **where("surgery"))
    with pytest.raises(ValueError, match="twice in this chapter"):
        results.record("a.b", 2, **where("surgery"))
    with pytest.raises(ValueError, match="by chapter 'surgery' before"):
        results.record("a.b", 1, **where("metrics"))
    results.begin("surgery")
    results.record("a.b", 2, **where("surgery"))
    assert Results.load(results.path)["a.b"].value == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_a_figure_is_a_finite_number(tmp_path, value):
    with pytest.raises(ValueError, match="finite number"):
        Results(tmp_path / "r.json").record("a", value, **where("a"))


@pytest.mark.parametrize("name", ["", "a b", "a..b", ".a", "a:b"])
def test_a_name_is_dotted_words(tmp_path, name):
    with pytest.raises(ValueError, match="dotted words"):
        Results(tmp_path / "r.json").record(name, 1, **where("a"))


def write(folder: Path) -> None:
    (folder / "file").write_text("x")


def test_stage_costs_are_figures_too(tmp_path):
    results = Results(tmp_path / "r.json")
    store = Store(tmp_path / "s", on_use=lambda artifact, built: results.use(artifact, "replay"))
    one, two = (store.get("distill", write, version=n) for n in (1, 2))
    store.get("distill", write, version=1)
    found = Results.load(results.path)
    assert found["stage.distill.seconds"].value == pytest.approx(one.manifest["seconds"] + two.manifest["seconds"])
    peak = max(one.manifest["peak_bytes"], two.manifest["peak_bytes"])
    assert found["stage.distill.peak_bytes"].value == peak
    assert [row["chapters"] for row in results.stages()] == [["replay"]] * 2
    results.begin("replay")
    assert Results.load(results.path) == {}
