"""Data in splits, as `load` returns them, and their batches on their own device."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.fingerprints import fingerprint

__all__ = ["Data", "Split", "batches_of", "draw_binary", "split_sizes"]


def draw_binary(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Bernoulli draws in the shape, dtype and device of `probs`, all in [0, 1]."""
    # as exact as torch.bernoulli in float32 (uniforms are in [0, 1), so 0 and 1 are certain) and several times faster
    # on a CPU
    return torch.rand(probs.shape, generator=generator, dtype=probs.dtype, device=probs.device).lt_(probs)


@checked
def batches_of(
    tensors: Sequence[Tensor],
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors `(N, *)` of one length into tuples of tensors `(batch_size, *)`, on their own device.

    Arguments are checked and the permutation is drawn at the call, not at the first batch. Without shuffling, batches
    are views: do not write into them.

    Args:
        tensors: Tensors of equal first dimension N.
        batch_size: Data in a batch, between 1 and N.
        shuffle: Go through the data in a random order.
        generator: Draws that order, on its own device; by default the global random state of the data's device.
        drop_last: Leave out the last batch if it is smaller than the others.

    Raises:
        TypeError: For a single tensor in place of a tuple.
        ValueError: For tensors of different lengths, or a batch size outside 1 to N.

    Example:
        >>> x, y = torch.arange(5.0), torch.arange(5)
        >>> for batch, labels in batches_of((x, y), 2):
        ...     print(batch.tolist(), labels.tolist())
        [0.0, 1.0] [0, 1]
        [2.0, 3.0] [2, 3]
        [4.0] [4]
    """
    if isinstance(tensors, Tensor):
        raise TypeError("batches_of expects a tuple of tensors, got one tensor; write (x,)")
    if not tensors or any(t.ndim == 0 for t in tensors) or len({len(t) for t in tensors}) > 1:
        shapes = [tuple(t.shape) for t in tensors]
        raise ValueError(f"batches_of expects tensors of equal first dimension, got shapes {shapes}")
    total, device = len(tensors[0]), tensors[0].device
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if batch_size > total:
        raise ValueError(f"batch_size={batch_size} is more than the {total} data there are; use at most {total}")
    stop = total - total % batch_size if drop_last else total
    starts = range(0, stop, batch_size)
    if not shuffle:
        return (tuple(t[i : i + batch_size] for t in tensors) for i in starts)
    drawn_on = device if generator is None else generator.device
    order = torch.randperm(total, generator=generator, device=drawn_on).to(device)
    return (tuple(t.index_select(0, order[i : i + batch_size]) for t in tensors) for i in starts)


@dataclass(eq=False, repr=False)
class Split:
    """One part of the data; `x` is what the model observes.

    Args:
        intensity: The underlying values `(N, *shape)`: the gray values with dynamic binarization, otherwise the
            observations.
        y: Labels `(N,)`, or `(N, K)` where each datum has several, as int64; or None.
        drawn: A fixed draw `(N, *shape)` that is observed in place of `intensity`.
        dynamic: Observe a fresh Bernoulli draw of `intensity` at each access, from the global random state of its
            device.
        given: The pair's second argument: the labels `(N,)`, -1 for an unlabeled datum; of a table the mask `(N, C)`,
            True where a value is known. None: there is none.
    """

    intensity: Tensor
    y: Tensor | None = None
    drawn: Tensor | None = None
    dynamic: bool = False
    given: Tensor | None = None

    @property
    def _stored(self) -> Tensor:
        return self.intensity if self.drawn is None else self.drawn

    @property
    def x(self) -> Tensor:
        """All observations `(N, *shape)`; drawn anew at each access where `dynamic`."""
        return draw_binary(self.intensity) if self.dynamic else self._stored

    def head(self, n: int) -> Tensor:
        """The first n observations `(n, *shape)`, 1 <= n <= len(self); drawn anew where `dynamic`."""
        if not 1 <= n <= len(self):
            raise ValueError(f"head({n}): expected a number from 1 to {len(self)}, the size of this split")
        return draw_binary(self.intensity[:n]) if self.dynamic else self._stored[:n]

    def args(self, n: int | None = None) -> tuple[Tensor, ...]:
        """The arguments of a pair for the first n data, or all: `(x,)`, or `(x, given)`."""
        n = len(self) if n is None else n
        return (self.head(n),) if self.given is None else (self.head(n), self.given[:n])

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        with_labels: bool = False,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Batches `(x,)` or `(x, given)`, followed by `y` if `with_labels`; the arguments are those of `batches_of`.

        If `dynamic`, each batch is drawn from the global random state when it is taken; `generator` is for the order
        only.

        Raises:
            ValueError: If `with_labels` and there are none, and as `batches_of` does.
        """
        tensors = [self._stored, *([] if self.given is None else [self.given])]
        if with_labels:
            if self.y is None:
                raise ValueError("with_labels=True, but this split has no labels")
            tensors.append(self.y)
        cut = batches_of(tensors, batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last)
        return ((draw_binary(x), *rest) for x, *rest in cut) if self.dynamic else cut

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        y = None if self.y is None else self.y.to(device)
        drawn = None if self.drawn is None else self.drawn.to(device)
        given = None if self.given is None else self.given.to(device)
        return Split(self.intensity.to(device), y, drawn, self.dynamic, given)

    def fingerprint(self) -> str:
        """A short text that differs where any value or label does."""
        stored = (self.intensity, self.drawn, self.given, self.y)
        return fingerprint(*(_single(t) for t in stored if t is not None))

    def __len__(self) -> int:
        return len(self.intensity)

    def __repr__(self) -> str:
        labels = "" if self.y is None else ", labeled"
        return f"Split({len(self)} data, shape {tuple(self.intensity.shape[1:])}{labels})"


def _single(values: Tensor) -> Tensor:
    """Real numbers in float32, as they were read; the default dtype makes no other data of them."""
    return values.float() if values.is_floating_point() else values


@dataclass(eq=False, repr=False)
class Data:
    """A data set in memory, as `load` returns it.

    Args:
        name: Name of the data set.
        train: The training split.
        valid: The validation split, or None.
        test: The test split, or None.
        shape: Shape of one datum.
        binarize: How the observations follow from the values, see `load`.
        seed: Seed of the splits and the fixed draws.
        flatten: Whether each datum is one vector.
        origin: The arguments of `load` that load the same data again, without "data" for a source that is not a path.
    """

    name: str
    train: Split
    valid: Split | None
    test: Split | None
    shape: tuple[int, ...]
    binarize: str
    seed: int
    flatten: bool = False
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """Mean of the training split's `intensity`, of shape `shape`, for `VAE.start_at_mean`."""
        return self.train.intensity.mean(0)

    def to(self, device: torch.device | str) -> "Data":
        """The same data on another device."""
        valid = None if self.valid is None else self.valid.to(device)
        test = None if self.test is None else self.test.to(device)
        return dataclasses.replace(self, train=self.train.to(device), valid=valid, test=test)

    def describe(self) -> dict[str, Any]:
        """A description for JSON that identifies the data.

        `fingerprint` hashes the training split's `intensity`, `contents` all values and labels of each split.
        """
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {
            "name": self.name,
            "binarize": self.binarize,
            "shape": list(self.shape),
            "flatten": self.flatten,
            "counts": self._counts(),
            "seed": self.seed,
            "fingerprint": fingerprint(_single(self.train.intensity)),
            "contents": {name: split.fingerprint() for name, split in splits.items() if split is not None},
        }

    def _counts(self) -> dict[str, int]:
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: 0 if split is None else len(split) for name, split in splits.items()}

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self._counts().items() if count)
        return f"Data({self.name!r}, {counts}, shape {self.shape}, binarize={self.binarize!r})"


