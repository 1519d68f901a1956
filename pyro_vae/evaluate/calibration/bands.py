"""Are ranks uniform: the test by simultaneous bands of their distribution function, and the bands themselves."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy  # its parts come when they are used

__all__ = ["adjusted", "band", "grid", "uniformity"]

MOST_POINTS = 50  # at which the distribution function is looked at
SMALLEST = 1e-10  # of a pointwise probability, below which Bonferroni's bound is as good as the recursion


@lru_cache(maxsize=64)
def grid(num_samples: int) -> np.ndarray:
    """Ranks at which the distribution function is compared, `(M,)`, of the ranks 0, ..., `num_samples`."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, MOST_POINTS)).round().astype(int))


def uniformity(ranks: np.ndarray, num_samples: int) -> float:
    r"""p-value of the hypothesis that ranks are independent and uniform on 0, ..., `num_samples`.

    .. math:: \gamma = 2 \min_i \min\{F_i(c_i),\; 1 - F_i(c_i - 1)\}, \quad c_i = \#\{r \le r_i\}, \quad
        F_i \text{ of } \mathrm{Bin}\big(S, \tfrac{r_i + 1}{L + 1}\big)

    The p-value is the probability of a smaller value, which a recursion over the points gives without simulation.

    Args:
        ranks: S ranks, `(S,)`.
        num_samples: L.

    Reference: Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522, section 2.
    """
    size = len(ranks)
    if size == 0:
        return float("nan")
    points = grid(num_samples)
    counts = np.searchsorted(np.sort(ranks), points, side="right")
    share = (points + 1) / (num_samples + 1)
    tails = 2 * np.minimum(scipy.stats.binom.cdf(counts, size, share), scipy.stats.binom.sf(counts - 1, size, share))
    return _p_value(float(tails.min()), size, num_samples)


@lru_cache(maxsize=64)
def band(size: int, num_samples: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The simultaneous band of the distribution function at `grid(num_samples)`: its lower and upper edge, `(M,)`.

    All of the function of `size` uniform ranks lies inside with probability `1 - alpha`, or a little more.
    """
    low, high = np.log(alpha / len(grid(num_samples))), np.log(alpha)
    for _ in range(30):  # the widest intervals that are left with probability alpha at most
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(float(np.exp(middle)), size, num_samples) <= alpha else (low, middle)
    lower, upper = _inside(float(np.exp(low)), size, num_samples)
    return lower / size, upper / size


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjustment for several tests; NaN, a test that was not made, stays.

    Reference: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    result = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known])]
    factors = len(order) - np.arange(len(order))
    result[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return result


def _inside(gamma: float, size: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest count at each point whose tail probabilities, doubled, exceed `gamma`."""
    share = (grid(num_samples) + 1) / (num_samples + 1)
    tail = gamma / 2 * (1 + 1e-9)  # what is equal up to rounding is not inside
    return scipy.stats.binom.ppf(tail, size, share).astype(int), scipy.stats.binom.isf(tail, size, share).astype(int)


@lru_cache(maxsize=4096)
def _p_value(gamma: float, size: int, num_samples: int) -> float:
    """The probability that some count of uniform ranks has a doubled tail probability of `gamma` or less."""
    points = grid(num_samples)
    if gamma <= SMALLEST:
        return min(1.0, len(points) * gamma)
    lower, upper = _inside(gamma, size, num_samples)
    if (lower > upper).any():
        return 1.0
    log_factorial = scipy.special.gammaln(np.arange(size + 1) + 1.0)
    share = (points + 1) / (num_samples + 1)
    counts = np.arange(lower[0], upper[0] + 1)
    mass = scipy.stats.binom.pmf(counts, size, share[0])
    for i in range(1, len(points)):  # the counts are a Markov chain: what is left falls into the next cell by chance
        step = (share[i] - share[i - 1]) / (1 - share[i - 1])
        after = np.arange(lower[i], upper[i] + 1)
        left, more = size - counts[:, None], after[None, :] - counts[:, None]
        possible = (more >= 0) & (more <= left)
        more = np.where(possible, more, 0)
        log_pmf = log_factorial[left] - log_factorial[more] - log_factorial[left - more]
        log_pmf = log_pmf + more * np.log(step) + (left - more) * np.log1p(-step)
        mass = mass @ np.where(possible, np.exp(log_pmf), 0.0)
        counts = after
    return float(min(max(1 - mass.sum(), 0.0), 1.0))
