"""Which latent site a gradient's variance is of: each site draws from a stream of its own, of which one is redrawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.evaluate.estimators.gradients import Gradients

__all__ = ["SiteStreams", "variance_by_site"]

VISIT = 0x9E3779B97F4A7C15  # odd, so that the streams of a site's visits differ


class SiteStreams(Messenger):
    """Around a guide: every latent site draws from a stream that `seeds` has for it.

    A guide that runs several times for one gradient visits a site as often, each time with the next stream of it.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.seeds = dict.fromkeys(sites, 0)
        self.visits: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = str(msg["name"])
        if name in self.seeds and not site_is_subsample(msg):
            visit = self.visits[name] = self.visits.get(name, 0) + 1
            torch.manual_seed((self.seeds[name] + visit * VISIT) % 2**63)


def variance_by_site(gradients: Gradients, streams: SiteStreams, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    r"""The variance of one gradient that each site's own noise leaves, by program and site.

    .. math:: V_i = E\big[\mathrm{Var}(g \,|\, \epsilon_{-i})\big]
        = \tfrac12 E\big\| g(\epsilon) - g(\epsilon_{-i}, \epsilon_i') \big\|^2

    for noise `eps_i` of site i, of which `eps_i'` is another draw (Jansen 1999; Sobol's total effect times the
    variance). By the law of total variance `V_i` is what is left of the variance if all else is known. A site that
    reads site i is drawn with its old noise from its new distribution. The sum over sites is at least the variance, and
    equal to it where the gradient is a sum of terms of one site's noise each. Noise outside the guide's sites, and the
    choice of a subsample, is held.

    Args:
        gradients: Of an estimator on a pair whose guide is inside `streams`.
        streams: The streams.
        seeds: One for each pair of gradients of a site.
    """
    sites = list(streams.seeds)
    found = {program: dict.fromkeys(sites, 0.0) for program in gradients.params_by_program}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed % 2**63)
        first, second = torch.randint(2**62, (2, len(sites)), generator=generator).tolist()

        def gradient(drawn: Sequence[int], seed: int = seed) -> dict[str, Tensor]:
            streams.seeds.update(zip(sites, drawn, strict=True))
            streams.visits.clear()
            return gradients.by_program(gradients.gradient(seed)[1])

        base = gradient(first)
        for i, site in enumerate(sites):
            other = gradient([*first[:i], second[i], *first[i + 1 :]])
            for program, vector in base.items():
                square = float((vector - other[program]).double().square().sum())
                found[program][site] += square / 2 / len(seeds)
    return found
