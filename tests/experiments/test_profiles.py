"""Profiles, and how a chapter opens: everything is checked before any work."""

from __future__ import annotations

import dataclasses

import pytest

from kdcdiff.book.chapter import open_chapter
from kdcdiff.book.results import Results
from kdcdiff.data.names import checked_dataset
from kdcdiff.errors import UserError
from kdcdiff.experiments import profiles
from kdcdiff.metrics.estimate import Estimate


def test_profiles_differ_only_in_sizes():
    assert set(profiles.PROFILES) == {"smoke", "mini", "full", "paper"}
    for name, profile in profiles.PROFILES.items():
        assert profile.name == name
        for field in profiles.allowed():  # the values that ship pass their own checks
            value = getattr(profile, field)
            assert value is None or profiles.checked(field, value) == value


def test_a_profile_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles.get("mini").alpha = 2.0


def test_overrides_are_typed_and_none_keeps_the_profiles_value():
    sizes = profiles.get("smoke", temperature=2, distill_steps=7, beta=None)
    assert (sizes.temperature, sizes.distill_steps, sizes.beta) == (2.0, 7, profiles.PROFILES["smoke"].beta)
    assert type(sizes.temperature) is float


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"alhpa": 1.0}, "alhpa=1.0: no such parameter; .*alpha"),
        ({"name": "mine"}, "no such parameter"),
        ({"alpha": -1.0}, "alpha=-1.0: must be a number, at least 0"),
        ({"alpha": float("nan")}, "alpha=nan: must be a number"),
        ({"alpha": "much"}, "alpha='much'"),
        ({"distill_steps": 1.5}, "distill_steps=1.5: must be a whole number, at least 1"),
        ({"distill_steps": True}, "distill_steps=True"),
        ({"distill_steps": 0}, "at least 1"),
        ({"sampler_steps": 1001}, "at least 1, at most 1000"),
        ({"variant": ""}, "variant=''"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_is_allowed(overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        profiles.get("mini", **overrides)
    assert "\n" not in str(caught.value)


GOOD = {"name": "03-x", "profile": "smoke", "dataset": "flora", "seed": 3}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"profile": "huge"}, "profile='huge': must be one of smoke, mini, full, paper"),
        (
            {"dataset": "flowers"},
            "dataset='flowers': must be flora, garden, oxford-102, or the path of an existing image folder",
        ),
        ({"dataset": ""}, "dataset=''"),
        ({"seed": -1}, "seed=-1: must be a whole number"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": True}, "seed=True"),
        ({"tempreature": 3.0}, "tempreature=3.0: no such parameter"),
        ({"temperature": 0.0}, "temperature=0.0: must be a number, at least 0.01"),
    ],
)
def test_a_wrong_parameter_stops_before_any_work(tmp_path, monkeypatch, wrong, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        open_chapter(**(GOOD | {"artifacts": tmp_path / "store"} | wrong))
    assert list(tmp_path.iterdir()) == []


def test_an_open_chapter_records_and_says_its_tier(tmp_path, monkeypatch, capsys):
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    opened = open_chapter(**GOOD, artifacts="store", temperature=2)
    assert opened.store.root == tmp_path / "store", "relative to the book"
    assert "profile smoke, data set flora, seed 3, on" in capsys.readouterr().out
    assert opened.profile.temperature == 2.0
    opened.record("a.b", Estimate(0.5, 0.4, 0.6, 9), unit="dB")
    found = Results.load(tmp_path / "_build" / "results.json")["a.b"]
    assert (found.profile, found.dataset, found.seed, found.unit, found.n) == ("smoke", "flora", 3, "dB", 9)
    assert opened.figures["a.b"] == found


def test_an_image_folder_is_a_data_set(tmp_path):
    folder = tmp_path / "moths"
    folder.mkdir()
    with pytest.raises(UserError, match="the folder is empty"):
        checked_dataset(str(folder))
    (folder / "atlas").mkdir()
    assert checked_dataset(str(folder)) == str(folder)


def test_settings_from_outside_replace_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCDIFF_PROFILE", "smoke")
    monkeypatch.setenv("KDCDIFF_ARTIFACTS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("KDCDIFF_RESULTS", str(tmp_path / "r.json"))
    opened = open_chapter(**(GOOD | {"profile": "mini"}), artifacts=tmp_path / "store")
    opened.record("a", 1)
    assert opened.profile.name == "smoke" and opened.store.root == tmp_path / "elsewhere"
    assert (tmp_path / "r.json").exists() and not (tmp_path / "store").exists()
