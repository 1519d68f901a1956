"""A positive parameter of a likelihood: a number, one that is learned and shared, or one from the network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pyro_vae.conditionals.base import bounded_exp

__all__ = ["check_positive", "positive_of"]


def check_positive(name: str, value: float | str) -> None:
    """Refuse a setting that is neither a positive number nor "shared" or "pixel".

    Raises:
        ValueError: For such a one.
    """
    if isinstance(value, str):
        if value not in ("shared", "pixel"):
            raise ValueError(f"{name} must be a positive number, 'shared' or 'pixel', got {value!r}")
    elif not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def positive_of(value: float | str, features: Sequence[Tensor], learned: Tensor | None, like: Tensor) -> Tensor:
    """The parameter: from the first of the features ("pixel"), from the learned logarithm ("shared"), or the number."""
    if value == "pixel":
        return bounded_exp(features[0])
    return like.new_full((), float(value)) if learned is None else bounded_exp(learned)
