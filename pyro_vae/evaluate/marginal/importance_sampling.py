"""log p(x) by importance sampling from the guide, the prior, or both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import suppress

import pyro
import torch
from torch import Tensor

from pyro_vae.evaluate.marginal.fast_weights import FastWeights
from pyro_vae.evaluate.marginal.methods import Importance
from pyro_vae.evaluate.marginal.proposals import Proposal, as_guide
from pyro_vae.evaluate.marginal.result import LogMarginal, join, marginal_of
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import map_rows, slices, take
from pyro_vae.pair.planning import CPU_ROWS, Plan, plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.support.progress import Advance, progress_bar, until_interrupted
from pyro_vae.support.random import fork_rng

__all__ = ["importance"]

COMPILED_SAMPLES = 2_000_000  # from so many in all it pays to compile, which halves the time of each
GATHERED = 2**16  # log-weights that are kept before they are looked at
LOOPED = 256  # samples between two looks at the weights where samples run one at a time


def importance(
    model: Program,
    guide: Program | None,
    data: Data,
    method: Importance,
    *,
    num_samples: int,
    memory: int | None,
    progress: bool | None,
) -> LogMarginal:
    """`log_marginal` by importance sampling; runs without gradients, the networks in evaluation mode already."""
    guide = as_guide(model) if guide is None or method.proposal == "prior" else guide
    plan = plan_for(model, guide, data)
    proposal = Proposal(model, guide, method.prior_share, plan.particles.vectorize, plan.particles.nesting)
    with fork_rng():
        proposal.check(plan.few)
    sampler = _Sampler(proposal, plan, data, num_samples, memory)
    most = num_samples if method.target_error is None else method.max_samples

    def parts(advance: Advance) -> Iterator[LogMarginal]:
        for start, stop in slices(plan.num_data, sampler.group):
            weights = _until_exact(sampler, take(*data, start, stop), num_samples, most, method.target_error)
            check_finite(weights, start)
            yield marginal_of(weights, data[0][0].dtype, method=method.name)
            advance(stop - start)

    with progress_bar("log p(x)", plan.num_data, progress) as advance, pyro.validation_enabled(False):
        found, interrupted = until_interrupted(parts(advance))
    return dataclasses.replace(join(found), interrupted=interrupted)


class _Sampler:
    """Draws the weights of a proposal, as many data and samples at once as the memory allows.

    Args:
        proposal: Whose weights.
        plan: How the pair runs.
        data: All data, which each pass Pyro's checks here.
        num_samples: Samples per datum, to begin with.
        memory: Bytes.

    Attributes:
        whole: Whether the data run all at once, or not at all.
        group: How many data to draw for before their weights are looked at.
    """

    def __init__(self, proposal: Proposal, plan: Plan, data: Data, num_samples: int, memory: int | None) -> None:
        self.proposal, self.whole = proposal, plan.whole
        n, device = plan.num_data, data[0][0].device
        share, self.vectorize = proposal.share, plan.particles.vectorize
        # one sample of each kind
        probe = proposal.plan(2 if self.vectorize else 1) if share in (0, 1) else torch.tensor([False, True])
        self.rows = rows_that_fit(
            lambda: proposal.log_weights(plan.few, probe, share),
            len(probe) * len(plan.few[0][0]),
            device,
            memory,
            cpu_rows=CPU_ROWS,
        )
        # Pyro's checks of every value cost a tenth of the time: they are made on a sample or two of all data, no more
        with fork_rng():
            for start, stop in plan.pieces(self.rows, len(probe)):
                proposal.log_weights(take(*data, start, stop), probe, share)
        # many samples of few data, so that encoders run seldom; one sample of many data if particles run in a loop
        self.per_data = plan.data_at_once(self.rows, num_samples if self.vectorize else 1)
        self.chunk = max(1, self.rows // self.per_data) if self.vectorize else LOOPED
        self.fast: FastWeights | None = None
        if self.vectorize and share in (0, 1) and n * num_samples >= COMPILED_SAMPLES and device.type == "cpu":
            self.chunk = math.ceil(num_samples / math.ceil(num_samples / self.chunk))  # equal chunks, for one graph
            with suppress(Exception):  # no compiler, or a pair whose Python looks at values: then it runs eagerly
                self.fast = FastWeights(proposal, take(*data, 0, self.per_data), self.chunk)
        # compiled, the weights of several data are looked at together: each look would take as long as drawing them
        self.gathered = 0 if self.fast is None else GATHERED
        self.group = n if plan.whole else self.per_data * max(1, self.gathered // (num_samples * self.per_data))

    def draw(self, weights: Weights, data: Data, count: int) -> None:
        """Add `count` weights for each of some data."""
        kinds = self.proposal.plan(count)
        share, size = float(kinds.double().mean()), len(data[0][0])
        for start, stop in slices(count, max(self.chunk, self.gathered // size)):
            pieces = slices(size, self.per_data)
            columns = [self._weigh(take(*data, *piece), kinds[start:stop], share) for piece in pieces]
            weights.add(torch.cat(columns, 1))

    def _weigh(self, some: Data, kinds: Tensor, share: float) -> Tensor:
        """Log-weights `(K, N)` of at most `per_data` data."""
        size = LOOPED
        if self.vectorize:
            n = len(some[0][0])
            size = self.chunk if n == self.per_data else max(1, self.rows // n)
        found = []
        for start, stop in slices(len(kinds), size):
            log_w = None if self.fast is None else self.fast(some, stop - start)
            found.append(self.proposal.log_weights(some, kinds[start:stop], share) if log_w is None else log_w)
        return torch.cat(found)


def _until_exact(sampler: _Sampler, data: Data, num_samples: int, most: int, target_error: float | None) -> Weights:
    """The weights of some data: `num_samples`, then twice as many again where the error is above the target."""
    n, device = len(data[0][0]), data[0][0].device
    weights = Weights(n, most, device)
    sampler.draw(weights, data, num_samples)
    count, active = num_samples, _unfinished(weights, target_error)
    while len(active) and count < most:
        more = min(count, most - count)  # few looks, so that stopping early biases little
        if sampler.whole:
            active = torch.arange(n, device=device)
        part = Weights(len(active), most, device)
        sampler.draw(part, data if sampler.whole else _rows(data, active), more)
        weights.merge(active, part)
        count, active = count + more, _unfinished(weights, target_error)
    return weights


def check_finite(weights: Weights, start: int) -> None:
    """Refuse weights that are no numbers, of data that begin with number `start`.

    Raises:
        ValueError: If the sum of a datum's weights is NaN or infinite.
    """
    bad = ~(weights.log_sum < float("inf"))
    if bad.any():
        index = start + int(bad.nonzero()[0])
        raise ValueError(
            f"{int(bad.sum())} of the data {start}..{start + len(bad) - 1} have a NaN or infinite importance weight, "
            f"first datum {index}: pv.preflight(model, guide, x[{index}:{index + 1}]) names the site"
        )


def _unfinished(weights: Weights, target_error: float | None) -> Tensor:
    """Indices of the data whose error is above the target."""
    if target_error is None:
        return torch.empty(0, dtype=torch.long)
    return (weights.std_error > target_error).nonzero().squeeze(-1)


def _rows(data: Data, index: Tensor) -> Data:
    return map_rows(lambda a: a[index.to(a.device)], *data)
