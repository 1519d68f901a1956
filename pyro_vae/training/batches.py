"""Batches of any data source, as tuples of arguments for a pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler, TensorDataset

from pyro_vae.data import Data, Split, batches_of
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.pair.arguments import take
from pyro_vae.support.fingerprints import fingerprint
from pyro_vae.training.forms import as_tensors

__all__ = ["BATCH_SIZE", "HEAD", "Batches", "Head", "batches_for", "nonfinite_values"]

HEAD = 1000  # number of training data on which a run is monitored
BATCH_SIZE = 100  # unless there are fewer data


class Batches:
    """The batches of a run, each a tuple of arguments for the pair.

    With several processes, each process stores all data that are in memory and takes its shard of each batch (`shard`).
    From a loader, each process loads batches of the loader's size from its own shard of the data set.

    Attributes: `batch_size` (None for a loader), `num_data` and `steps_per_epoch` (None if the source has no length),
    `in_memory`.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int | None,
        device: torch.device,
        max_args: int,
        ranks: Ranks | None = None,
        trains: bool = True,
    ) -> None:
        self.device, self.max_args, self.ranks = device, max_args, ranks or Ranks()
        self.split: Split | None = None
        self.tensors: tuple[Tensor, ...] | None = None
        self.loader: Any = None  # any re-iterable
        source = as_tensors(source)
        if isinstance(source, Split):
            if source.given is not None and max_args < 2:
                raise ValueError(
                    "the data come with labels for the pair, but the pair takes only the data: load them without labels"
                )
            self.split = source.to(device)
            self.num_data: int | None = len(source)
        elif isinstance(source, Tensor) or (isinstance(source, tuple) and source and _tensors(source)):
            self.tensors = tuple(t.to(device) for t in ((source,) if isinstance(source, Tensor) else source))
            self.num_data = len(self.tensors[0])
            if not all(len(t) == self.num_data for t in self.tensors):
                shapes = [tuple(t.shape) for t in self.tensors]
                raise ValueError(f"a tuple of data needs tensors with one row per datum, got shapes {shapes}")
            if problem := nonfinite_values(self.tensors):
                raise ValueError(f"{'' if trains else 'the validation data: '}{problem}: remove or impute them")
        elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Iterator):
            self.loader = source if self.ranks.size == 1 else _sharded(source, self.ranks, trains)
            dataset: Any = getattr(source, "dataset", None)
            self.num_data = len(dataset) if hasattr(dataset, "__len__") else None
        else:
            raise TypeError(
                f"data must be what pv.data.load returns, a tensor, a tuple of tensors or a re-iterable loader of "
                f"batches, got {type(source).__name__}; pv.data.load also takes arrays, files and data sets"
            )
        self.batch_size: int | None = None
        if self.in_memory and self.num_data is not None:
            if self.num_data == 0:
                raise ValueError("the data are empty: expected at least one datum")
            self.batch_size = min(BATCH_SIZE, self.num_data) if batch_size is None else batch_size
            if not 1 <= self.batch_size <= self.num_data:
                raise ValueError(
                    f"batch_size must be between 1 and the number of data {self.num_data}, got {batch_size}"
                )

    @property
    def in_memory(self) -> bool:
        """Whether all data are on the device."""
        return self.loader is None

    @property
    def steps_per_epoch(self) -> int | None:
        """The number of batches in one pass; None if the source has no length."""
        if self.loader is None:
            assert self.num_data is not None
            assert self.batch_size is not None
            return -(-self.num_data // self.batch_size)
        return len(self.loader) if hasattr(self.loader, "__len__") else None

    def describe(self) -> dict[str, Any]:
        """Size, shapes and fingerprints, ready for JSON.

        `fingerprint` is that of the first 1000 data in memory, which checkpoints have always held; `content` is that of
        all that the pair is given. A loader has one if it is a list of batches, or loads a `TensorDataset`.
        """
        tensors = self.tensors or () if self.split is None else (self.split.intensity,)
        return {
            "num_data": self.num_data,
            "shapes": [list(t.shape) for t in tensors],
            "fingerprint": fingerprint(*(t[:1000] for t in tensors)) if tensors else None,
            "content": fingerprint(*stored) if (stored := self._stored()) else None,
        }

    def _stored(self) -> Sequence[Tensor]:
        """All tensors in memory from which batches are taken."""
        if self.split is not None:
            return [t for t in (self.split.intensity, self.split.drawn, self.split.given) if t is not None]
        if self.tensors is not None:
            return self.tensors
        dataset = getattr(self.loader, "dataset", None)
        if isinstance(dataset, TensorDataset):
            return dataset.tensors
        batches = self.loader if isinstance(self.loader, list | tuple) else ()
        members = [m for batch in batches for m in (batch if isinstance(batch, list | tuple) else (batch,))]
        return members if _tensors(members) else ()

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[Any, ...]]:
        """One pass over the data, shuffled if a generator is given (a loader shuffles by itself).

        If one batch holds all data, it is not shuffled, so that a pair may have parameters for each datum.
        """
        shuffle = generator is not None and self.batch_size != self.num_data
        if self.split is not None:
            return self.split.batches(self.batch_size or 1, shuffle=shuffle, generator=generator)
        if self.tensors is not None:
            return batches_of(self.tensors, self.batch_size or 1, shuffle=shuffle, generator=generator)
        sampler = getattr(self.loader, "sampler", None)
        if self.ranks.size > 1 and isinstance(sampler, DistributedSampler) and generator is not None:
            sampler.set_epoch(int(torch.randint(2**31, (), generator=generator)))  # the same order on all ranks
        return self._loaded()

    def shard(self, batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], float]:
        """This rank's shard of a batch, and the weight of its mean in the mean over all ranks."""
        if self.ranks.size == 1:
            return batch, 1.0
        if not self.in_memory:
            return batch, 1 / self.ranks.size
        start, stop, weight = self.ranks.rows(len(batch[0]))
        return take(batch, {}, start, stop)[0], weight

    def head(self, n: int) -> tuple[Any, ...]:
        """The first `n` data (or all, if there are fewer) as arguments for the pair; the first batch of a loader."""
        if self.split is not None:
            return self.split.args(min(n, len(self.split)))
        if self.tensors is not None:
            return tuple(t[:n] for t in self.tensors)
        for batch in self._loaded():
            return batch
        raise ValueError("the loader is empty: expected at least one batch")

    def monitored_head(self, parts: int) -> Head:
        """The first data, on which a run is monitored; each batch is split into `parts` parts."""
        # a pair with parameters per datum can only run on all data at once
        is_whole = self.batch_size is not None and self.batch_size == self.num_data and parts == 1
        return Head(self, self.head(self.batch_size if is_whole and self.batch_size else HEAD), is_whole)

    def _loaded(self) -> Iterator[tuple[Any, ...]]:
        assert self.loader is not None
        for batch in self.loader:
            members = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            # data sets yield labels whether or not the pair takes them
            members = members[: self.max_args]
            if not isinstance(members[0], Tensor):
                raise TypeError(f"the loader must yield tensors or tuples that begin with one, got {type(members[0])}")
            if members[0].dim() == 0:
                raise TypeError("the loader must yield batches, tensors with one row per datum, got a single number")
            yield tuple(m.to(self.device, non_blocking=True) if isinstance(m, Tensor) else m for m in members)


