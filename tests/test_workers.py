"""Stages made side by side are the stages that one process makes; whatever goes wrong in one is told."""

import dataclasses
import os

import pytest
import torch

from kdcdiff import stages, workers
from kdcdiff.errors import UserError
from kdcdiff.results import Results
from kdcdiff.store import Store


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    yield
    torch.set_num_threads(threads)


def test_what_is_made_ahead_is_found_and_is_the_same(opened, two_cores, tmp_path):
    book = opened(continual_classes=2, continual_steps=2)
    stages.student(book, book.profile.variant)
    calls = [(("naive",), {"run": k}) for k in range(2)]
    workers.make_ahead(stages.class_by_class, book, calls)
    made = [row for row in Results(book.results.path).stages() if row["stage"] == "class-by-class"]
    assert len(made) == 2 and all(row["built_in"] == book.name for row in made), "the cost table knows of them"
    before = dict(opened.built)
    ahead = [stages.class_by_class(book, "naive", run=k) for k in range(2)]
    assert dict(opened.built) == before, "nothing is made again"
    alone = stages.class_by_class(dataclasses.replace(book, store=Store(tmp_path / "other")), "naive")
    assert torch.equal(ahead[0].images, alone.images), "wherever it is made"


def test_the_first_error_ends_the_call_with_its_line(opened, two_cores):
    book = opened()
    stages.student(book, book.profile.variant)
    with pytest.raises(UserError, match="method='(dragon|wyvern)'"):
        workers.make_ahead(stages.class_by_class, book, [(("dragon",), {}), (("wyvern",), {"run": 1})])


def test_on_a_gpu_nothing_is_made_ahead(opened, two_cores):
    book = opened()
    workers.make_ahead(stages.pictures, dataclasses.replace(book, device="cuda"), [(("train",), {}), (("test",), {})])
    assert not book.store.costs()
