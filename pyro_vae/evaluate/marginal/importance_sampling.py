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
from pyro_vae.evaluate.marginal.proposals import Data, Program, Proposal, as_guide
from pyro_vae.evaluate.marginal.result import LogMarginal, join, marginal_of
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import map_rows, slices, take
from pyro_vae.pair.particles import default_memory, joint_log_weight, particles_agree, row_bytes, warn_not_vectorized
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.tracing import plate_nesting, trace_pair
from pyro_vae.support.progress import Advance, progress_bar, until_interrupted
from pyro_vae.support.random import fork_rng

__all__ = ["CPU_ROWS", "importance"]

CPU_ROWS = 2048  # larger chunks fall out of the cache
COMPILED_SAMPLES = 2_000_000  # from so many in all it pays to compile, which halves the time of each
GATHERED = 2**16  # log-weights that are kept before they are looked at
LOOPED = 256  # samples between two looks at the weights where samples run one at a time


def importance(
    model: Program,
    guide: Program | None,
    data: Data,
    *,
    num_samples: int,
    prior_share: float,
    target_error: float | None,
    max_samples: int,
    memory: int | None,
    progress: bool | None,
) -> LogMarginal:
    """`log_marginal` by importance sampling; runs without gradients, the networks in evaluation mode already.

    Args:
        model, guide: The pair; without a guide the proposal is the prior.
        data: The pair's positional and keyword arguments.
        prior_share: Share of the samples drawn from the prior.
        num_samples, target_error, max_samples, memory, progress: See `log_marginal`.
    """
    x, n = data[0][0], len(data[0][0])
    guide = as_guide(model) if guide is None else guide
    few, whole = take(*data, 0, min(n, 5)), False
    with fork_rng():
        try:
            nesting = _nesting(model, guide, few)
        except (RuntimeError, ValueError):  # parameters made for each datum only fit the whole data
            few, whole = data, True
            nesting = _nesting(model, guide, few)
    vectorize = particles_agree(model, guide, few[0], **few[1])
    if not vectorize:
        warn_not_vectorized()
    proposal = Proposal(model, guide, prior_share, vectorize, nesting)
    with fork_rng():
        proposal.check(few)
    probe = proposal.plan(2 if vectorize else 1) if prior_share in (0, 1) else torch.tensor([False, True])
    bytes_each = row_bytes(lambda: proposal.log_weights(few, probe, prior_share), len(probe) * len(few[0][0]))
    rows = max(1, (memory or default_memory(x.device)) // bytes_each)
    if x.device.type == "cpu":
        rows = min(rows, CPU_ROWS)
    # Pyro's checks of every value cost a tenth of the time: they are made on a sample or two of all data, then no more
    with fork_rng():
        for start, stop in slices(n, n if whole else max(1, rows // len(probe))):
            proposal.log_weights(take(*data, start, stop), probe, prior_share)
    # many samples of few data, so that encoders run seldom; one sample of many data if particles run in a loop
    per_data = n if whole else max(1, rows // num_samples if vectorize else rows)

    chunk = max(1, rows // per_data) if vectorize else LOOPED
    fast = None
    if vectorize and prior_share in (0, 1) and n * num_samples >= COMPILED_SAMPLES and x.device.type == "cpu":
        chunk = math.ceil(num_samples / math.ceil(num_samples / chunk))  # equal chunks, for one graph
        with suppress(Exception):  # no compiler, or a pair whose Python looks at values: then it runs eagerly
            fast = FastWeights(proposal, take(*data, 0, per_data), chunk)
    # compiled, the weights of several data are looked at together: each look would take as long as drawing them
    gathered = 0 if fast is None else GATHERED
    group = n if whole else per_data * max(1, gathered // (num_samples * per_data))

    def weigh(some: Data, plan: Tensor, share: float) -> Tensor:
        """Log-weights `(K, N)` of at most `per_data` data."""
        size = chunk if len(some[0][0]) == per_data else max(1, rows // len(some[0][0])) if vectorize else LOOPED
        found = []
        for start, stop in slices(len(plan), size):
            log_w = None if fast is None else fast(some, stop - start)
            found.append(proposal.log_weights(some, plan[start:stop], share) if log_w is None else log_w)
        return torch.cat(found)

    def draw(weights: Weights, data: Data, count: int) -> None:
        plan = proposal.plan(count)
        share, size = float(plan.double().mean()), len(data[0][0])
        for start, stop in slices(count, max(chunk, gathered // size)):
            columns = [weigh(take(*data, *block), plan[start:stop], share) for block in slices(size, per_data)]
            weights.add(torch.cat(columns, 1))

    def parts(advance: Advance) -> Iterator[LogMarginal]:
        for start, stop in slices(n, group):
            some = take(*data, start, stop)
            weights = Weights(stop - start, max_samples if target_error else num_samples, x.device)
            draw(weights, some, num_samples)
            count, active = num_samples, _unfinished(weights, target_error)
            while len(active) and count < max_samples:
                more = min(count, max_samples - count)  # few looks, so that stopping early biases little
                if whole:
                    active = torch.arange(stop - start, device=x.device)
                part = Weights(len(active), max_samples, x.device)
                draw(part, some if whole else _rows(some, active), more)
                weights.merge(active, part)
                count, active = count + more, _unfinished(weights, target_error)
            check_finite(weights, start)
            yield marginal_of(weights, x.dtype, method="importance" if prior_share < 1 else "prior")
            advance(stop - start)

    with progress_bar("log p(x)", n, progress) as advance, pyro.validation_enabled(False):
        found, interrupted = until_interrupted(parts(advance))
    return dataclasses.replace(join(found), interrupted=interrupted)


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


def _nesting(model: Program, guide: Program, data: Data) -> int:
    """The number of batch dimensions of a pair, if it has a number per datum at all."""
    traces = trace_pair(model, guide, *data)
    joint_log_weight(traces, data_plate(traces, len(data[0][0])))
    return plate_nesting(traces.model, traces.guide)