def split_sizes(total: int, valid: int | float, test: int | float, generator: torch.Generator) -> dict[str, Tensor]:
    """The indices of the data in each split of `total`: the test split is cut off first, then the validation split.

    Where nothing is cut off, the training data keep their order.

    Raises:
        TypeError, ValueError: For sizes that are no fractions or counts, leave nothing to train on, or nothing of a
            split that was asked for.
    """
    n_test = _count("test", test, total)
    n_valid = _count("valid", valid, total - n_test)
    n_train = total - n_test - n_valid
    order = torch.arange(total) if n_train == total else torch.randperm(total, generator=generator)
    return dict(zip(("test", "valid", "train"), order.split([n_test, n_valid, n_train]), strict=True))


def _count(split: str, size: int | float, available: int) -> int:
    """The number of data in a split, given as a fraction or a count; it must be less than `available`."""
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise TypeError(f"{split}={size!r}: expected a fraction in [0, 1) or a count (int)")
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{split}={size}: a count cannot be negative; 0 leaves the split out")
        count = size
    elif not 0 <= size < 1:
        raise ValueError(f"{split}={size}: a fraction must lie in [0, 1); write a count as an int")
    else:
        count = round(size * available)
    if count >= available:
        raise ValueError(f"{split}={size} takes {count} of {available} data and leaves none to train on; ask for fewer")
    if size > 0 and count == 0:
        raise ValueError(
            f"{split}={size} of {available} data is an empty split; ask for more, or for 0 to leave it out"
        )
    return count
