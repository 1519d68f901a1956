"""A particle filter for any pair of time series: from the pair on longer and longer beginnings of the data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.pair.arguments import unwrapped
from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.planning import Plan
from pyro_vae.pair.plates import data_plate, sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, checked_pair, log_prob, sample_sites

__all__ = ["Filter", "check_series", "lengths_of", "with_steps"]


def lengths_of(model: Program, data: Data) -> Tensor | None:
    """The pair's argument called `lengths`, None if it has none or gets none."""
    found = _bound(model, data).get("lengths")
    return found if isinstance(found, Tensor) else None


def with_steps(model: Program, data: Data, steps: int) -> Data:
    """The pair's arguments for the first `steps` of the series, or for more steps, which repeat the last one.

    An argument of the pair called `lengths` is cut to `steps`, or for more of them raised by as many.
    """
    args, kwargs = data
    x, had = args[0], args[0].shape[1]
    longer = [x[:, -1:].expand(-1, steps - had, *x.shape[2:])] if steps > had else []
    args = (torch.cat([x[:, :steps], *longer], 1), *args[1:])
    lengths = lengths_of(model, data)
    if lengths is None:
        return args, kwargs
    lengths_now = lengths.clamp_max(steps) if steps <= had else lengths + steps - had
    args = tuple(lengths_now if a is lengths else a for a in args)
    return args, {name: lengths_now if a is lengths else a for name, a in kwargs.items()}


def check_series(plan: Plan, data: Data) -> None:
    """Refuse data that are no series, and pairs whose particles do not run in one plate beside that over the data.

    Raises:
        ValueError: With the reason.
    """
    shape = tuple(data[0][0].shape)
    if len(shape) < 2:
        raise ValueError(f"expected series (N, T, ...), with time as the second axis, got x of shape {shape}")
    if not plan.particles.vectorize or plan.particles.nesting != 1 or plan.plate.dim != -1:
        raise ValueError(
            "a particle filter needs a pair whose sites are in the plate over the data alone, at dim -1, and whose "
            "networks take a leading particle dimension: use importance sampling"
        )


