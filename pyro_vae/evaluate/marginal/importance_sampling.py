"""log p(x) by importance sampling from the guide, the prior, or both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import pyro
import torch
from torch import Tensor

from pyro_vae.evaluate.marginal.fast_weights import FastWeights
from pyro_vae.evaluate.marginal.methods import Importance
from pyro_vae.evaluate.marginal.proposals import Proposal
from pyro_vae.evaluate.marginal.result import LogMarginal, concatenate, estimate_from_weights
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import map_rows, slices, take
from pyro_vae.pair.planning import CPU_ROWS, Plan, plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.together import prior_of
from pyro_vae.support.progress import Advance, progress_bar, until_interrupted
from pyro_vae.support.random import fork_rng

__all__ = ["importance"]

COMPILED_SAMPLES = 2_000_000  # samples in total from which compilation pays; it halves the time of each
MIN_WEIGHTS = 2**16  # log-weights that are collected before they are summarized
LOOP_SAMPLES = 256  # samples between two summaries of the weights where samples run one at a time


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
    """`log_marginal` by importance sampling.

    The caller disables gradients and puts the networks in evaluation mode.
    """
    guide = prior_of(model) if guide is None or method.proposal == "prior" else guide
    plan = plan_for(model, guide, data)
    proposal = Proposal(model, guide, method.prior_fraction, plan.particles.vectorize, plan.particles.nesting)
    with fork_rng():
        proposal.check(plan.example_data)
    sampler = _Sampler(proposal, plan, data, num_samples, memory)
    max_samples = num_samples if method.target_error is None else method.max_samples

    def parts(advance: Advance) -> Iterator[LogMarginal]:
        for start, stop in slices(plan.num_data, sampler.group):
            weights = _adaptive_weights(
                sampler, take(*data, start, stop), num_samples, max_samples, method.target_error
            )
            check_finite(weights, start)
            yield estimate_from_weights(weights, data[0][0].dtype, method=method.name)
            advance(stop - start)

    return in_parts(parts, plan.num_data, progress)


def in_parts(parts: Callable[[Advance], Iterator[LogMarginal]], num_data: int, progress: bool | None) -> LogMarginal:
    """The estimates of all parts of the data, or of those before Ctrl-C; Pyro does not validate again what it has."""
    with progress_bar("log p(x)", num_data, progress) as advance, pyro.validation_enabled(False):
        found, interrupted = until_interrupted(parts(advance))
    return dataclasses.replace(concatenate(found), interrupted=interrupted)


class _Sampler:
    """Draws the weights of a proposal, with as many data and samples per run as fit the memory.

    Args:
        proposal: The proposal.
        plan: How the pair runs.
        data: All data; they are validated by Pyro here.
        num_samples: Initial number of samples per datum.
        memory: Bytes per run.

    Attributes:
        whole: Whether all data must run at once.
        group: Data whose weights are drawn before they are summarized.
    """

    def __init__(self, proposal: Proposal, plan: Plan, data: Data, num_samples: int, memory: int | None) -> None:
        self.proposal, self.whole = proposal, plan.whole
        n, device = plan.num_data, data[0][0].device
        prior_fraction, self.vectorize = proposal.prior_fraction, plan.particles.vectorize
        # one sample from each component
        probe = proposal.plan(2 if self.vectorize else 1) if prior_fraction in (0, 1) else torch.tensor([False, True])
        self.rows = rows_that_fit(
            lambda: proposal.log_weights(plan.example_data, probe, prior_fraction),
            len(probe) * len(plan.example_data[0][0]),
            device,
            memory,
            cpu_rows=CPU_ROWS,
        )
        # Pyro's validation takes a tenth of the time: only one or two samples of all data are validated
        with fork_rng():
            for start, stop in plan.pieces(self.rows, len(probe)):
                proposal.log_weights(take(*data, start, stop), probe, prior_fraction)
        # many samples of few data, so that the encoder runs rarely; one sample of many data if samples run in a loop
        self.data_per_run = plan.data_at_once(self.rows, num_samples if self.vectorize else 1)
        self.samples_per_run = max(1, self.rows // self.data_per_run) if self.vectorize else LOOP_SAMPLES
        self.fast: FastWeights | None = None
        if self.vectorize and prior_fraction in (0, 1) and n * num_samples >= COMPILED_SAMPLES and device.type == "cpu":
            num_runs = math.ceil(num_samples / self.samples_per_run)
            self.samples_per_run = math.ceil(num_samples / num_runs)  # runs of equal size share one graph
            with suppress(Exception):  # no compiler, or a pair with control flow on values: it runs eagerly then
                self.fast = FastWeights(proposal, take(*data, 0, self.data_per_run), self.samples_per_run)
        # compiled runs summarize several data together: a summary takes as long as the draws of one
        self.min_weights = 0 if self.fast is None else MIN_WEIGHTS
        self.group = (
            n if plan.whole else self.data_per_run * max(1, self.min_weights // (num_samples * self.data_per_run))
        )

    def draw(self, weights: Weights, data: Data, count: int) -> None:
        """Add `count` weights for each of some data."""
        kinds = self.proposal.plan(count)
        prior_fraction, size = float(kinds.double().mean()), len(data[0][0])
        for start, stop in slices(count, max(self.samples_per_run, self.min_weights // size)):
            pieces = slices(size, self.data_per_run)
            columns = [self._weigh(take(*data, *piece), kinds[start:stop], prior_fraction) for piece in pieces]
            weights.add(torch.cat(columns, 1))

    def _weigh(self, data: Data, kinds: Tensor, prior_fraction: float) -> Tensor:
        """Log-weights `(K, N)` of at most `data_per_run` data."""
        size = LOOP_SAMPLES
        if self.vectorize:
            n = len(data[0][0])
            size = self.samples_per_run if n == self.data_per_run else max(1, self.rows // n)
        found = []
        for start, stop in slices(len(kinds), size):
            log_w = None if self.fast is None else self.fast(data, stop - start)
            found.append(self.proposal.log_weights(data, kinds[start:stop], prior_fraction) if log_w is None else log_w)
        return torch.cat(found)


def _adaptive_weights(
    sampler: _Sampler, data: Data, num_samples: int, max_samples: int, target_error: float | None
) -> Weights:
    """The weights of some data: `num_samples`, doubled while the error of a datum is above the target."""
    n, device = len(data[0][0]), data[0][0].device
    weights = Weights(n, max_samples, device)
    sampler.draw(weights, data, num_samples)
    count, active = num_samples, _above_target(weights, target_error)
    while len(active) and count < max_samples:
        more = min(count, max_samples - count)  # few checks, so that early stopping has little bias
        if sampler.whole:
            active = torch.arange(n, device=device)
        part = Weights(len(active), max_samples, device)
        sampler.draw(part, data if sampler.whole else _select_rows(data, active), more)
        weights.merge(active, part)
        count, active = count + more, _above_target(weights, target_error)
    return weights


def check_finite(weights: Weights, start: int) -> None:
    """Refuse weights that are NaN or infinite, of data whose first index is `start`.

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


def _above_target(weights: Weights, target_error: float | None) -> Tensor:
    """Indices of the data whose error is above the target."""
    if target_error is None:
        return torch.empty(0, dtype=torch.long)
    return (weights.std_error > target_error).nonzero().squeeze(-1)


def _select_rows(data: Data, index: Tensor) -> Data:
    return map_rows(lambda a: a[index.to(a.device)], *data)
