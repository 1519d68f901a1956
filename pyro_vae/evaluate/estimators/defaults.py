"""Which estimators are compared where none are named: those that the pair's latent sites allow."""

from __future__ import annotations

import math

import torch

from pyro_vae import elbo as elbos
from pyro_vae.elbo.estimators.antithetic import check_independent, is_bernoulli
from pyro_vae.elbo.estimators.relaxed import is_relaxable
from pyro_vae.elbo.estimators.site_plan import element_shape
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import PairTrace, sample_sites, trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["default_estimators"]

PATHWISE = ("trace", "mean_field", "stl", "iwae", "dreg")
MOST_STATES = 64


def default_estimators(model: Program, guide: Program, data: Data) -> list[elbos.Estimator]:
    """Those for pathwise latents, or those for any, with sums over sites of few states and what bits allow."""
    with torch.no_grad(), fork_rng():
        traces = trace_pair(model, guide, *data)
    latents = {name: site for name, site in sample_sites(traces.guide) if not site["is_observed"]}
    if all(site["fn"].has_rsample for site in latents.values()):
        return list(PATHWISE)
    found: list[elbos.Estimator] = ["trace", "vargrad", "vimco"]
    summed = _summable(traces, len(data[0][0]))
    if summed:
        found.append(dict.fromkeys(summed, "enum"))
    for name, allows, kinds in (
        ("disarm", is_bernoulli, "Bernoulli"),
        ("rebar", is_relaxable, "Bernoulli, OneHotCategorical"),
    ):
        try:
            check_independent(guide, allows, kinds, name, *data)
        except ValueError:
            continue
        found.append(name)
    return found


def _summable(traces: PairTrace, n: int) -> list[str]:
    """The discrete sites of the guide in its order, as long as their states together are few."""
    plate, branches, result = data_plate(traces, n), 1, []
    for name, site in sample_sites(traces.guide):
        base = base_distribution(site["fn"])
        if site["is_observed"] or not getattr(base, "has_enumerate_support", False):
            continue
        classes, elements = len(base.enumerate_support(expand=False)), element_shape(site["fn"], plate.dim, None)
        if math.prod(elements) * math.log(classes) > math.log(MOST_STATES / branches) + 1e-9:
            continue
        branches *= classes ** math.prod(elements)
        result.append(name)
    return result
