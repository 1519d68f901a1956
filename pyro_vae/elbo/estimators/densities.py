"""The log-densities of a run's sites, per particle and datum: as they count in the weight, and as they drew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.pair.plates import DataPlate, sum_to_data
from pyro_vae.pair.tracing import PairTrace, Site, draw_log_prob, has_mask, log_prob, sample_sites

__all__ = ["Densities", "Sites", "Weights", "weights_of"]

Sites = list[tuple[str, Site]]


class Densities:
    """Log-densities of sites of one run for N data, `(K, N)` each.

    A site's scale stays inside its weight, as a KL weight has to, except for the data plate's own scale: a minibatch
    represents more data, not a sharper likelihood.
    """

    def __init__(self, traces: PairTrace, plate: DataPlate) -> None:
        self.plate, self.particle_dim = plate, traces.particle_dim

    def per_datum(self, value: Tensor) -> Tensor:
        """A batch-shaped tensor, summed to `(K, N)`."""
        value = sum_to_data(value, self.plate, self.particle_dim)
        return value if self.particle_dim is not None else value.unsqueeze(0)

    def total(self, values: Iterable[Tensor]) -> Tensor | None:
        """The sum of batch-shaped tensors; None of none."""
        sums = [self.per_datum(value) for value in values]
        return sum(sums[1:], start=sums[0]) if sums else None

    def counted(self, sites: Sites) -> Tensor | None:
        """The sites' log-density as it stands in the weight, scaled and masked."""
        return self.total(scale_and_mask(log_prob(name, site), self.scale(site)) for name, site in sites)

    def drawn(self, sites: Sites, in_weight: Tensor | None) -> Tensor | None:
        """The sites' log-density as they drew; `in_weight`, what is counted, where that is the same."""
        plain = all(not isinstance(self.scale(s), Tensor) and self.scale(s) == 1 and not has_mask(s) for _, s in sites)
        found = None if plain else self.total(draw_log_prob(name, site) for name, site in sites)
        return in_weight if found is None else found

    def scale(self, site: Site) -> Any:
        """A site's scale without that of the plate over the data."""
        subsampling = self.plate.subsampling
        return site["scale"] if subsampling == 1.0 else site["scale"] / subsampling


@dataclass(frozen=True)
class Weights:
    """Log-densities of K particles for N data, `(K, N)` each: the model's, and the guide's by group of sites.

    They are scaled and masked, as they stand in the weight. `drawn` computes a group's as it drew: the same tensor
    where there is no scale and no mask. What the guide observes, or adds by `pyro.factor`, is in a group that nothing
    draws.
    """

    log_p: Tensor
    log_q: dict[str, Tensor]
    drawn: dict[str, Callable[[], Tensor]]

    @property
    def log_w(self) -> Tensor:
        """Log importance weights."""
        result = self.log_p
        for log_q in self.log_q.values():
            result = result - log_q
        return result

    @property
    def path(self) -> Tensor:
        """Log importance weights without the densities of the group "score"."""
        result = self.log_p
        for group, log_q in self.log_q.items():
            result = result if group == "score" else result - log_q
        return result

    @property
    def log_q_path(self) -> Tensor:
        """Of the reparameterized sites, where these are a group."""
        return self.log_q["path"]


def weights_of(traces: PairTrace, plate: DataPlate) -> Weights:
    """Read a run's log-densities per particle and datum, by the groups "path" (reparameterized), "score" and "term".

    The last is what the guide observes, or adds by `pyro.factor`; it is there if the guide does.
    """
    densities = Densities(traces, plate)
    log_p = densities.counted(list(sample_sites(traces.model)))
    assert log_p is not None  # a plate over the data was found
    log_q: dict[str, Tensor] = {}
    drawn: dict[str, Callable[[], Any]] = {}
    of_guide = list(sample_sites(traces.guide))
    for group, kind in (("path", True), ("score", False)):
        sites = [(name, s) for name, s in of_guide if not s["is_observed"] and s["fn"].has_rsample == kind]
        found = densities.counted(sites)
        log_q[group] = log_p.new_zeros(()) if found is None else found
        drawn[group] = partial(densities.drawn, sites, log_q[group])
    terms = densities.counted([(name, site) for name, site in of_guide if site["is_observed"]])
    return Weights(log_p, log_q if terms is None else {**log_q, "term": terms}, drawn)
