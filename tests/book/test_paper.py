"""The profile `paper`, chapter by chapter, with all that it needs but size: nothing else of it is left out.

The teacher is a pipeline of Stable Diffusion 1.5's shape (four stages, 8x down-sampling, PNDM, epsilon) with tiny
widths at 128 pixels, the data set an image folder, and the papers' ten models come from the hub's cache: the teacher
under their names. Steps and pictures are those of `smoke`. Slow: every chapter starts a kernel.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import papermill
import pytest
from PIL import Image
from safetensors import safe_open

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.toc import Book
from kdcdiff.data import flora
from kdcdiff.experiments.paper_models import BASELINES
from kdcdiff.experiments.profiles import PROFILES

from ..conftest import REPO

PIXELS, COMMIT = 128, "a" * 40
CHAPTERS = Book(REPO).chapters()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `pictures`, `teacher`, the hub's `cache` and a Jupyter kernel of this interpreter."""
    root = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "benchmarks")
        import full_size

        patch.setitem(full_size.SIZES["tiny"], "pixels", PIXELS)
        full_size.build("tiny", root)
    for split, count, first in (("train", 9, 0), ("test", 4, 100)):
        for name in flora.BASE[:5]:
            (root / "photographs" / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(flora.draw(name, first + i, size=96).image)
                picture.save(root / "photographs" / split / name / f"{i}.png")
    for hub in {baseline.source for baseline in BASELINES} - {""}:
        cache = root / "cache" / f"models--{hub.replace('/', '--')}"
        for folder in ("refs", "snapshots"):
            (cache / folder).mkdir(parents=True)
        (cache / "refs" / "main").write_text(COMMIT)
        (cache / "snapshots" / COMMIT).symlink_to(root / "teacher")
    kernel = root / "jupyter" / "kernels" / "kdcdiff" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    kernel.write_text(json.dumps({"argv": argv, "language": "python", "display_name": "kdcdiff"}))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_a_chapter_runs_at_paper(chapter, place, monkeypatch):
    sizes = dataclasses.asdict(PROFILES["smoke"]) | {"teacher": str(place / "teacher"), "style_steps": 0}
    sizes = {name: value for name, value in sizes.items() if name != "name" and value is not None}
    settings = {
        "KDCDIFF_PROFILE": "paper", "KDCDIFF_SIZES": json.dumps(sizes), "KDCDIFF_RESULTS": str(place / "results.json"),
        "JUPYTER_PATH": str(place / "jupyter"), "PYTHONPATH": str(REPO), "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1",
        "HF_HUB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    source, copy = REPO / chapter.path, place / "executed" / chapter.path.name
    copy.parent.mkdir(exist_ok=True)
    known = notebooks.parameters(notebooks.read(source), chapter.name)
    given = {
        "profile": "paper",
        "dataset": str(place / "photographs"),
        "artifacts": str(place / "artifacts"),
        "seed": 0,
    }
    own = {name: value for name, value in given.items() if name in known}
    papermill.execute_notebook(
        source, copy, parameters=own, kernel_name="kdcdiff", language="python", cwd=source.parent, progress_bar=False,
        execution_timeout=1200,
    )  # fmt: skip
    assert notebooks.flaws(notebooks.read(copy)) == []
    for pictures in (place / "artifacts").glob("images-*/pictures.safetensors"):
        with safe_open(pictures, "pt") as held:
            assert held.get_slice("images").get_shape()[2:] == [PIXELS, PIXELS], "the teacher's own size"
