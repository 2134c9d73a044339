"""What a notebook opens with: its profile, its store, and one way to report a figure.

    chapter = kdcdiff.chapter.open("03-surgery", profile=profile, dataset=dataset, seed=seed,
                                   artifacts=artifacts, variant=variant)
    chapter.record("student.kdc.parameters", 1_234_567, unit="parameters")

Every parameter is checked before any work. Named settings come from outside, so that the notebooks need no
`if`: the variables KDCDIFF_PROFILE and KDCDIFF_ARTIFACTS, where set, replace the parameters' values (that is
how the tests run the committed notebooks at `smoke`), KDCDIFF_RESULTS says where the results file is, and KDCDIFF_SIZES
holds the sizes that `kdcdiff run -p` sets for all chapters alike.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcdiff.book.results import Result, Results
from kdcdiff.experiments import profiles
from kdcdiff.experiments.profiles import Profile
from kdcdiff.experiments.run import DATASETS, _seeded, checked_dataset, checked_seed
from kdcdiff.metrics.estimate import Estimate
from kdcdiff.process import keep_memory
from kdcdiff.store import Store

GLUE_PREFIX = "application/papermill.record/"  # myst-nb's mark of a glued output that is not shown in its place
MEANING = {
    "smoke": "sizes for testing the code: the figures mean nothing",
    "mini": "a small model on small pictures: directions mean something, magnitudes are not the papers'",
    "paper": "the papers' models, data and protocol",
}


@dataclass(frozen=True)
class Chapter:
    """An open chapter. `profile` holds its sizes and its own parameters; `store` its stages."""

    name: str
    profile: Profile
    dataset: str  # "flora", "oxford-102", or the absolute path of an image folder
    seed: int
    device: str  # "cuda" or "cpu"
    store: Store
    results: Results
    own: dict[str, Any] = field(default_factory=dict)  # the chapter's own parameters, as checked

    def record(self, name: str, value: Estimate | float, *, unit: str = "") -> Result:
        """Report a figure: into the results file, and glued as `name` (its interval as `name.low`, `name.high`)."""
        where = {"chapter": self.name, "profile": self.profile.name, "dataset": self._dataset_word}
        result = self.results.record(name, value, unit=unit, seed=self.seed, device=self.device, **where)
        self.glue(name, result.value)
        for end, bound in zip(("low", "high"), result.interval or (), strict=False):
            self.glue(f"{name}.{end}", bound)
        return result

    def glue(self, name: str, value: Any) -> None:
        """Make `value` available to the prose as {glue:text}`name`; numbers as Python's, anything else as it
        displays.
        """
        from IPython.core.formatters import format_display_data
        from IPython.display import display

        value = value.item() if getattr(value, "shape", None) == () else value
        if isinstance(value, str):
            bundle, metadata = {"text/plain": value}, {}
        else:
            bundle, metadata = format_display_data(value)
        metadata = metadata | {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}}
        display({GLUE_PREFIX + kind: data for kind, data in bundle.items()}, raw=True, metadata=metadata)

    @property
    def figures(self) -> dict[str, Result]:
        """All figures that the chapters have recorded so far, by name."""
        return Results.load(self.results.path)

    @property
    def _dataset_word(self) -> str:
        return self.dataset if self.dataset in DATASETS else Path(self.dataset).name


def open_chapter(  # noqa: A001 - reads as `chapter.open`
    name: str, *, profile: str, dataset: str, seed: int, artifacts: str | Path, **own: Any
) -> Chapter:
    """Check every parameter, seed the global generators, and open chapter `name`.

    `own` are the chapter's own parameters. Each is a field of `Profile` and overrides it; None keeps the
    profile's. UserError: an unknown profile, data set or parameter, a value out of range, a store that cannot
    be written.
    """
    profile = os.environ.get("KDCDIFF_PROFILE") or profile
    artifacts = os.environ.get("KDCDIFF_ARTIFACTS") or artifacts
    of_run = json.loads(os.environ.get("KDCDIFF_SIZES") or "{}")
    sizes = profiles.get(profile, **of_run | {key: value for key, value in own.items() if value is not None})
    dataset = checked_dataset(dataset)
    checked_seed(seed)
    results = Results(results_path())
    store = Store(artifacts, on_use=lambda artifact, built: results.use(artifact, name), say=_say)
    keep_memory()
    device = _seeded(seed)
    results.begin(name)
    chapter = Chapter(name, sizes, dataset, seed, device, store, results, {key: getattr(sizes, key) for key in own})
    _show_badge(chapter)
    return chapter


def _say(line: str) -> None:
    """Print what the store says where a page does not show it."""
    print(line, file=sys.stderr, flush=True)


def results_path() -> Path:
    """KDCDIFF_RESULTS, or `_build/results.json` of the book that the working folder lies in."""
    if os.environ.get("KDCDIFF_RESULTS"):
        return Path(os.environ["KDCDIFF_RESULTS"])
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "_toc.yml").exists()), here)
    return root / "_build" / "results.json"


def _show_badge(chapter: Chapter) -> None:
    """One line, on the page and on a terminal: at which tier, on what and where this was run."""
    from IPython import get_ipython
    from IPython.display import HTML, display

    words: tuple[str, ...] = (
        f"profile {chapter.profile.name}",
        f"data set {chapter._dataset_word}",
        f"seed {chapter.seed}",
        f"on {chapter.device}",
    )
    if get_ipython() is None:
        print(f"{chapter.name}: {', '.join(words)}", flush=True)
        return
    with contextlib.suppress(KeyError):
        words = (*words, MEANING[chapter.profile.name])
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in words)
    line = f'<div class="kdc-badge kdc-{html.escape(chapter.profile.name)}">{spans}</div>'
    plain = f"{chapter.name}: {', '.join(words[:4])}"
    display({"text/html": HTML(line).data, "text/plain": plain}, raw=True)
