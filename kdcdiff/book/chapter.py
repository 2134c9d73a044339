"""What a notebook opens with: its sizes, its store, and one way to report a figure.

    chapter = open_chapter("surgery", profile=profile, dataset=dataset, seed=seed, artifacts=artifacts, variant=variant)
    chapter.record("student.kdc-described.parameters", 1_234_567, unit="parameters")

Every parameter is checked before any work, and the store is the book's, from whatever folder papermill is called. Named
settings come from outside, so that the notebooks need no `if`: the variables KDCDIFF_PROFILE and KDCDIFF_ARTIFACTS,
where set, replace the parameters' values (that is how the tests run the committed notebooks at `smoke`),
KDCDIFF_RESULTS says where the results file is, and KDCDIFF_SIZES holds the sizes that `kdcdiff run -p` sets for all
chapters alike.
"""

from __future__ import annotations

import html
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcdiff.book import answer
from kdcdiff.book import notebook as notebooks
from kdcdiff.book.results import Result, Results
from kdcdiff.book.toc import here, slug
from kdcdiff.errors import check
from kdcdiff.experiments.run import Run, open_run
from kdcdiff.metrics.estimate import Estimate

GLUE_PREFIX = "application/papermill.record/"  # myst-nb's mark of a glued output that is not shown in its place
MEANING = {
    "smoke": "sizes for testing the code: the figures mean nothing",
    "mini": "a small model, few seeds and pictures: wide intervals, and magnitudes that are not the papers'",
    "full": "a small model on small pictures: directions mean something, magnitudes are not the papers'",
    "paper": "the papers' models, data and protocol",
}
AUDITS = {  # chapters that look at no small model: what they compute from, at any profile
    "architecture": "computed from the papers' words and from networks of full size: the same at every profile",
    "plausibility": "computed from the papers' own numbers: the same at every profile",
    "verdicts": "judged from the papers' own numbers, and from what the chapters before have measured",
}


@dataclass(frozen=True)
class Chapter(Run):
    """A `Run` with what a notebook needs: the chapter's name, and where its figures are recorded."""

    name: str
    results: Results
    said: dict[str, Any] = field(default_factory=dict)  # what was glued, by name

    def record(self, name: str, value: Estimate | float, *, unit: str = "") -> Result:
        """Report a figure: into the results file, where the verdicts read it, and glued as `name`."""
        where = {"chapter": self.name, "profile": self.profile.name, "dataset": self.dataset_word}
        result = self.results.record(name, value, unit=unit, seed=self.seed, device=self.device, **where)
        self.glue(name, value if isinstance(value, Estimate) else result.value)
        return result

    def glue(self, name: str, value: Any) -> None:
        """Make `value` available to the prose as {glue:text}`name`: a number, a text, or anything as it displays.

        An estimate is glued as its value, and its bounds, also equal or infinite ones, as `name.low` and `name.high`.
        """
        from IPython.core.formatters import format_display_data
        from IPython.display import display

        if isinstance(value, Estimate):
            self.glue(f"{name}.low", value.low)
            self.glue(f"{name}.high", value.high)
            value = value.value
        value = value.item() if getattr(value, "shape", None) == () else value
        self.said[name] = value
        bundle, metadata = ({"text/plain": value}, {}) if isinstance(value, str) else format_display_data(value)
        metadata = metadata | {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}}
        display({GLUE_PREFIX + kind: data for kind, data in bundle.items()}, raw=True, metadata=metadata)

    def show_answer(self) -> None:
        """Show the chapter's Answer with the values of this run; only the values where the chapter's file is not here.

        For Jupyter, which shows {glue:text} as it is written. The book hides the cell: its Answer has them in place.
        """
        from IPython.display import display

        paths = [path for path in here().root.glob("notebooks/*.ipynb") if slug(path) == self.name]
        prose = answer.answer_of(notebooks.read(paths[0])) if paths else ""
        values = "\n".join(f"- {name}: {value}" for name, value in self.said.items())
        text = "**Answer, with the values of this run.** " + (answer.filled(prose, self.said) or values)
        display({"text/markdown": text, "text/plain": text}, raw=True)

    @property
    def figures(self) -> dict[str, Result]:
        """All figures that the chapters have recorded so far, by name."""
        return Results.load(self.results.path)


def open_chapter(name: str, *, profile: str, dataset: str, seed: int, artifacts: str | Path, **own: Any) -> Chapter:
    """Check every parameter, seed the global generators, and open chapter `name`.

    `own` are the chapter's own parameters. Each is a field of `Profile` and overrides it; None keeps the profile's.
    A relative `artifacts` is relative to the book. UserError: an unknown profile, data set or parameter, a value out of
    range, a name that papermill has injected and the notebook does not have, a store that cannot be written.
    """
    _refuse_strays(name)
    sizes = json.loads(os.environ.get("KDCDIFF_SIZES") or "{}")
    sizes |= {key: value for key, value in own.items() if value is not None}
    results = Results(results_path())
    store = here().root / Path(os.environ.get("KDCDIFF_ARTIFACTS") or artifacts).expanduser()
    run = open_run(
        os.environ.get("KDCDIFF_PROFILE") or profile, dataset, seed, store,
        on_use=lambda artifact, built: results.use(artifact, name), say=_say, **sizes,
    )  # fmt: skip
    results.begin(name)
    chapter = Chapter(run.profile, run.dataset, run.seed, run.device, run.store, name, results)
    _show_badge(chapter)
    return chapter


def _refuse_strays(chapter: str) -> None:
    """Raise UserError for a name that papermill has injected and the chapter does not have."""
    from IPython import get_ipython

    shell = get_ipython()
    unknown, declared = notebooks.strays(shell.user_ns["In"] if shell else [])
    for name in unknown:
        check(False, name, shell.user_ns[name], f"no such parameter; {chapter} has {', '.join(declared)}")


def _say(line: str) -> None:
    """Print what the store says where a page does not show it."""
    print(line, file=sys.stderr, flush=True)


def results_path() -> Path:
    """KDCDIFF_RESULTS, or `_build/results.json` of the book that the working folder lies in."""
    if os.environ.get("KDCDIFF_RESULTS"):
        return Path(os.environ["KDCDIFF_RESULTS"])
    return here().results


def _show_badge(chapter: Chapter) -> None:
    """Show one line, on the page and on a terminal: at which tier, on what and where this was run."""
    from IPython import get_ipython
    from IPython.display import display

    tier = chapter.profile.name
    words = [f"profile {tier}", f"data set {chapter.dataset_word}", f"seed {chapter.seed}", f"on {chapter.device}"]
    plain = f"{chapter.name}: {', '.join(words)}"
    if get_ipython() is None:
        print(plain, flush=True)
        return
    meaning = AUDITS.get(chapter.name) or MEANING.get(tier)
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in [*words, *filter(None, [meaning])])
    kind = "audit" if chapter.name in AUDITS else tier
    line = f'<div class="kdc-badge kdc-{html.escape(kind)}">{spans}</div>'
    display({"text/html": line, "text/plain": plain}, raw=True)
