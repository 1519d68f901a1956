"""The aggregate posterior of a guide: the mixture of q(z|x) over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.planning import Plan, rows_that_fit
from pyro_vae.pair.plates import sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, log_prob, sample_sites

__all__ = ["AggregatePosterior"]

CPU_PAIRS = 2**15  # pairs of a draw and a datum per run: many more exceed the cache


class AggregatePosterior:
    r"""The exact mixture :math:`q(z) = \frac1N \sum_n q(z|x_n)` over N data, of any guide.

    The guide runs on the data conditioned on the draws of all its sites, so z may consist of several dependent sites.
    One density of the mixture costs N densities of the guide.

    Args:
        guide: The guide.
        data: The pair's arguments; the N data come first.
        plan: How the pair runs on them.
        vectorize: Whether the guide accepts a leading particle dimension.
        rows: Data per run.
        memory: Approximate bytes for one run.
    """

    def __init__(
        self,
        guide: Program,
        data: Data,
        plan: Plan,
        *,
        vectorize: bool,
        rows: int,
        memory: int | None,
    ) -> None:
        self.guide, self.vectorize, self.memory = guide, vectorize, memory
        self.size, self.device = plan.num_data, data[0][0].device
        self.plate, self.nesting = plan.plate, plan.particles.nesting
        self.dims = {name: site["value"].dim() for name, site in sample_sites(plan.traces.guide)}
        self.data = [take(*data, *piece) for piece in plan.pieces(rows)]
        self.draws_per_run: int | None = None  # set at the first density
        self.problem = ""  # why the guide has no density at another datum's draw

    def as_draws(self, traces: PairTrace) -> dict[str, Tensor]:
        """The values of a run of the guide on M data as M draws of z: `(M, ...)`, with size 1 along the data."""
        draws = {}
        for name, site in sample_sites(traces.guide):
            value, event_dim = site["value"], site["fn"].event_dim
            value = value.reshape((1,) * (self.nesting + event_dim - value.dim()) + value.shape)
            axis = self.plate.dim - event_dim
            draws[name] = value.movedim(axis, 0).unsqueeze(axis)
        return draws

    def log_prob(self, draws: dict[str, Tensor], advance: Callable[[int], None] = lambda _: None) -> Tensor:
        """log q(z) of M draws, shape `(M,)`, in double precision."""
        if self.draws_per_run is None:
            self.draws_per_run = self._draws_that_fit(draws) if self.vectorize else 1
        parts = []
        for start, stop in slices(len(next(iter(draws.values()))), self.draws_per_run):
            cross = [
                self._pairwise_log_prob(draws, slice(start, stop), data).double().logsumexp(1) for data in self.data
            ]
            parts.append(torch.stack(cross).logsumexp(0) - math.log(self.size))
            advance(stop - start)
        return torch.cat(parts)

    def _draws_that_fit(self, draws: dict[str, Tensor]) -> int:
        """How many draws fit into one run with its data."""
        n = len(self.data[0][0][0])
        one = slice(0, 1)
        pairs = rows_that_fit(
            lambda: self._pairwise_log_prob(draws, one, self.data[0]), n, self.device, self.memory, cpu_rows=CPU_PAIRS
        )
        return max(1, pairs // n)

    def _pairwise_log_prob(self, draws: dict[str, Tensor], part: slice, data: Data) -> Tensor:
        """log q(z_i | x_j) of some draws and the data of one run, `(I, J)`."""
        if not self.vectorize:
            return self.log_prob_of_draw(self.guide, draws, part.start, data).unsqueeze(0)
        values = {}
        for name, value in draws.items():
            shape = list(value[part].shape)
            shape[self._axis(value)] = len(data[0][0])
            values[name] = value[part].expand(shape)
        dim = -1 - self.nesting
        return self._conditioned_log_prob(
            pyro.plate(PARTICLE_PLATE, part.stop - part.start, dim=dim)(self.guide), values, data, dim
        )

    def log_prob_of_draw(self, program: Program, draws: dict[str, Tensor], index: int, data: Data) -> Tensor:
        """Log-density of one draw, in the model or in the guide, given each of the data, shape `(N,)`."""
        values = {}
        for name, value in draws.items():
            shape = list(value.shape[1:])
            shape[self._axis(value)] = len(data[0][0])
            # in the shape that the guide gave it, for networks that need that shape
            values[name] = value[index].expand(shape).reshape(shape[len(shape) - self.dims[name] :])
        return self._conditioned_log_prob(program, values, data, None)

    def _axis(self, value: Tensor) -> int:
        return self.plate.dim - (value.dim() - 1 - self.nesting)

    def _conditioned_log_prob(
        self, program: Program, values: dict[str, Tensor], data: Data, particle_dim: int | None
    ) -> Tensor:
        args, kwargs = data
        plate = replace(self.plate, size=len(args[0]))
        # one datum's draw may lie outside another's support, where the density is zero
        with pyro.validation_enabled(False):
            trace = prune_subsample_sites(traced(poutine.condition(program, values), args, kwargs))
            terms = [
                sum_to_data(log_prob(name, site), plate, particle_dim)
                for name, site in sample_sites(trace)
                if name in values
            ]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)