@dataclass
class Filter:
    """Weighted particles of the latents of series, after each of some stages.

    At each stage the pair runs on the first steps of the series, on the latents so far: the guide draws those that are
    new. So one pass costs T / every runs of the pair, which grow with the time.

    Args:
        model, guide: The pair.
        data: Its arguments: series `(N, T, ...)` first.
        num_particles, num_runs: K particles in each of R independent filters.
        every: Steps of time from one stage to the next.
        threshold: Particles of a datum and filter are resampled where the effective sample size is below this fraction
            of K.
        signature: The model as the user gave it, whose signature names the arguments; by default `model`.
    """

    model: Program
    guide: Program
    data: Data
    num_particles: int
    num_runs: int = 1
    every: int = 1
    threshold: float = 0.5
    signature: Program | None = None

    def __post_init__(self) -> None:
        self.log_evidence: Any = 0.0  # (R, N), log of the estimate of p(x) so far
        self._log_weight = torch.full((1, 1, 1), -math.log(self.num_particles), dtype=torch.float64)
        self._joint: Any = 0.0  # (P, N), log p(x, z) so far
        self.past: Any = None  # the guide's trace

    def run(self) -> Filter:
        """Filter to the end of the series."""
        last = self.data[0][0].shape[1]
        for steps in self._stages(last):
            self._advance(with_steps(self.signature or self.model, self.data, steps))
            if steps < last:
                self._resample(self.threshold)
        return self

    def resample(self) -> Any:
        """The trace of the latents of particles that all have the same weight."""
        self._resample(1.0, always=True)
        return self.past

    def _stages(self, last: int) -> Iterator[int]:
        yield from range(self.every, last, self.every)
        yield last

    def _advance(self, data: Data) -> None:
        args, kwargs = data
        number = self.num_particles * self.num_runs
        plate = pyro.plate(PARTICLE_PLATE, number, dim=-2)
        guide = traced(plate(self.guide), args, kwargs, on=self.past)
        model = traced(plate(self.model), args, kwargs, on=guide)
        traces = under_model_masks(checked_pair(model, guide, -2))
        rows = data_plate(traces, len(args[0]))

        def total(sites: Any) -> Any:
            parts = [sum_to_data(log_prob(name, site), rows, -2) for name, site in sites]
            return sum((part.double() for part in parts), start=torch.zeros(()).double())

        joint = total(sample_sites(traces.model))
        old = set() if self.past is None else set(self._names(self.past))
        if missing := old - set(self._names(traces.guide)):
            raise ValueError(f"latent {min(missing)!r} is not drawn for more steps: a particle filter cannot keep it")
        proposed = total((name, site) for name, site in sample_sites(traces.guide) if name not in old)
        gain = (joint - self._joint - proposed).expand(number, len(args[0])).unflatten(0, (self.num_runs, -1))
        log_w = self._log_weight.to(gain) + gain  # (R, K, N)
        step = log_w.logsumexp(1)
        self.log_evidence = self.log_evidence + step
        # weights that are all zero stay as they were: the evidence says -inf
        self._log_weight = torch.where(
            step.isfinite().unsqueeze(1), log_w - step.unsqueeze(1), self._log_weight.to(gain)
        )
        self._joint = joint.expand(number, len(args[0]))
        self.past = self._kept(traces)

    def _kept(self, traces: PairTrace) -> Any:
        """The guide's trace as draws `(P, N, ...)` alone."""
        shape = (self.num_particles * self.num_runs, len(self._joint[0]))
        past = traces.guide.copy()
        for name, site in list(sample_sites(past)):
            value, event_dim = site["value"], site["fn"].event_dim
            events = value.shape[value.dim() - event_dim :]
            previous = None if self.past is None else self.past.nodes.get(name)
            if previous is not None and previous["value"].shape[2:] != events:
                raise ValueError(
                    f"latent {name!r} has another shape for more steps of time, {tuple(events)} after "
                    f"{tuple(previous['value'].shape[2:])}: a particle filter needs a site for each time"
                )
            past.nodes[name] = {**site, "value": value.expand(*shape, *events)}
        return past

    def _resample(self, threshold: float, *, always: bool = False) -> None:
        """Systematic resampling of each datum and filter whose effective sample size is below a fraction of K."""
        weight = self._log_weight.exp()
        runs, count, n = weight.shape
        poor = (1 / weight.square().sum(1) < threshold * count) | always  # (R, N)
        start = torch.rand(runs, 1, n, dtype=weight.dtype, device=weight.device)
        points = (torch.arange(count, device=weight.device).reshape(1, -1, 1) + start) / count
        cumulative = weight.cumsum(1)
        cumulative = cumulative / cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative.transpose(1, 2).contiguous(), points.transpose(1, 2).contiguous())
        chosen = chosen.transpose(1, 2).clamp_max(count - 1)
        same = torch.arange(count, device=weight.device).reshape(1, -1, 1)
        index = torch.where(poor.unsqueeze(1), chosen, same)
        index = (index + count * torch.arange(runs, device=weight.device).reshape(-1, 1, 1)).flatten(0, 1)  # (P, N)
        self._log_weight = torch.where(poor.unsqueeze(1), -math.log(count), self._log_weight)
        self._joint = self._joint.gather(0, index)
        for name, site in list(sample_sites(self.past)):
            where = index.reshape(*index.shape, *[1] * (site["value"].dim() - 2)).expand_as(site["value"])
            self.past.nodes[name] = {**site, "value": site["value"].gather(0, where)}

    def _names(self, trace: Any) -> list[str]:
        return [name for name, _ in sample_sites(trace)]


def _bound(model: Program, data: Data) -> dict[str, Any]:
    """The pair's arguments by name, as far as its signature names them."""
    args, kwargs = data
    try:
        return dict(inspect.signature(unwrapped(model)).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return dict(kwargs)
