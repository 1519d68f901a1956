"""What one replication is: a datum with its latents, or a whole data set with the latents that its data share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.evaluate.calibration.simulating import simulate
from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.particles import joint_log_weight
from pyro_vae.pair.planning import run_on_examples
from pyro_vae.pair.plates import DataPlate, data_plate, sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, Site, log_prob, sample_sites, trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["Outside", "Units", "given_globals", "sites_outside", "sites_that_read"]


@dataclass(frozen=True)
class Units:
    """The replications in a run.

    Attributes:
        plate: The plate over the data, each of them one replication; None if a whole data set is one.
        nesting: The number of batch dimensions of the pair.
    """

    plate: DataPlate | None
    nesting: int

    def of_size(self, n: int) -> Units:
        """The same for n data."""
        return self if self.plate is None else replace(self, plate=replace(self.plate, size=n))

    def values(self, value: Tensor, site: Site) -> Tensor:
        """A tensor of a site's shape, or without its particles, as `(K, units, *its own plates, *event_shape)`."""
        event, frames = site["fn"].event_dim, site["cond_indep_stack"]
        lead = 1 + self.nesting
        value = value.reshape((1,) * (lead + event - value.dim()) + value.shape)
        named = {f.name: lead + f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE}
        data = [] if self.plate is None else [named.pop(self.plate.name)]
        kept = [0, *data, *sorted(named.values()), *range(lead, lead + event)]
        unused = [axis for axis in range(value.dim()) if axis not in kept]
        value = value.permute(*kept, *unused)
        value = value.reshape(value.shape[: len(kept)])
        return value if data else value.unsqueeze(1)

    def sum(self, value: Tensor, particle_dim: int | None) -> Tensor:
        """A batch-shaped tensor summed to `(K, units)`; K is 1 without particles."""
        if self.plate is not None:
            total = sum_to_data(value, self.plate, particle_dim)
            return total if total.dim() == 2 else total.unsqueeze(0)
        if particle_dim is None:
            return value.sum().reshape(1, 1)
        value = value.reshape((1,) * (-particle_dim - value.dim()) + value.shape)
        return value.flatten(1).sum(1, keepdim=True) if value.dim() > 1 else value.unsqueeze(1)

    def log_likelihood(self, model_trace: Any, particle_dim: int | None = None) -> Tensor:
        """log p(x|z) of each unit, `(K, units)`, nats."""
        observed = [(name, site) for name, site in sample_sites(model_trace) if site["is_observed"]]
        return sum((self.sum(log_prob(*each), particle_dim) for each in observed), start=torch.zeros(()))

    def log_weights(self, traces: PairTrace) -> Tensor:
        """log p(x, z) - log q(z|x) of each unit, `(K, units)`, nats."""
        traces = under_model_masks(traces)
        if self.plate is not None:
            found = joint_log_weight(traces, self.plate)
            return found if found.dim() == 2 else found.unsqueeze(0)
        terms = (sign * self.sum(log_prob(name, site), traces.particle_dim) for name, site, sign in traces.sites())
        return sum(terms, start=torch.zeros(()))


@dataclass(frozen=True)
class Outside:
    """The sites of a pair outside the plate over the data.

    Attributes:
        latents: The model's.
        noise: The guide's own, such as those of autoguides.
        observed: Whether an observed site is outside, too.
    """

    latents: list[str]
    noise: list[str]
    observed: bool


def sites_outside(model: Program, guide: Program, data: Data) -> Outside:
    """Find the sites outside the plate over the data.

    Raises:
        ValueError: If latent sites differ between model and guide, or the plate over the data is ambiguous.
    """
    total = len(data[0][0])

    def run(some: Data) -> PairTrace:
        traces = trace_pair(model, guide, *some)
        sizes = {f.size for _, site, _ in traces.sites() for f in site["cond_indep_stack"]}
        if len(some[0][0]) < total and total in sizes:
            raise ValueError("the guide has a plate over all data, which the model then has too")
        return traces

    traces, few, _ = run_on_examples(run, data)
    n = len(few[0][0])

    def outside(trace: Any) -> dict[str, Site]:
        return {
            name: site
            for name, site in sample_sites(trace)
            if not any(f.vectorized and f.size == n for f in site["cond_indep_stack"])
        }

    found = outside(traces.model)
    latents = [name for name, site in found.items() if not site["is_observed"]]
    if not found:
        data_plate(traces, n)  # raises where it is ambiguous, or for a site of the guide alone
    noise = [name for name in outside(traces.guide) if name not in traces.model.nodes]
    return Outside(latents, noise, len(latents) < len(found))


def sites_that_read(model: Program, guide: Program, data: Data, names: Sequence[str]) -> list[str]:
    """Those of some latents whose draws in the guide change with the data."""
    with fork_rng():
        others = simulate(model, data).data
    values = []
    for each in (data, others):
        with fork_rng(0):
            values.append(guide_values(guide, each))
    return [name for name in names if not torch.equal(*(found[name] for found in values))]


def guide_values(guide: Program, data: Data) -> dict[str, Tensor]:
    """The values of the sites of the guide in one run."""
    trace = traced(guide, *data)
    return {name: site["value"] for name, site in sample_sites(trace)}


def given_globals(model: Program, guide: Program, names: Sequence[str], data: Data) -> tuple[Program, Program]:
    """The pair given one draw from the guide of sites that all data share: they are no sites of it any more."""
    drawn = guide_values(guide, data)
    values = {name: drawn[name] for name in names}

    def given(program: Program) -> Program:
        inside: Program = poutine.condition(program, data=values)
        outside: Program = poutine.block(inside, hide=list(names))
        return outside

    return given(model), given(guide)
