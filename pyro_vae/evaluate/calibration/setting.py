"""How a pair is simulated from: what one replication is, and how many data and draws a run takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluate.calibration.units import Units, given_globals, sites_outside, sites_that_read
from pyro_vae.evaluate.marginal.proposals import NoDensity, Proposal
from pyro_vae.pair.arguments import map_rows, slices
from pyro_vae.pair.particles import Particles, particles_of
from pyro_vae.pair.planning import CPU_ROWS, plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["Setting", "setting_of"]

GLOBAL_DRAWS = 20  # of latents that all data share, at least, where data are simulated given these


@dataclass(frozen=True)
class Setting:
    """How the data of a pair are simulated.

    Attributes:
        model, guide: The pair.
        data: Its arguments: what is not observed in them is given.
        units: What one replication is.
        whole: Whether all rows of the data must run together.
        given: The latents outside the plate over the data that are drawn from the guide, and given to both; with noise
            of the guide's own there.
        given_latents: Those of them that are the model's.
        vectorize: Whether draws run together.
        rows: Data times draws that fit a run.
    """

    model: Program
    guide: Program
    data: Data
    units: Units
    whole: bool
    given: list[str]
    given_latents: list[str]
    vectorize: bool
    rows: int

    def pair(self) -> tuple[Program, Program]:
        """The pair to simulate from, given a new draw of the latents that all data share."""
        return given_globals(self.model, self.guide, self.given, self.data) if self.given else (self.model, self.guide)

    def pieces(self, num_simulations: int, draws: int) -> Iterator[tuple[Data, int, int]]:
        """The arguments of the runs, with the index of their first simulation and how many of it count."""
        n = len(self.data[0][0])
        if self.units.plate is None:
            for start in range(num_simulations):
                yield self.data, start, 1
            return
        size = n if self.whole else max(1, self.rows // draws)
        if self.given and not self.whole:
            size = min(size, -(-num_simulations // GLOBAL_DRAWS))
        for start, stop in slices(num_simulations, size):
            index = torch.arange(n) if self.whole else torch.arange(start, stop) % n
            yield rows_at(self.data, index), start, stop - start

    def some(self, count: int) -> Data:
        """The first of the given data; all of them if they must run together."""
        n = len(self.data[0][0])
        return self.data if self.whole or self.units.plate is None else rows_at(self.data, torch.arange(min(count, n)))


def rows_at(data: Data, index: Tensor) -> Data:
    """Some rows of every per-datum tensor among the arguments."""
    return map_rows(lambda a: a[index.to(a.device)], *data)


def setting_of(model: Program, guide: Program, data: Data, reweight: bool, memory: int | None) -> Setting:
    """Decide how a pair is simulated from.

    Raises:
        ValueError: Where ranks would say nothing of the guide; the message says why.
    """
    with fork_rng():
        if not _latents(model, guide, data):
            raise ValueError("the guide samples no latent, so there is nothing to calibrate")
        outside = sites_outside(model, guide, data)
        names = [*outside.latents, *outside.noise]
        reading = sites_that_read(model, guide, data, outside.latents) if names else []
    if outside.observed or reading:
        particles, whole, example = particles_of(model, guide, data), True, data
        units, given = Units(None, particles.nesting), []
        _check_reads(model, guide, data)
        local: tuple[Program, Program] = model, guide
    else:
        given = names
        with fork_rng():
            local = given_globals(model, guide, names, data) if names else (model, guide)
            _check_local(*local, data, outside.latents)
            plan = plan_for(*local, data)
        particles, whole, example = plan.particles, plan.whole, plan.example_data
        units = Units(plan.plate, particles.nesting)
        if whole:
            _check_reads(*local, data)
    if reweight:
        _check_density(*local, example, particles)
    probe = 2 if particles.vectorize else None
    rows = rows_that_fit(
        lambda: trace_pair(*local, *example, num_particles=probe, nesting=particles.nesting),
        (probe or 1) * len(example[0][0]),
        data[0][0].device,
        memory,
        cpu_rows=CPU_ROWS,
    )
    return Setting(model, guide, data, units, whole, given, outside.latents, particles.vectorize, rows)


def _check_local(model: Program, guide: Program, data: Data, names: list[str]) -> None:
    """Refuse a pair all of whose latents are shared by all data, and drawn without a look at them."""
    if not _latents(model, guide, data):
        raise ValueError(
            f"the guide draws all latents ({', '.join(map(repr, names))}) without reading the data: its parameters are "
            "those of one fit, and of other data it says nothing. Calibration needs a guide that computes posteriors "
            "from the data it is given; such a fit would have to be made anew for each simulated data set"
        )


def _latents(model: Program, guide: Program, data: Data) -> list[str]:
    traces = trace_pair(model, guide, *data)
    return [name for name in traces.latents if name in traces.model.nodes]


def _check_density(model: Program, guide: Program, data: Data, particles: Particles) -> None:
    """Refuse importance weights of a guide without a density."""
    try:
        with fork_rng():
            Proposal(model, guide, 0.0, particles.vectorize, particles.nesting).check(data)
    except NoDensity as error:
        raise ValueError(
            "reweight=True needs importance weights, and the guide has a point mass at a continuous site, which has no "
            "density: use reweight=False, which says how wrong it is"
        ) from error


def _check_reads(model: Program, guide: Program, data: Data) -> None:
    """Refuse a guide with parameters for just these data."""
    latents = _latents(model, guide, data)
    if not sites_that_read(model, guide, data, latents):
        raise ValueError(
            f"the guide draws its latents ({', '.join(map(repr, latents))}) without reading the data: its parameters "
            f"belong to these {len(data[0][0])} data, and of simulated ones it says nothing. Calibration needs a "
            "guide that computes posteriors from the data it is given, such as pv.AmortizedGuide(model, x)"
        )
