"""Several runs on the same data: differences of each datum's numbers, whose errors are smaller than those of either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.reports.gathering import RunFacts
from pyro_vae.support.statistics import standard_error

__all__ = ["Difference", "difference"]


@dataclass(frozen=True)
class Difference:
    """The mean difference of two runs over the data, in nats per datum, and its standard error; or why there is none.

    The error is for the population of data: `sd(d) / sqrt(N)` of the N differences d, which holds the Monte Carlo noise
    of both estimates, too. NaN where there is no difference.
    """

    mean: float = math.nan
    error: float = math.nan
    reason: str = ""


def difference(first: RunFacts, other: RunFacts, values: Sequence[Tensor | None]) -> Difference:
    """The values of `other` minus those of `first`, both `(N,)`, if they are of the same data and of the same kind."""
    one, two = values
    if one is None or two is None:
        return Difference(reason="not known for both")
    if not first.args or not other.args or not _equal(first.args[0], other.args[0]):
        return Difference(reason="measured on other data")
    if one.shape != two.shape or len(one) != len(first.x):
        return Difference(reason="not a number for each datum")
    kinds = [facts["observation"] for facts in (first, other)]
    if None in kinds or kinds[0].is_density != kinds[1].is_density:
        return Difference(reason="one is a log-probability, the other a log-density")
    change = two.double().cpu() - one.double().cpu()
    return Difference(float(change.mean()), standard_error(change))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and len(a) == len(b) and bool(torch.equal(a.cpu().flatten(1), b.cpu().flatten(1)))
