"""The metrics of latent dimensions, from the values of single draws."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.evaluate.latent.dimensions import ACTIVE, NEGLIGIBLE, LatentDimension, LatentSite
from pyro_vae.evaluate.latent.sites import Metrics

__all__ = ["measure_dimensions", "mean_over_data", "decompose_kl"]


def mean_over_data(value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws and data `(S, N, ...)`, and its standard error over the data."""
    per_datum = value.mean(0)
    return per_datum.mean(0), per_datum.std(0) / math.sqrt(len(per_datum))


def decompose_kl(found: Metrics) -> tuple[tuple[float, float], tuple[float, float]]:
    """Split the KL into I(n; z) and KL(q(z) || p(z)), each with its Monte Carlo standard error for these data."""
    ratio = found["", "log_q"] - found["", "log_aggregate"]  # (S, N)
    # a control variate: the KL of the draw minus its closed form has mean zero and shares noise with the ratio
    noise = found["", "log_q"] - found["", "log_p"] - found["", "kl"]
    centered = noise - noise.mean(0)
    if 1e-6 < float(centered.square().mean()) < math.inf:  # more than rounding
        ratio = ratio - (centered * ratio).sum() / centered.square().sum() * noise

    def with_error(value: Tensor) -> tuple[float, float]:
        return float(value.mean()), float((value.var(0) / len(value)).mean() / value.shape[1]) ** 0.5

    return with_error(ratio), with_error(found["", "kl"] - ratio)


def measure_dimensions(names: list[str], site: LatentSite, found: Metrics, *, auxiliary: bool) -> list[LatentDimension]:
    """The metrics of each element of a site."""
    missing = torch.full((len(names),), math.nan, dtype=torch.float64)
    each = found.get((site.name, "kl_each"))
    kl, kl_error = (missing, missing) if each is None else mean_over_data(each)
    mean, variance = found[site.name, "mean"], found[site.name, "variance"]
    # the mean over S draws adds 1/S of the variance between draws
    activity = (mean.mean(0).var(0) - mean.var(0).mean(0) / len(mean)).clamp_min(0)
    scale = (variance.mean((0, 1)) + mean.var((0, 1), correction=0)).sqrt()
    prior_kl = missing
    if (site.name, "prior_mean") in found:
        prior = [found[site.name, f"prior_{key}"].flatten(0, 1) for key in ("mean", "variance")]  # (S N, E)
        if all(torch.allclose(value, value[:1].expand_as(value), rtol=1e-5, atol=1e-6) for value in prior):
            p = Normal(prior[0][0], prior[1][0].sqrt())
            prior_kl = kl_divergence(Normal(mean.mean((0, 1)), scale.clamp_min(1e-30), validate_args=False), p)

    def status(kl: float, activity: float) -> str:
        if auxiliary:
            return "auxiliary"
        if activity > ACTIVE:
            return "active"
        if (site.kl if math.isnan(kl) else kl) < NEGLIGIBLE:
            return "collapsed"
        return "unknown" if math.isnan(activity) else "idle"

    keys = ("kl", "kl_error", "activity", "mean", "scale", "prior_kl")
    rows = torch.stack([kl, kl_error, activity, mean.mean((0, 1)), scale, prior_kl], 1).tolist()
    return [
        LatentDimension(name=name, site=site.name, status=status(row[0], row[2]), **dict(zip(keys, row, strict=True)))
        for name, row in zip(names, rows, strict=True)
    ]
