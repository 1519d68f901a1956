"""Errors of sample means."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["standard_error"]


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values `(N,)`; infinite for one value."""
    return float(values.double().std() / math.sqrt(len(values))) if len(values) > 1 else math.inf
