"""A plan makes nothing and fetches nothing, and it is the plan of what the chapters ask for."""

import json
from pathlib import Path

import pytest

from kdcdiff import cli
from kdcdiff.errors import UserError
from kdcdiff.experiments import plan, profiles
from kdcdiff.experiments.run import Run
from kdcdiff.models.pipeline import load_pipeline

REPO = Path(__file__).resolve().parents[2]
RATES = json.loads((REPO / "book" / "results" / "rates.json").read_text())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing has been downloaded, and nothing may be."""

    def refuse(*own, **named):
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("torchvision.datasets.Flowers102", refuse)
    monkeypatch.setattr(plan, "DOWNLOADS", tmp_path)


def lines_of(made):
    return {line.stage: line for line in made.lines}


def test_paper_is_planned_without_a_download(offline):
    made = plan.plan_run(profiles.get("paper"), "oxford-102", seed=0, device="cuda", rates=RATES)
    lines = lines_of(made)
    assert {"images", "latents", "classifier", "clip", "teacher", "student", "generated", "ablation"} <= lines.keys()
    assert {"class-by-class", "pairs", "class-by-class-taught", "baseline", "amputated", "latency"} <= lines.keys()
    assert made.networks.resolution == 512 and made.networks.parameters == 859_520_964
    assert lines["images"].disk == 102 * (1000 + 100) * 3 * 512**2 and lines["latents"].artifacts == 2
    students = 3 + 3 * 5  # and three kinds at each seed
    assert lines["student"].pictures == students * 50_000 * 64, "students of the profile's steps and batch"
    assert lines["student"].memory >= 16 * 420_423_044, "weights, gradients and two moments of each parameter"
    assert any(line.startswith("stable-diffusion-v1-5/stable-diffusion-v1-5: at least") for line in made.fetched)
    assert any("Oxford-102" in line for line in made.fetched)
    said = made.report()
    assert "rates: not measured on cuda for sd-1 at 512 pixels" in said and "time of drawing" in said
    assert "learning_rate" in said and "5e-5 (KDC-Diff, section 3" in said and "empirical claims" in said


def test_a_measured_rate_gives_hours_where_it_belongs(offline):
    made = plan.plan_run(profiles.get("smoke"), "flora", seed=0, device="cpu", rates=RATES)
    assert made.rate()["network"] == "flora" and not made.fetched
    assert "s a picture in float32" in made.report() and "rates: not measured" not in made.report()
    other = plan.plan_run(profiles.get("smoke", resolution=128), "flora", seed=0, device="cpu", rates=RATES)
    assert other.rate() is None, "at another size nothing was measured"
    assert lines_of(other)["images"].disk == 4 * lines_of(made)["images"].disk


def test_every_value_names_its_source():
    assert set(profiles.SOURCES) == set(profiles.allowed())


def test_a_teacher_of_which_nothing_is_known_is_one_line(offline):
    with pytest.raises(
        UserError, match="teacher='some/one': a plan needs a folder, flora, garden, or a model of the papers"
    ):
        plan.plan_run(profiles.get("paper", teacher="some/one"), "oxford-102", seed=0, device="cuda")


def test_the_command_prints_it_and_makes_nothing(offline, tmp_path, capsys):
    words = ["run", "--profile", "smoke", "--device", "cuda", "--dry-run"]
    words += ["--root", str(REPO), "--artifacts", str(tmp_path / "store"), "-p", "distill_steps", "100"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("profile smoke on flora, on cuda: nothing is made") and "distill_steps" in said
    assert not (tmp_path / "store").exists()


def test_the_shipped_stacks_own_size_is_in_no_key():
    """Stores have its stages under keys that name none; another size is in them all."""
    found = {}
    for name, sizes in (("own", {}), ("other", {"resolution": 32})):
        store = plan._Noting()
        asked = plan.asked_of(Run(profiles.get("smoke", **sizes), "flora", 0, "cpu", store), store)
        found[name] = asked
    images = [one.settings for one in found["own"].values() if one.stage == "images"]
    assert [set(settings) for settings in images] == [{"split", "classes", "count"}] * 2
    assert all(one.settings["size"] == 32 for one in found["other"].values() if one.stage == "images")
    shared = {found["own"][key].stage for key in found["own"].keys() & found["other"].keys()}
    assert shared == {"latency"}, "what times networks of the papers' size sees no picture"


def test_counts_are_the_shipped_pipelines_own():
    net, pipeline = plan.networks_of(profiles.get("mini"), "flora"), load_pipeline()
    parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    assert net.whole == sum(p.numel() for part in parts for p in part.parameters()) and net.latent == 8 * 8 * 8