@dataclass(frozen=True)
class Head:
    """The first training data.

    Attributes:
        source: The batches that they come from.
        args: The first 1000 data at most, or all data if one batch holds them, as arguments for the pair.
        is_whole: Whether one batch holds all data.
    """

    source: Batches
    args: tuple[Any, ...]
    is_whole: bool

    @property
    def example_args(self) -> tuple[Any, ...]:
        """The arguments to try the pair on: eight data, or all if one batch holds them."""
        return self.args if self.is_whole else tuple(a[:8] if isinstance(a, Tensor) else a for a in self.args)


def batches_for(
    source: Any,
    batch_size: int | None,
    device: torch.device,
    model: Callable[..., Any],
    ranks: Ranks | None = None,
    *,
    trains: bool = True,
) -> Batches:
    """Batches for a pair from a split, a tensor, a tuple of tensors or a loader, for training or measuring."""
    if isinstance(source, Data):
        source = source.train
    return Batches(source, batch_size, device, _max_args(model), ranks, trains)


def _sharded(loader: Any, ranks: Ranks, trains: bool) -> DataLoader[Any]:
    """A copy of a loader that loads a rank's shard of the data set.

    Training needs shards of equal size, so some data are loaded twice.
    """
    is_supported = isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler | SequentialSampler)
    if not is_supported or loader.batch_size is None:
        raise ValueError(
            f"several processes cannot share the data of {type(loader).__name__}: pass data in memory, or a torch "
            "DataLoader with a batch_size and torch's sequential or random sampler"
        )
    dataset: Any = loader.dataset
    sampler: Any = range(ranks.rank, len(dataset), ranks.size)
    if trains:
        shuffle = isinstance(loader.sampler, RandomSampler)
        sampler = DistributedSampler(dataset, ranks.size, ranks.rank, shuffle=shuffle)
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(v, Tensor) and v.dim() > 0 for v in values)


def nonfinite_values(args: Iterable[Any]) -> str | None:
    """Which data of the tensors among `args` have NaN or infinite values; None if there are none."""
    for i, t in enumerate(args):
        if isinstance(t, Tensor) and t.dim() and t.is_floating_point() and not bool(t.isfinite().all()):
            bad = ~t.isfinite().flatten(1).all(1) if t.dim() > 1 else ~t.isfinite()
            first = int(bad.nonzero()[0])
            return (
                f"argument {i} of the data has NaN or infinite values in {int(bad.sum())} of {len(t)} data, first "
                f"datum {first}"
            )
    return None


def _max_args(model: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1_000
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
