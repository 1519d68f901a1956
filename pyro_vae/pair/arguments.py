"""Work over data and particles cut to a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["check_data", "map_rows", "slices", "take"]


def check_data(args: tuple[Any, ...]) -> int:
    """The number of data in `args[0]`; every tensor argument with as many rows counts as per-datum."""
    if not args or not isinstance(args[0], Tensor):
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(f"the first argument after the pair must be the tensor of data, (N, ...), got {came}")
    if args[0].dim() == 0 or len(args[0]) == 0:
        raise ValueError(f"the data must have at least one row, got shape {tuple(args[0].shape)}")
    return len(args[0])


def take(
    args: tuple[Any, ...], kwargs: dict[str, Any], start: int, stop: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rows `start:stop` of every per-datum tensor among a pair's arguments; others pass unchanged."""
    return map_rows(lambda a: a[start:stop], args, kwargs)


def map_rows(
    change: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pair's arguments with every per-datum tensor among them changed."""
    n = len(args[0])

    def rows(a: Any) -> Any:
        return change(a) if isinstance(a, Tensor) and a.dim() > 0 and len(a) == n else a

    return tuple(map(rows, args)), {name: rows(a) for name, a in kwargs.items()}


def slices(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) that cover `range(total)`, the last one possibly shorter."""
    for start in range(0, total, size):
        yield start, min(start + size, total)
