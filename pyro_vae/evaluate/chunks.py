"""Work over data and particles cut to a memory budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_vae.elbo.tracing import fork_rng

__all__ = ["check_data", "default_memory", "map_rows", "row_bytes", "slices", "take", "until_interrupted"]

T = TypeVar("T")


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


def until_interrupted(parts: Iterable[T]) -> tuple[list[T], bool]:
    """The parts of some work, or those that were finished when Ctrl-C stopped it, with a warning; and whether it did.

    Raises:
        KeyboardInterrupt: If nothing was finished.
    """
    done: list[T] = []
    try:
        for part in parts:
            done.append(part)  # noqa: PERF402  the parts so far must survive
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn("interrupted: the result holds only the data that were finished", stacklevel=3)
        return done, True
    return done, False


def slices(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) that cover `range(total)`, the last one possibly shorter."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


class _LargestTensor(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # a view, of a weight matrix say, takes no memory of its own
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in old:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def row_bytes(run: Callable[[], Any], rows: int) -> int:
    """Estimated peak bytes for one row (one datum and particle) of `run`, which works on `rows` of them.

    Without autograd few intermediates live at once; eight of the largest size is what dense and convolutional pairs
    were seen to stay under.
    """
    with torch.no_grad(), fork_rng(), _LargestTensor() as largest:
        run()
    return max(1, 8 * largest.bytes // rows)


def default_memory(device: torch.device) -> int:
    """Bytes that an evaluation may use when nothing is said: half of a GPU's free memory, 512 MiB on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 512 * 2**20
