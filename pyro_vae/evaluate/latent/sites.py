"""The KL, moments and values of each latent site in one run of a pair, by datum and by element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Delta, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.elbo.estimators.terms import elements_of, kl_sites, mask_elements
from pyro_vae.pair.plates import DataPlate, sum_to_data
from pyro_vae.pair.tracing import PairTrace, log_prob, sample_sites

__all__ = ["Metrics", "element_names", "measure_sites", "latent_sites", "site_note", "as_rows"]

Site = dict[str, Any]
# by site and metric, `(N,)` or, for the E elements of a site, `(N, E)`; the site "" means all sites together
Metrics = dict[tuple[str, str], Tensor]


def latent_sites(traces: PairTrace) -> Iterator[tuple[str, Site]]:
    """The guide's latent sites, without `pyro.factor` statements."""
    return ((name, site) for name, site in sample_sites(traces.guide) if not site["is_observed"])


def measure_sites(traces: PairTrace, plate: DataPlate) -> Metrics:
    """The metrics of one draw for every datum.

    Each site has a "kl"; its elements have the "value", "mean" and "variance" of q, a "kl_each" if they are
    independent, and a "prior_mean" and "prior_variance" if the prior is normal. All sites together have a "kl" and the
    densities of the draw, "log_q" and "log_p". A KL is in closed form, given the draws of the other sites, where that
    is exact, and log q - log p of the draw otherwise.
    """
    result: Metrics = {}
    analytic = kl_sites(traces)
    log_q, log_p, kl = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        site_kl = analytic.get(name)
        log_ratio = log_prob(name, q)
        log_q = log_q + sum_to_data(log_ratio, plate, None)
        if p is not None:
            site_log_p = log_prob(name, p)
            log_p = log_p + sum_to_data(site_log_p, plate, None)
            log_ratio = log_ratio - site_log_p
        site_kl = sum_to_data(log_ratio if site_kl is None else site_kl, plate, None)
        kl = kl + site_kl
        if q["is_observed"]:
            continue
        result[name, "kl"] = site_kl
        each = _kl_of_elements(q, p, name in analytic)
        if each is not None:
            result[name, "kl_each"] = as_rows(each, q, plate)
        mean, variance = _moments(q)
        found = {"value": q["value"], "mean": mean, "variance": variance}
        if p is not None and isinstance(_base(p["fn"]), Normal | MultivariateNormal | LowRankMultivariateNormal):
            found |= {"prior_mean": p["fn"].mean, "prior_variance": p["fn"].variance}
        result |= {(name, key): as_rows(value, q, plate) for key, value in found.items()}
    return {**result, ("", "kl"): kl, ("", "log_q"): log_q, ("", "log_p"): log_p.expand_as(kl)}


def as_rows(value: Tensor, site: Site, plate: DataPlate) -> Tensor:
    """Reshape a tensor that broadcasts to the site's value to `(N, E)`."""
    rows = value.expand(site["value"].shape).movedim(plate.dim - site["fn"].event_dim, 0)
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def element_names(name: str, site: Site, plate: DataPlate) -> list[str]:
    """A name for each element of a site, `z[0, 3]`, or the site's own name if it has one element without a shape."""
    shape, batch = list(site["value"].shape), len(site["value"].shape) - site["fn"].event_dim
    shape[plate.dim + batch] = 1
    # a plate of size one and the plate over the data need no index
    sizes = [size for i, size in enumerate(shape) if i >= batch or size > 1]
    if not sizes:
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in itertools.product(*map(range, sizes))]


def site_note(name: str, traces: PairTrace) -> str:
    """A note on the metrics of a site, or ""."""
    q, p = traces.guide.nodes[name], traces.model.nodes.get(name)
    if p is None:
        return "in the guide alone: this is log q, which is part of the KL of the sites that depend on it"
    if isinstance(_base(q["fn"]), Delta):
        return "a point mass, for which log q - log p is not a KL"
    order = [other for other, site in sample_sites(traces.model) if not site["is_observed"]]
    before = {other for other, _ in itertools.takewhile(lambda item: item[0] != name, sample_sites(traces.guide))}
    if not before.issuperset(order[: order.index(name)]):
        return "drawn in the guide before latents that precede it in the model: its part of the KL can be negative"
    if _kl_of_elements(q, p, False) is None:
        return "its dimensions depend on each other, in the guide or in the prior, so only the whole site has a KL"
    return ""


def _kl_of_elements(q: Site, p: Site | None, analytic: bool) -> Tensor | None:
    """The KL of each element, in the shape of the value; None if the elements are not independent."""
    a, b = elements_of(q["fn"], q["fn"] if p is None else p["fn"])
    if a.event_shape or b.event_shape:
        return None
    if analytic:
        kl = kl_divergence(a, b)
    else:
        kl = a.log_prob(q["value"]) - (b.log_prob(q["value"]) if p is not None else 0.0)
    return mask_elements(kl, q)


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _moments(site: Site) -> tuple[Tensor, Tensor]:
    """Mean and variance of each element given the earlier draws; the draw itself for a family without formulas."""
    try:
        return site["fn"].mean, site["fn"].variance
    except (NotImplementedError, AttributeError):
        return site["value"], torch.zeros_like(site["value"])
