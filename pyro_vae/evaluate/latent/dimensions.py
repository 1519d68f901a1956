"""The metrics of `latent_report` for one latent dimension and for one latent site."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ACTIVE", "NEGLIGIBLE", "STATUSES", "LatentDimension", "LatentSite", "sort_by_kl"]

ACTIVE = 0.01  # Burda et al. 2016, section 5.2
NEGLIGIBLE = 0.01  # nats
STATUSES = ("active", "collapsed", "idle", "unknown", "auxiliary")


@dataclass(frozen=True)
class LatentDimension:
    """One element of a latent site; NaN where a metric does not exist.

    Attributes:
        name: The site's name and the element's index, `z[3]`.
        site: The site's name.
        kl: Mean KL(q(z_j|x) || p(z_j)) over the data, nats per datum: NaN if the site's dimensions are not independent.
        kl_error: Its standard error as an estimate for the population of data.
        activity: Var_x E_q[z_j|x]: NaN if the family has no mean (a categorical).
        mean: Mean of the aggregate posterior q(z_j).
        scale: Its standard deviation.
        prior_kl: KL(N(mean, scale^2) || p(z_j)) if the prior is one normal for all data, else NaN.
        status: "active" if `activity` is above 0.01. Otherwise "collapsed" if the KL (of the site, if the dimension has
            none) is below 0.01 nats, and "idle" if the dimension has a KL but no information about x. "unknown" if
            there is no activity and the KL is not negligible; "auxiliary" in a site of the guide alone.
    """

    name: str
    site: str
    kl: float
    kl_error: float
    activity: float
    mean: float
    scale: float
    prior_kl: float
    status: str


@dataclass(frozen=True)
class LatentSite:
    """One latent site: its KL in nats per datum, the standard error of the KL over the data, and a note on it."""

    name: str
    num_dims: int
    kl: float
    kl_error: float
    note: str = ""


def sort_by_kl(dimensions: Iterable[LatentDimension]) -> list[LatentDimension]:
    """Sort dimensions by falling KL, then by falling activity; those without a KL come last."""

    def key(d: LatentDimension) -> tuple[float, ...]:
        return tuple(math.inf if math.isnan(v) else -v for v in (d.kl, d.activity))

    return sorted(dimensions, key=key)
