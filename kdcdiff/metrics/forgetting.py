"""What became of old classes: average accuracy, forgetting and transfer, from a matrix of scores, and its record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcdiff.store import write_atomically

# R is (stages, classes) with R[i, j] the score on class j after stage i; higher is better; only j <= i is read, and by
# forward transfer j = i + 1.


def average_accuracy(R: np.ndarray) -> float:
    """Return ACC, the mean over all classes of the score after the last stage (Lopez-Paz & Ranzato 2017)."""
    return float(np.mean(R[-1]))


def backward_transfer(R: np.ndarray) -> float:
    """Return BWT, the mean over j < T of R[T, j] - R[j, j]; below 0 where old classes lost (Lopez-Paz & Ranzato)."""
    last = len(R) - 1
    return float(np.mean([R[last, j] - R[j, j] for j in range(last)]))


def forgetting(R: np.ndarray) -> float:
    """Return the mean over j < T of max over i < T of R[i, j], minus R[T, j] (Chaudhry et al. 2018)."""
    last = len(R) - 1
    return float(np.mean([np.max(R[j:last, j]) - R[last, j] for j in range(last)]))


def forward_transfer(R: np.ndarray, baseline: np.ndarray) -> float:
    """Return FWT, the mean over j > 1 of R[j-1, j] - baseline[j] (Lopez-Paz & Ranzato 2017).

    It lays the score on a class before its turn beside that of the model that has seen none of them, `baseline`
    (classes,), where they take a random one's.
    """
    return float(np.mean([R[j - 1, j] - baseline[j] for j in range(1, len(R))]))


def average_incremental(R: np.ndarray) -> float:
    """Return the mean over stages of the mean score on all that has been learnt by then (AIQ, Zhang et al. 2024)."""
    return float(np.mean([np.mean(R[i, : i + 1]) for i in range(len(R))]))


@dataclass(frozen=True)
class Record:
    """A matrix of scores that grows in a folder as classes are learnt, a file for each stage and a table of all.

    Its first row, stage -1, is that of the network as it was. `base` are the classes that it knew then.
    """

    folder: Path
    base: tuple[str, ...]
    order: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base + self.order

    def _file(self, stage: int) -> Path:
        return self.folder / (f"stage-{stage:02d}.json" if stage >= 0 else "before.json")

    def has(self, stage: int) -> bool:
        """Say whether a stage has been scored."""
        return self._file(stage).is_file()

    def add(self, stage: int, scores: Mapping[str, float]) -> None:
        """Keep the `scores` of classes after `stage`, and write the table anew."""
        write_atomically(self._file(stage), json.dumps(dict(scores), indent=1))
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["after", *self.classes])
        names = ("before", *self.order)
        for name, row in zip(names, self.matrix, strict=False):
            rows.writerow([name, *("" if np.isnan(value) else f"{value:.4f}" for value in row)])
        write_atomically(self.folder / "matrix.csv", table.getvalue())

    @property
    def matrix(self) -> np.ndarray:
        """The scores so far, (1 + stages, classes); NaN where a class was not scored."""
        found = []
        for stage in range(-1, len(self.order)):
            if not self.has(stage):
                break
            scores = json.loads(self._file(stage).read_text())
            found.append([scores.get(name, np.nan) for name in self.classes])
        return np.array(found, dtype=np.float64).reshape(len(found), len(self.classes))

    def summary(self) -> dict[str, float]:
        """Say what became of the classes: the new ones' mean, the base ones' before and now, and the mean loss.

        Forgetting is each class's best earlier score less its last, over all classes but those of the last stage.
        """
        matrix, known = self.matrix, len(self.base)
        last, best = matrix[-1], [np.nanmax(column) if len(column) else np.nan for column in self._earlier(matrix)]
        figures = {"average accuracy of the new classes": float(np.nanmean(last[known:]))}
        if known:
            figures["base classes, before"] = float(np.mean(matrix[0, :known]))
            figures["base classes, now"] = float(np.mean(last[:known]))
        lost = np.array(best) - last
        if np.isfinite(lost).any():
            figures["forgetting"] = float(np.nanmean(lost))
        return figures

    @staticmethod
    def _earlier(matrix: np.ndarray) -> list[np.ndarray]:
        """Take each class's scores before the last row, those that there are."""
        return [column[np.isfinite(column)] for column in matrix[:-1].T]
