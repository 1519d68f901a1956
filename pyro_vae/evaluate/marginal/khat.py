"""How far the tail of importance weights can be trusted: the Pareto k-hat."""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

__all__ = ["khat_threshold", "pareto_khat", "tail_size"]

MIN_TAIL = 5


def tail_size(num_samples: int) -> int:
    """Number of weights that make the tail of `num_samples`: `min(0.2 K, 3 sqrt K)`, rounded up."""
    return math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """The largest k-hat of `num_samples` weights with which their mean is to be trusted: `min(1 - 1/log10 K, 0.7)`."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def pareto_khat(largest: Tensor, num_samples: int, rounding: float = 0.0) -> float:
    """Shape of the generalised Pareto distribution fitted to the largest importance weights of one datum.

    A k-hat above 0.5 means a variance of the weights that looks infinite, one above 0.7 a mean that more samples hardly
    improve.

    Args:
        largest: Log-weights in descending order, `tail_size(num_samples) + 1` of them at least.
        num_samples: Number of weights in all.
        rounding: Log-weights this close to each other count as equal.

    Returns:
        The k-hat; -inf if the tail's weights are all equal (an exact proposal), inf if fewer than five weights stand
        out of the others or from zero, NaN for fewer than 25 samples, which have no tail to speak of.

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
    except ZeroDivisionError:  # where the best fit is an exponential tail to the last digit, as ties can make it
        return 0.0
