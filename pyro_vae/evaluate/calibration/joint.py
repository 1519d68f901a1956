"""Tests of all latents together: distances from a random point, and a classifier that sees the data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TwoSample", "distances", "flat", "two_sample"]

FOLDS = 5
MOST_FEATURES = 50


def distances(points: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
    """Distances of points from a reference of each unit, `(*, units)`, in units of `scale`.

    Args:
        points: `(*, units, E)`.
        reference: `(units, E)`.
        scale: `(E,)`.
    """
    return ((points - reference) / scale).square().sum(-1)


@dataclass(frozen=True)
class TwoSample:
    """How well a classifier tells truth and draw of a datum apart, on data that it has not seen.

    Attributes:
        accuracy: The share of pairs that it told rightly, 0.5 for a right guide.
        accuracy_error: Its standard error.
        p_value: One-sided, of the hypothesis that it guesses.
    """

    accuracy: float
    accuracy_error: float
    p_value: float


def two_sample(truth: np.ndarray, draw: np.ndarray, data: np.ndarray, seed: int) -> TwoSample:
    """Train a classifier on (data, truth) against (data, draw) in five folds, and let it judge the pairs left out.

    Truth and draw of one datum can be exchanged if the guide is right, so the number of pairs told rightly is binomial.

    Args:
        truth, draw: `(S, E)`, the latents that the data were drawn from, and one draw from the guide for each.
        data: `(S, D)`; the classifier sees at most 50 principal components.
        seed: Of the folds and of the classifier.

    Reference: Lopez-Paz and Oquab 2017, arXiv 1610.06545; Linhart, Gramfort and Rodrigues 2023, arXiv 2306.03580, for
    the data among the features.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import KFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = np.nan_to_num(data)
    if data.shape[1] > MOST_FEATURES:
        data = PCA(MOST_FEATURES, random_state=seed).fit_transform(data)
    told: list[Any] = []
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(truth):
        features = _features([data[train], data[train]], [truth[train], draw[train]])
        labels = np.repeat([1, 0], len(train))
        net = make_pipeline(
            StandardScaler(), MLPClassifier((64, 32), alpha=1e-2, max_iter=60, early_stopping=True, random_state=seed)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it could train for longer
            net.fit(features, labels)
        scores = [net.predict_proba(_features([data[test]], [each]))[:, 1] for each in (truth[test], draw[test])]
        told.append(scores[0] > scores[1])
    right, total = int(np.concatenate(told).sum()), len(truth)
    accuracy = right / total
    return TwoSample(
        accuracy,
        float(np.sqrt(accuracy * (1 - accuracy) / total)),
        float(scipy.stats.binomtest(right, total, alternative="greater").pvalue),
    )


def _features(data: Sequence[np.ndarray], latents: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(data), np.concatenate(latents)], 1)


def flat(value: Tensor, dims: int) -> Tensor:
    """A tensor with all dimensions beyond the first `dims` flattened into one, in double precision."""
    return value.double().reshape(*value.shape[:dims], -1) if value.dim() > dims else value.double().unsqueeze(-1)
