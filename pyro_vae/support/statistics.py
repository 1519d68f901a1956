"""Errors of sample means."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["mean_and_half_width", "standard_error"]


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values `(N,)`; infinite for one value."""
    return float(values.double().std() / math.sqrt(len(values))) if len(values) > 1 else math.inf


def mean_and_half_width(values: Tensor) -> tuple[float, float]:
    """Mean of independent values `(N,)`, and half the width of its 95 % t-interval; infinite for one value."""
    from scipy.special import stdtrit  # the quantile of Student's t; scipy is slow to import

    mean, n = float(values.double().mean()), len(values)
    return mean, float(stdtrit(n - 1, 0.975)) * standard_error(values) if n > 1 else math.inf
