"""Benchmarks: the whole road at full size, gone with a pipeline of tiny widths, its table; and BK-SDM's script."""

import json
import sys

import pytest
import torch

from kdcdiff import cli

from .imports import REPO


@pytest.fixture
def full_size(monkeypatch):
    monkeypatch.syspath_prepend(REPO / "benchmarks")
    import full_size

    yield full_size
    for name in ("full_size", "distill", "bk_sdm_script"):
        sys.modules.pop(name, None)


def test_the_road_is_gone_to_its_end_at_tiny_widths(full_size, tmp_path):
    """The killed step is a process of its own, as all are there; the others are called here, which is quicker."""
    named = []
    for step, words, killed in full_size.road("tiny", tmp_path, "cpu", "no"):
        named.append(step)
        if killed:
            row = full_size.take(step, words, killed, tmp_path)
            assert row.peak_gib > 0.1 and row.core_seconds > 0 and str(tmp_path) not in row.command
            assert killed(tmp_path) and not (tmp_path / "student").exists()
        elif words[0].endswith("full_size.py"):
            full_size.build("tiny", tmp_path)
        else:
            assert cli.main(words) == 0, step
    assert (
        len(named) == 7 and json.loads((tmp_path / "cut" / "unet" / "config.json").read_text())["layers_per_block"] == 1
    )
    assert [f.suffix for f in (tmp_path / "drawn").glob("*.png")] == [".png"]


def test_a_step_that_fails_or_outgrows_its_memory_says_so(full_size, tmp_path):
    with pytest.raises(RuntimeError, match="shrink: outgrew 0 GiB"):
        full_size.take("shrink", ["shrink", "flora", "--map", "--variant", "kdc-described"], None, tmp_path, 0)
    with pytest.raises(RuntimeError, match="evaluate: ended with 2: error: "):
        full_size.take("evaluate", ["evaluate", "nowhere", "nowhere"], None, tmp_path)


def test_the_steps_of_a_gpu_are_timed(full_size):
    """On the CPU, where neither memory nor a matrix peak is known."""
    first, *lines = full_size.steps_on("cpu", "small", 2, 1, compiled=False)
    assert first == "bfloat16, batch 2, 64 pixels, on cpu"
    assert [line.split()[0] for line in lines] == ["reference", "ours,"]
    assert all("images/s, memory not measured, matrix peak not known" in line for line in lines)


def test_the_page_has_the_table_that_is_on_record(full_size):
    recorded = json.loads(full_size.RECORD.read_text())
    assert full_size.markdown(recorded) in (REPO / "book" / "scaling.md").read_text()
    assert recorded["provenance"]["commit"] and recorded["provenance"]["libraries"]["torch"]


def test_both_trainings_of_the_comparison_teach_the_student(full_size, tmp_path):
    """The reference's log has the sum and its three terms; ours has the same terms, of other batches."""
    import bk_sdm_script as whole

    for place, loop in enumerate(("BK-SDM's script", "ours, BK-SDM's loss")):
        setup = whole.prepared("small", 2, 64)
        before = setup.student.conv_in.weight.detach().clone()
        (folder := tmp_path / str(place)).mkdir()
        whole.LOOPS[loop](setup, folder)(2)
        assert not torch.equal(setup.student.conv_in.weight, before)
    rows = [[float(cell) for cell in line.split(",")] for line in (tmp_path / "0" / "log.csv").read_text().split()]
    assert [row[0] for row in rows] == [0, 1] and all(row[1] == pytest.approx(sum(row[2:])) for row in rows)
    last = json.loads((tmp_path / "1" / "steps-2" / "log.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(last["mse"] + last["output"] + last["feature"], rel=1e-4)
