"""Posterior predictive checks: are the given data as those that the pair generates from its posteriors of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.calibration.ranking import LIKELIHOOD
from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import Site, log_prob, sample_sites, trace_pair

__all__ = ["Statistic", "predictive_checks"]

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """A statistic of the data, its mean over replications, the two-sided p-value, and the number of replications."""

    data: float
    replications: float
    p_value: float
    num: int


DEFAULTS: dict[str, Statistic] = {
    "mean": lambda x: x.mean(),
    "standard deviation": lambda x: x.std(),
    "least": lambda x: x.min(),
    "greatest": lambda x: x.max(),
    "zeros": lambda x: (x == 0).double().mean(),
}


def predictive_checks(
    model: Program,
    guide: Program,
    data: Data,
    num_samples: int,
    statistics: Mapping[str, Statistic],
    alpha: float,
    likelihood: bool = True,
) -> dict[str, Check]:
    r"""Statistics of the data beside those of replications.

    .. math:: z \sim q(z|x), \quad x^{rep} \sim p(x|z), \quad p = P(T(x^{rep}, z) > T(x, z)) + \tfrac12 P(=)

    Args:
        model, guide: The pair.
        data: Its arguments, of the given data.
        num_samples: Replications, at least; there are so many that after adjustment p-values can be below `alpha`.
        statistics: Further functions of the values of an observed site, which return one number.
        alpha: The probability of a false alarm.
        likelihood: Whether log p(x|z) is among the statistics.

    Returns:
        By site and statistic.

    Reference: Gelman, Meng and Stern 1996, Statistica Sinica 6, 733-807.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    defaults: dict[str, list[str]] = {}
    done, total = 0, num_samples
    while done < total:
        traces = trace_pair(model, guide, *data)
        observed = _known_sites(traces.model)
        likelihoods = [0.0, 0.0]
        for name, site in observed:
            keep, new = kept_elements(site), site["fn"].sample()
            new = new.expand(site["value"].shape)
            known = torch.where(keep, site["value"], new.to(site["value"].dtype))  # what is masked may be NaN
            likelihoods[0] += float(log_prob(name, {**site, "value": known}).sum())
            likelihoods[1] += float(log_prob(name, {**site, "value": new}).sum())
            label = f"{name}: " if len(observed) > 1 else ""
            for what in defaults.setdefault(name, _defaults(known)):
                function = DEFAULTS[what]
                old = [float(function(each[keep.expand(each.shape)].double())) for each in (known, new)]
                pairs.setdefault(label + what, []).append((old[0], old[1]))
            for what, function in statistics.items():
                found = [_number(what, function, each) for each in (known, new)]
                pairs.setdefault(label + what, []).append((found[0], found[1]))
        if likelihood:
            pairs.setdefault(LIKELIHOOD, []).append((likelihoods[0], likelihoods[1]))
        done, total = done + 1, max(num_samples, math.ceil(2 * len(pairs) / alpha))
    return {name: summary for name, each in pairs.items() if (summary := _summary(each)) is not None}


def _known_sites(model_trace: Any) -> list[tuple[str, Site]]:
    """The observed sites of which some element is not masked.

    Raises:
        ValueError: If there is none.
    """
    observed = [(name, site) for name, site in sample_sites(model_trace) if site["is_observed"]]
    known = [(name, site) for name, site in observed if bool(kept_elements(site).any())]
    if not known:
        names = ", ".join(repr(name) for name, _ in observed)
        raise ValueError(
            f"a mask leaves out all elements of what the model observes ({names}), so there are no data to compare "
            "with replications: give data of which some are observed, or leave 'predictive' out of tests"
        )
    return known


def _defaults(values: Tensor) -> list[str]:
    """The statistics that say something of such data: of zeros and ones the mean says all."""
    return ["mean"] if bool(((values == 0) | (values == 1)).all()) else list(DEFAULTS)


def _number(name: str, function: Statistic, values: Tensor) -> float:
    found: Any = function(values)
    if not isinstance(found, Tensor | float | int) or (isinstance(found, Tensor) and found.numel() != 1):
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the statistic {name!r} must return one number for data (N, ...), got {came}")
    return float(found)


def _summary(pairs: list[tuple[float, float]]) -> Check | None:
    """The statistic of the data, its mean over the replications and the p-value; None if it is always the same."""
    values = torch.tensor(pairs, dtype=torch.float64)
    old, new = values.T
    if bool((values == values[0, 0]).all()):
        return None
    same = torch.isclose(new, old, rtol=1e-9, atol=0)
    above, equal = float(((new > old) & ~same).sum()), float(same.sum())
    share = (above + 0.5 * equal + 0.5) / (len(pairs) + 1)
    return Check(float(old.mean()), float(new.mean()), min(1.0, 2 * min(share, 1 - share)), len(pairs))
