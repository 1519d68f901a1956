"""The marginal likelihood log p(x) of any pair, per datum, by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.tracing import (
    data_plate,
    fork_rng,
    joint_log_weight,
    log_weights,
    particles_agree,
    plate_nesting,
    trace_pair,
    warn_not_vectorized,
)
from pyro_vae.evaluate.chunks import check_data, default_memory, row_bytes, slices, take
from pyro_vae.evaluate.modules import beside_networks, eval_mode
from pyro_vae.progress import progress_bar

__all__ = ["LogMarginal", "log_marginal"]


@dataclass(frozen=True, repr=False)
class LogMarginal:
    """Per-datum estimates of log p(x) in nats, each a tensor of shape `(N,)`.

    Attributes:
        log_prob: Log of the mean importance weight. Its expectation is below log p(x), and rises to it with
            `num_samples`.
        std_error: Monte Carlo standard error of `log_prob` (delta method). It sees only the weights that were drawn:
            with a small `ess` it is itself unreliable.
        ess: Effective sample size (sum w)^2 / sum w^2, between 1 and `num_samples`.
        num_samples: Importance samples per datum.
    """

    log_prob: Tensor
    std_error: Tensor
    ess: Tensor
    num_samples: int

    @property
    def mean(self) -> float:
        """Mean of `log_prob` over the data, nats per datum."""
        return float(self.log_prob.double().mean())

    @property
    def mean_error(self) -> float:
        """Monte Carlo standard error of `mean` for these data: what more samples would reduce."""
        return float(self.std_error.double().square().sum().sqrt() / len(self.std_error))

    @property
    def sampling_error(self) -> float:
        """Standard error of `mean` as an estimate for the whole population: what more data would reduce."""
        n = len(self.log_prob)
        return float(self.log_prob.double().std() / math.sqrt(n)) if n > 1 else math.inf

    def __len__(self) -> int:
        return len(self.log_prob)

    def __repr__(self) -> str:
        return (
            f"log p(x) = {self.mean:.3f} ± {self.mean_error:.3f} nats per datum "
            f"({len(self)} data, {self.num_samples} samples each; ESS median {float(self.ess.median()):.1f}, "
            f"min {float(self.ess.min()):.1f})"
        )

    def to_dict(self) -> dict[str, float]:
        """The data-set figures, for a table or JSON."""
        return {
            "log_prob": self.mean,
            "log_prob_error": self.mean_error,
            "log_prob_sampling_error": self.sampling_error,
            "ess_median": float(self.ess.median()),
            "ess_min": float(self.ess.min()),
            "num_samples": self.num_samples,
            "num_data": len(self),
        }


def log_marginal(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 5000,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x) of every datum with the guide as proposal.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    Works for any pair whose sites stand in a plate over the data. Scales (a KL weight in the objective, subsampling)
    never enter. Networks are put in evaluation mode for the call.

    Args:
        model, guide: The pair.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        num_samples: Importance samples per datum, K.
        memory: Bytes that intermediate tensors may take, about. It sets how data and samples are chunked, and so which
            noise is drawn, never the estimate beyond that noise.
        seed: Draw the noise from this seed and leave torch's generators as they were. None continues their stream.
        progress: Show a bar: True, False, or None (only in a terminal).

    Raises:
        ValueError: If a site stands outside the plate over the data, if latent sites differ between model and guide, if
            an importance weight is NaN or infinite, or if `num_samples` is not positive.

    Reference: Rezende et al. 2014, arXiv 1401.4082, appendix E; Burda et al. 2016, arXiv 1509.00519.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior: every weight is p(x)
        >>> x = torch.tensor([0.0, 1.0])
        >>> result = log_marginal(model, guide, x, num_samples=10)
        >>> torch.allclose(result.log_prob, dist.Normal(0.0, 2**0.5).log_prob(x))
        True
    """
    n = check_data(args)
    args = beside_networks(args, model, guide)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    with torch.no_grad(), eval_mode(model, guide), fork_rng(seed) if seed is not None else nullcontext():
        few, whole = take(args, kwargs, 0, min(n, 5)), False
        with fork_rng():
            try:
                nesting = _nesting(model, guide, *few)
            except (RuntimeError, ValueError):  # parameters made for each datum only fit the whole data
                few, whole = (args, kwargs), True
                nesting = _nesting(model, guide, *few)
        vectorize = particles_agree(model, guide, few[0], **few[1])
        if not vectorize:
            warn_not_vectorized()

        def weights(data: tuple[tuple[Any, ...], dict[str, Any]], count: int) -> Tensor:
            return log_weights(model, guide, *data, num_particles=count, vectorize=vectorize, nesting=nesting).double()

        probe = 2 if vectorize else 1
        bytes_each = row_bytes(lambda: weights(few, probe), probe * len(few[0][0]))
        rows = max(1, (memory or default_memory(args[0].device)) // bytes_each)
        if args[0].device.type == "cpu":
            rows = min(rows, CPU_ROWS)  # larger chunks fall out of the cache
        # many samples of few data, so that encoders run seldom; one sample of many data if particles run in a loop
        per_data = n if whole else max(1, rows // num_samples if vectorize else rows)
        per_sample = min(num_samples, max(1, rows // per_data)) if vectorize else 1
        results = []
        with progress_bar("log p(x)", n, progress) as advance:
            for start, stop in slices(n, per_data):
                data = take(args, kwargs, start, stop)
                results.append(_accumulate(partial(weights, data), num_samples, per_sample))
                bad = ~(results[-1][0] < math.inf)
                if bad.any():
                    index = start + int(bad.nonzero()[0])
                    raise ValueError(
                        f"{int(bad.sum())} of the data {start}..{stop - 1} have a NaN or infinite importance weight, "
                        f"first datum {index}: pv.preflight(model, guide, x[{index}:{index + 1}]) names the site"
                    )
                advance(stop - start)
    log_sum, log_sum_sq = (torch.cat(parts) for parts in zip(*results, strict=True))
    return _summarise(log_sum, log_sum_sq, num_samples, args[0].dtype)


CPU_ROWS = 2048


def _nesting(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> int:
    """The number of batch dimensions of a pair, if it has a number per datum at all."""
    traces = trace_pair(model, guide, args, kwargs)
    joint_log_weight(traces, data_plate(traces, len(args[0])))
    return plate_nesting(traces.model, traces.guide)


def _accumulate(draw: Callable[[int], Tensor], num_samples: int, chunk: int) -> tuple[Tensor, Tensor]:
    """log sum w and log sum w^2 per datum over all samples, whatever the chunk."""
    log_sum = log_sum_sq = torch.tensor(-math.inf)
    for start, stop in slices(num_samples, chunk):
        log_w = draw(stop - start)
        log_sum = torch.logaddexp(log_sum.to(log_w), log_w.logsumexp(0))
        log_sum_sq = torch.logaddexp(log_sum_sq.to(log_w), (2 * log_w).logsumexp(0))
    return log_sum, log_sum_sq


def _summarise(log_sum: Tensor, log_sum_sq: Tensor, k: int, dtype: torch.dtype) -> LogMarginal:
    inverse_ess = (log_sum_sq - 2 * log_sum).exp()
    # no weight above zero at all: the estimate is -inf and nothing is known about its error
    inverse_ess = torch.where(log_sum == -math.inf, math.inf, inverse_ess)
    if k > 1:
        std_error = ((inverse_ess - 1 / k).clamp(min=0) * k / (k - 1)).sqrt()
    else:
        std_error = torch.full_like(log_sum, math.inf)
    dtype = torch.promote_types(dtype, torch.float32)
    return LogMarginal((log_sum - math.log(k)).to(dtype), std_error.to(dtype), (1 / inverse_ess).to(dtype), k)
