"""Weights are chosen on pictures that no reported figure uses, and both objectives have as many candidates."""

import json

import numpy as np
import pytest
import torch

from kdcdiff.experiments import stages, tuning
from kdcdiff.training.losses import BKSDMLoss, KDCLoss


def test_both_objectives_have_equally_many_candidates_and_all_keep_their_terms():
    kdc, bk = (list(tuning.CANDIDATES[name].values()) for name in ("kdc-diff", "bk-sdm"))
    assert len(kdc) == len(set(kdc)) == len(bk) == len(set(bk)) == 24
    assert KDCLoss() in kdc and BKSDMLoss() in bk, "what the book began with, and what BK-SDM prints"
    assert all(weight > 0 for loss in (*kdc, *bk) for weight in loss.weights.values())
    assert tuning.CANDIDATES["kdc-diff"]["alpha=0.5, beta=10, gamma=0.1, temperature=4"] == KDCLoss(0.5, 10, 0.1, 4)


def test_a_tenth_of_every_class_validates_and_nothing_is_in_both(opened):
    latents = stages.latents(opened())
    learnt, validation = tuning.parted(latents)
    assert len(learnt) + len(validation) == len(latents) and len(validation) == len(latents) // 10
    rows = [{tuple(row) for row in part.mean.flatten(1)[:, :8].tolist()} for part in (learnt, validation)]
    assert not rows[0] & rows[1]
    assert learnt.prompts is latents.prompts and learnt.classes == latents.classes


def test_the_closest_candidate_is_chosen_and_the_test_pictures_are_never_opened(opened, monkeypatch):
    few = {name: KDCLoss(gamma=gamma) for name, gamma in (("far", 1.0), ("near", 0.1))}
    monkeypatch.setitem(tuning.CANDIDATES, "kdc-diff", few)
    run, opens = opened(grid_steps=2), []
    latents = stages.latents
    monkeypatch.setattr(stages, "latents", lambda run, split="train": opens.append(split) or latents(run, split))
    found = tuning.searched(run, ["kdc-diff"])["kdc-diff"]
    assert opened.built["search"] == 1 and set(opens) == {"train"}
    assert set(found) == {"far", "near"} and all(np.isfinite(d) and d > 0 for d in found.values())
    search = tuning.search(run, "kdc-diff")
    assert tuning.chosen("kdc-diff", search) == few[min(found, key=found.get)]
    for nearest in few:
        (search / "distances.json").write_text(json.dumps({name: float(name != nearest) for name in few}))
        assert tuning.chosen("kdc-diff", search) == few[nearest]


@pytest.mark.parametrize("together", [1, 2])
def test_candidates_start_from_the_same_weights_and_see_the_same_batches(opened, monkeypatch, together):
    same = {"one": BKSDMLoss(), "other": BKSDMLoss()}
    monkeypatch.setitem(tuning.CANDIDATES, "bk-sdm", same)
    monkeypatch.setattr(tuning, "TOGETHER", together)  # trained beside each other, or one after the other
    found = tuning.searched(opened(grid_steps=2), ["bk-sdm"])["bk-sdm"]
    assert torch.isclose(*(torch.tensor(d) for d in found.values()))
