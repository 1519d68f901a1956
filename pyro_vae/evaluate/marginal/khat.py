"""The Pareto k-hat: how reliable the tail of importance weights is."""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

__all__ = ["khat_threshold", "pareto_khat", "tail_size"]

MIN_TAIL = 5


def tail_size(num_samples: int) -> int:
    """Number of weights in the tail of `num_samples` weights: `min(0.2 K, 3 sqrt K)`, rounded up."""
    return math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """The largest k-hat at which the mean of `num_samples` weights is reliable: `min(1 - 1/log10 K, 0.7)`."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def pareto_khat(largest: Tensor, num_samples: int, rounding: float = 0.0) -> float:
    """Shape of the generalized Pareto distribution fitted to the largest importance weights of one datum.

    Above 0.5 the variance of the weights appears to be infinite; above 0.7 more samples hardly improve their mean.

    Args:
        largest: The largest log-weights in descending order, at least `tail_size(num_samples) + 1`.
        num_samples: Total number of weights.
        rounding: Log-weights this close to each other count as equal.

    Returns:
        The k-hat; -inf if all weights of the tail are equal (an exact proposal); inf if fewer than five weights are
        above the threshold of the tail, or if all are zero; NaN for fewer than 25 samples, which are too few for a
        tail.

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv 1507.02646, section 3.
    """
    size = tail_size(num_samples)
    if num_samples < MIN_TAIL**2:
        return math.nan
    largest = largest[: size + 1].double().cpu()
    if largest[0] == -math.inf:
        return math.inf
    if largest[0] - largest[size] <= rounding:
        return -math.inf
    weights = (largest - largest[0]).exp()
    excess = weights[:size] - weights[size]
    excess = excess[excess > torch.finfo(excess.dtype).tiny]  # discrete latents give ties at the threshold
    if len(excess) < MIN_TAIL:
        return math.inf
    try:
        return float(fit_generalized_pareto(excess)[0])
    except ZeroDivisionError:  # the best fit is exactly an exponential tail, possible with ties
        return 0.0
