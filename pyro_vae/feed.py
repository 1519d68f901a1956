"""Whatever holds data, as one stream of argument tuples for a pair."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data, Split, batches_of

__all__ = ["Feed", "feed"]


class Feed:
    """A stream of batches, each a tuple of arguments for the pair.

    Attributes: `batch_size` (None for a loader), `num_data` and `steps_per_epoch` (None where the source does not
    know), `in_memory`.
    """

    def __init__(self, source: Any, batch_size: int, device: torch.device, max_args: int) -> None:
        self.device, self.max_args = device, max_args
        self.split: Split | None = None
        self.tensors: tuple[Tensor, ...] | None = None
        self.loader: Any = None  # any re-iterable
        self.batch_size: int | None = batch_size
        if isinstance(source, Split):
            self.split = source.to(device)
            self.num_data: int | None = len(source)
        elif isinstance(source, Tensor) or (isinstance(source, tuple) and source and _tensors(source)):
            self.tensors = tuple(t.to(device) for t in ((source,) if isinstance(source, Tensor) else source))
            self.num_data = len(self.tensors[0])
            if not all(len(t) == self.num_data for t in self.tensors):
                shapes = [tuple(t.shape) for t in self.tensors]
                raise ValueError(f"a tuple of data needs tensors with one row per datum, got shapes {shapes}")
            _check_finite(self.tensors)
        elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Iterator):
            self.loader, self.batch_size = source, None
            dataset: Any = getattr(source, "dataset", None)
            self.num_data = len(dataset) if hasattr(dataset, "__len__") else None
        else:
            raise TypeError(
                f"data must be what pv.data.load returns, a tensor, a tuple of tensors or a re-iterable loader of "
                f"batches, got {type(source).__name__}; pv.data.load also takes arrays, files and data sets"
            )
        if self.batch_size is not None and self.num_data is not None:
            if self.num_data == 0:
                raise ValueError("the data are empty: expected at least one datum")
            if not 1 <= self.batch_size <= self.num_data:
                raise ValueError(
                    f"batch_size must be between 1 and the number of data {self.num_data}, got {batch_size}"
                )

    @property
    def in_memory(self) -> bool:
        """Whether all data lie on the device."""
        return self.loader is None

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in one pass, if that can be known."""
        if self.loader is None:
            assert self.num_data is not None
            assert self.batch_size is not None
            return -(-self.num_data // self.batch_size)
        return len(self.loader) if hasattr(self.loader, "__len__") else None

    def describe(self) -> dict[str, Any]:
        """What tells these data from others, ready for JSON; `fingerprint` hashes the first 1000 of data in memory."""
        tensors = self.tensors or () if self.split is None else (self.split.intensity,)
        head = hashlib.sha256()
        for t in tensors:
            head.update(t[:1000].detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return {
            "num_data": self.num_data,
            "shapes": [list(t.shape) for t in tensors],
            "fingerprint": head.hexdigest()[:16] if tensors else None,
        }

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[Any, ...]]:
        """One pass over the data; shuffled if a generator is given (a loader shuffles by itself).

        All data in one batch keep their order, so that a pair may have parameters of its own for each of them.
        """
        shuffle = generator is not None and self.batch_size != self.num_data
        if self.split is not None:
            return self.split.batches(self.batch_size or 1, shuffle=shuffle, generator=generator)
        if self.tensors is not None:
            return batches_of(self.tensors, self.batch_size or 1, shuffle=shuffle, generator=generator)
        return self._loaded()

    def head(self, n: int) -> tuple[Any, ...]:
        """The first `n` data, or all there are, as arguments for the pair; of a loader, the first batch."""
        if self.split is not None:
            return (self.split.head(min(n, len(self.split))),)
        if self.tensors is not None:
            return tuple(t[:n] for t in self.tensors)
        for batch in self._loaded():
            return batch
        raise ValueError("the loader is empty: expected at least one batch")

    def _loaded(self) -> Iterator[tuple[Any, ...]]:
        assert self.loader is not None
        for batch in self.loader:
            members = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            # data sets yield labels whether or not the pair has a use for them
            members = members[: self.max_args]
            if not isinstance(members[0], Tensor):
                raise TypeError(f"the loader must yield tensors or tuples that begin with one, got {type(members[0])}")
            yield tuple(m.to(self.device, non_blocking=True) if isinstance(m, Tensor) else m for m in members)


def feed(source: Any, batch_size: int, device: torch.device, model: Callable[..., Any]) -> Feed:
    """Build a `Feed` for a pair from a split, a tensor, a tuple of tensors or a loader."""
    if isinstance(source, Data):
        source = source.train
    return Feed(source, batch_size, device, _max_args(model))


def _tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(v, Tensor) and v.dim() > 0 for v in values)


def _check_finite(tensors: tuple[Tensor, ...]) -> None:
    for i, t in enumerate(tensors):
        if t.is_floating_point() and not bool(t.isfinite().all()):
            bad = ~t.isfinite().flatten(1).all(1) if t.dim() > 1 else ~t.isfinite()
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"argument {i} of the data has NaN or infinite values in {int(bad.sum())} of {len(t)} data, first "
                f"datum {first}: remove or impute them before training"
            )


def _max_args(model: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1_000
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
