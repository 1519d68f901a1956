"""Distributions that do not look at values, so that their densities can be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributions import Distribution

__all__ = ["unvalidated"]


@contextmanager
def unvalidated() -> Iterator[None]:
    """Within it no distribution checks values, not even one that was told to when it was made."""
    owner: Any = Distribution
    before = owner._validate_args
    owner._validate_args = _Off()
    try:
        yield
    finally:
        owner._validate_args = before


class _Off:
    """An attribute that is read as False and keeps what is written to it for later."""

    def __get__(self, instance: Any, owner: Any) -> bool:
        return False

    def __set__(self, instance: Any, value: bool) -> None:
        instance.__dict__["_validate_args"] = value
