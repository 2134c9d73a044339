"""What became of old classes: average accuracy, forgetting and transfer, from a matrix of scores."""

from __future__ import annotations

import numpy as np

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
