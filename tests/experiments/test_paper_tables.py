"""The papers' tables in small: which rows there are, that styles change the look and no more, what a row's model is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.functional import to_pil_image

from kdcdiff.claims import tables
from kdcdiff.data import flora, sources, styles
from kdcdiff.errors import UserError
from kdcdiff.experiments import paper_figures, paper_models, paper_tables, stages
from kdcdiff.metrics.estimate import Estimate, as_estimate
from kdcdiff.models.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pictures():
    return sources.load_flora("train", flora.BASE[:4], 2, 0)


@pytest.mark.parametrize("role", styles.STYLES)
def test_a_style_keeps_what_is_drawn_and_its_words(role, pictures):
    redrawn = styles.styled(pictures, role)
    assert redrawn.images.shape == pictures.images.shape and redrawn.images.dtype == torch.uint8
    assert redrawn.captions == pictures.captions and torch.equal(redrawn.labels, pictures.labels)
    same = torch.equal(redrawn.images, pictures.images)
    assert same == (role == "realistic-vision-v51"), "only the photograph is left as it is"
    grey = [set_.images.float().mean(1).flatten(1).numpy() for set_ in (redrawn, pictures)]
    likeness = np.corrcoef(*grey)[: len(pictures), len(pictures) :]
    others = likeness[~np.eye(len(pictures), dtype=bool)]
    assert likeness.diagonal().mean() > others.mean() + 0.3, "the subject is where it was"


def test_an_unknown_role_is_named(pictures):
    with pytest.raises(UserError, match="role='manga'.*realistic-vision-v51, anything-v5, anything-midjourney"):
        styles.styled(pictures, "manga")


def test_the_rows_are_the_papers_and_every_pair(opened):
    lines = {row.name: row for row in paper_tables.rows(opened())}
    pairs = {(row.teacher, row.student) for row in lines.values() if row.kind == "pair"}
    assert {(a, b) for a in styles.STYLES for b in styles.STYLES} <= pairs and len(pairs) == 10
    assert [n for n, row in lines.items() if row.kind in ("variant", "proposed")] == [
        "kdc-diff-x", "kdc-diff-cl", "kdc-diff-y", "kdc-diff",
    ]  # fmt: skip
    assert lines["kdc-diff"].teacher == lines["kdc-diff-cl"].teacher == "realistic-vision-v51"
    for name, row in lines.items():
        for subject, printed in row.printed.items():
            for metric, column in (("FID", "fid"), ("KID", "kid"), ("CLIP", "clip"), ("perceptual", "lpips")):
                assert printed[metric] == tables.cell(f"kdc-diff-1/{subject}/{name}/{column}").value
    unprinted = {name for name, row in lines.items() if "flowers" not in row.printed and row.kind != "student"}
    assert unprinted == {"realistic>realistic", "anything-v5>realistic", "anything-v5>anything-v5",
                         "anything-v5>midjourney"}  # fmt: skip
    assert {name for name, row in lines.items() if "butterflies" in row.printed} == {
        "sd-1-5", *styles.STYLES, "kdc-diff",
    }  # fmt: skip
    assert [n for n, row in lines.items() if row.kind == "student"] == stages.students(opened())


def test_each_of_the_papers_data_sets_has_its_classes(opened, tmp_path, pictures):
    found = paper_tables.subjects(opened())
    assert sorted(found["flowers"] + found["butterflies"]) == sorted(flora.BASE)
    assert "sunflower" in found["flowers"] and "monarch" in found["butterflies"]
    for split in ("train", "test"):
        for name in "abcd":
            folder = tmp_path / "own" / split / name
            folder.mkdir(parents=True)
            for k in range(8):
                to_pil_image(pictures.images[k]).save(folder / f"{k}.png")
    own = str(tmp_path / "own")
    assert paper_tables.subjects(opened(dataset=own, classes=4)) == {"flowers": list("abc")}
    assert list(paper_tables.subjects(opened(dataset=own, classes=4, table_subject="butterflies"))) == ["butterflies"]
    with pytest.raises(UserError, match="table_subject='moths'.*flowers, butterflies"):
        opened(dataset=own, table_subject="moths")


def test_at_paper_scale_every_baseline_that_can_be_had_has_its_row(opened):
    names = {row.name for row in paper_tables.rows(opened(style_steps=0)) if row.kind == "baseline"}
    assert len(names) == 9 and "hassaku-v13" not in names and "sd-2" in names


def test_models_of_others_take_the_roles_where_there_are_no_stand_ins(opened, tmp_path, monkeypatch):
    found = {"stable-diffusion-v1-5": 0.0, "realistic-vision-v51": 0.02, "anything-v5": 0.04}
    for label, noise in found.items():
        pipeline = load_pipeline()
        torch.manual_seed(0)
        for weight in pipeline.unet.parameters():
            weight.data += noise * torch.randn_like(weight)
        pipeline.save_pretrained(tmp_path / label, safe_serialization=True)
    named = paper_models.named
    monkeypatch.setattr(
        paper_models, "named", lambda label: replace(named(label), hub=str(tmp_path / label) * (label in found), now="")
    )
    run = opened(style_steps=0)
    lines = {row.name: row for row in paper_tables.rows(run)}
    assert [n for n, row in lines.items() if row.kind == "baseline"] == [
        "sd-1-5",
        "anything-v5",
        "realistic-vision-v51",
    ]
    assert "kdc-diff-y" in lines and "kdc-diff-x" not in lines, "its teacher cannot be had"
    names = ["sd-1-5", "realistic-vision-v51", "realistic>sd-1-5", "kdc-diff"]
    made = {name: paper_tables.drawn(run, lines[name], 0) for name in names}
    assert "stand-in" not in opened.built, "nothing is fine-tuned"
    for a, b in zip(names, names[1:], strict=False):
        assert not torch.equal(made[a].images, made[b].images)


def test_every_kind_of_row_is_trained_drawn_and_kept(opened):
    run = opened()
    lines = {row.name: row for row in paper_tables.rows(run)}
    names = ["realistic-vision-v51", "realistic>anything-v5", "kdc-diff", "kdc-diff-cl", "bk-sdm-base"]
    first = {name: paper_tables.drawn(run, lines[name], 0) for name in names}
    count = run.profile.table_images * len(run.source.base)
    assert all(len(images) == count for images in first.values())
    built = dict(opened.built)
    again = {name: paper_tables.drawn(run, lines[name], 0) for name in [*names, "realistic>midjourney"]}
    assert dict(opened.built) == built, "made once; the pairs of one teacher come together"
    assert all(torch.equal(first[name].images, again[name].images) for name in names)
    assert not torch.equal(first["kdc-diff"].images, first["kdc-diff-cl"].images), "the memory changes the model"
    measured = paper_tables.measure(run, [lines["realistic-vision-v51"]])
    assert list(measured) == ["flowers", "butterflies"]
    for figures in (table["realistic-vision-v51"] for table in measured.values()):
        assert set(figures) == set(paper_tables.METRICS) and all(
            e.n == run.profile.table_seeds for e in figures.values()
        )
    assert measured["flowers"] != measured["butterflies"], "each on its own pictures"


def test_agreement_is_spearmans_over_the_printed_rows_alone():
    def row(name, printed):
        return paper_tables.Row(name, "baseline", "", "", {"flowers": {"FID": printed}} if printed else {})

    def figure(value):
        return {"FID": Estimate(value, value, value, 3, "")}

    printed, ours = [3.0, 1.0, 2.0, 5.0, 4.0], [30.0, 12.0, 11.0, 44.0, 50.0]
    lines = [row(str(k), p) for k, p in enumerate(printed)] + [row("unprinted", None)]
    figures = {"flowers": {str(k): figure(v) for k, v in enumerate(ours)} | {"unprinted": figure(0.0)}}
    found = paper_tables.agreement(lines, figures, "flowers", "FID")
    assert found.value == pytest.approx(stats.spearmanr(printed, ours).statistic) and found.n == 5
    assert found.low < found.value < found.high <= 1


def test_the_best_row_is_one_of_the_paper_s_table_and_ties_are_named():
    printed = {"flowers": {"FID": 1.0}}
    lines = [
        paper_tables.Row("a", "baseline", "a", "", printed),
        paper_tables.Row("b", "baseline", "b", "", printed),
        paper_tables.Row("b>a", "pair", "a", "b"),
    ]
    values = {"a": 3.0, "b": 3.0, "b>a": 2.0}
    figures = {own: {name: {"FID": as_estimate(x)} for name, x in values.items()} for own in ("flowers", "butterflies")}
    assert paper_figures.best(lines, figures, "flowers", "FID") == "a, b"
    assert paper_figures.best(lines, figures, "flowers", "FID", ["baseline", "pair"]) == "b>a"
    assert paper_figures.best(lines, figures, "butterflies", "FID") == "", "whose rows the paper does not print"
