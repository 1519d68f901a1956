"""Latents that are classes: their probabilities under a guide, and whether these are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import one_hot

from pyro_vae.evaluate.calibration.units import Units
from pyro_vae.pair.tracing import Site

__all__ = ["Reliability", "class_probabilities", "has_classes", "indicators", "reliability"]

BINS = 10
BOOTSTRAP = 200
MOST_NULL, LEAST_NULL, NULL_WORK = 1999, 199, 10**8  # errors of a right guide, so many that all have this many numbers


@dataclass(frozen=True)
class Reliability:
    """Whether the probabilities of a discrete site hold, in bins of as many predictions each.

    Attributes:
        site: The site. The probabilities of its elements and of all classes are taken together.
        ece: Expected calibration error: the mean over the predictions of `|frequency - mean probability|` of the
            bin. It is above zero for a right guide, too.
        ece_error: Its standard error, by resampling the simulated data.
        ece_of_right: What a right guide would have, on average, with draws of the guide instead of the truth.
        p_value: The share of these errors that are as great.
        predicted, observed, count: Mean probability, frequency, and number of predictions, by bin.
        verdict: "fine" unless the p-value, adjusted for all tests, is small; else "too sure", "not sure enough",
            "biased up" or "biased down", or "wrong probabilities".
    """

    site: str
    ece: float
    ece_error: float
    ece_of_right: float
    p_value: float
    predicted: list[float]
    observed: list[float]
    count: list[int]
    verdict: str = ""


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not isinstance(fn, td.TransformedDistribution):
        fn = fn.base_dist
    return fn


def has_classes(fn: Any) -> bool:
    """Whether a distribution is over classes: Bernoulli, categorical or one-hot."""
    base = _base(fn)
    return bool(getattr(base.support, "is_discrete", False) or isinstance(base, td.OneHotCategorical)) and isinstance(
        base, td.Bernoulli | td.Categorical | td.OneHotCategorical
    )


def class_probabilities(site: Site, units: Units) -> Tensor:
    """The probabilities of the classes under a guide, given what it drew before.

    Returns:
        `(K, units, *rest)` of the value 1 of Bernoulli and one-hot sites, `(K, units, *rest, C)` of categorical ones.
    """
    probabilities, shape = _base(site["fn"]).probs, site["value"].shape
    if not isinstance(_base(site["fn"]), td.Categorical):
        return units.values(probabilities.expand(shape), site)
    return torch.stack([units.values(p.expand(shape), site) for p in probabilities.unbind(-1)], -1)


def indicators(values: Tensor, like: Tensor) -> Tensor:
    """Values of a site in the form of their probabilities: those of a categorical site one-hot."""
    return (values if like.dim() == values.dim() else one_hot(values.long(), like.shape[-1])).double()


def reliability(site: str, probabilities: np.ndarray, truth: np.ndarray, draws: np.ndarray, seed: int) -> Reliability:
    """Compare probabilities with the truth.

    Args:
        site: The name.
        probabilities: `(S, E)`, of E elements and classes; NaN where one does not count.
        truth: `(S, E)`, 0 or 1.
        draws: `(L, S, E)`, draws from the guide.
        seed: For the errors of a right guide, and the standard error.
    """
    bins = _bins(probabilities)
    found = _error(probabilities, truth, bins)
    rng = np.random.default_rng(seed)
    rows, count = np.arange(len(truth)), min(MOST_NULL, max(LEAST_NULL, NULL_WORK // truth.size))
    # any draw of each datum could be its truth, and data are independent
    chosen = (draws[rng.integers(0, len(draws), len(truth)), rows] for _ in range(count))
    right = np.array([_error(probabilities, each, bins) for each in chosen])
    again = []
    for _ in range(BOOTSTRAP):
        rows = rng.integers(0, len(truth), len(truth))
        again.append(_error(probabilities[rows], truth[rows], bins[rows]))
    places = [bins == b for b in np.unique(bins[bins >= 0])]
    return Reliability(
        site,
        found,
        float(np.std(again)),
        float(right.mean()),
        float((1 + (right >= found - 1e-12).sum()) / (1 + len(right))),
        [float(probabilities[place].mean()) for place in places],
        [float(truth[place].mean()) for place in places],
        [int(place.sum()) for place in places],
        _direction(probabilities, truth),
    )


def _bins(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each prediction, -1 where there is none."""
    probabilities = probabilities.round(6)  # equal up to rounding is one bin
    known = ~np.isnan(probabilities)
    edges = np.unique(np.quantile(probabilities[known], np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.where(known, np.searchsorted(edges, probabilities, side="right"), -1)


def _error(probabilities: np.ndarray, truth: np.ndarray, bins: np.ndarray) -> float:
    known = bins >= 0
    miss = np.bincount(bins[known], (truth - probabilities)[known])
    return float(np.abs(miss).sum() / max(known.sum(), 1))


def _direction(probabilities: np.ndarray, truth: np.ndarray) -> str:
    """In what way probabilities are wrong, if they are."""
    known = ~np.isnan(probabilities)
    p, miss = probabilities[known], (truth - probabilities)[known]
    if not len(p):
        return ""
    away = p - p.mean()
    z_slope = (away * miss).sum() / np.sqrt(max((away**2 * p * (1 - p)).sum(), 1e-12))
    z_mean = miss.sum() / np.sqrt(max((p * (1 - p)).sum(), 1e-12))
    if max(abs(z_slope), abs(z_mean)) < 2:
        return "wrong probabilities"
    if abs(z_mean) > abs(z_slope):
        return "biased down" if z_mean > 0 else "biased up"
    return "not sure enough" if z_slope > 0 else "too sure"
