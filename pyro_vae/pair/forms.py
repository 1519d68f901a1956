"""Data in other forms than the rows of a first tensor: in containers, along another axis, in packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.pair.arguments import takes_keywords
from pyro_vae.pair.plates import NoDataPlate, data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import give_sizes, on_all_data
from pyro_vae.pair.tracing import PairTrace
from pyro_vae.pair.untouched import kept_buffers, kept_store
from pyro_vae.support.random import fork_rng

__all__ = ["Form", "InForm", "by_keyword", "form_along", "form_of", "form_with", "held", "in_rows", "innermost"]

MOST_TRIALS = 8  # of which axis the data run along
FEW = 4  # data of a trial


@dataclass(frozen=True)
class Form:
    """How a pair's arguments hold the data: which of the tensors in them have a row for each datum, along which axis.

    Attributes:
        spec: The containers, of (args, kwargs).
        leaves: What stands in them; of the data themselves an empty one.
        axes: The axis of each leaf along which the data run; None for what is the same for all data.
    """

    spec: Any
    leaves: tuple[Any, ...]
    axes: tuple[int | None, ...]

    def rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """The per-datum tensors of some arguments of this form, `(N, ...)` each, numbers with a point first.

        Raises:
            ValueError: For arguments of another form.
        """
        leaves, spec = flattened(args, kwargs)
        if spec != self.spec:
            raise ValueError(f"the data have another form than those before them: {spec} in place of {self.spec}")
        found = [_as_rows(leaves[i], self._axis(i)) for i in self._order]
        return tuple(part for parts in found for part in parts)

    def call(self, program: Program, rows: tuple[Tensor, ...]) -> Any:
        """Call a program on rows, in this form."""
        leaves, given = list(self.leaves), iter(rows)
        for i in self._order:
            leaves[i] = _from_rows(self.leaves[i], self._axis(i), given)
        args, kwargs = tree_unflatten(leaves, self.spec)
        return program(*args, **kwargs)

    def keys(self, rows: tuple[Tensor, ...]) -> Iterator[bytes]:
        """What is in each row of all tensors, or of the first one alone; without the padding of a packed sequence."""
        lengths = None
        if isinstance(self.leaves[self._order[0]], PackedSequence) and len(rows) > 1:
            lengths = rows[1].tolist()
        flat = [part.detach().cpu().contiguous().numpy() for part in rows]
        for i in range(len(flat[0])):
            first = flat[0][i] if lengths is None else flat[0][i, : lengths[i]]
            yield b"".join(part.tobytes() for part in (first, *(part[i] for part in flat[1:])))

    @property
    def _order(self) -> list[int]:
        found = [i for i, axis in enumerate(self.axes) if axis is not None]
        return sorted(found, key=lambda i: not _is_real(self.leaves[i]))

    def _axis(self, i: int) -> int:
        return self.axes[i] or 0


class InForm:
    """A program of a pair that takes rows, and gives them to the program in a form."""

    def __init__(self, program: Program, form: Form) -> None:
        self.program, self.form = program, form

    def __call__(self, *rows: Tensor) -> Any:
        return self.form.call(self.program, rows)


def innermost(program: Program) -> Program:
    """What a program in a form is made of."""
    return innermost(program.program) if isinstance(program, InForm) else program


def held(data: Data) -> Form:
    """The form of data of which no part is taken: a program has them all, whatever rows it is called on."""
    return form_along(data, lambda leaf: None)


def flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """What stands in the containers of a pair's arguments, and these containers."""
    return tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, PackedSequence))


def by_keyword(model: Program, data: Data) -> Data:
    """A dictionary that is the only argument, given by keyword to a model that takes all of its keys."""
    args, kwargs = data
    first = args[0] if len(args) == 1 else None
    if isinstance(first, Mapping) and first and takes_keywords(model, first):
        return (), {**first, **kwargs}
    return data


def form_with(data: Data, n: int, axis: int = 0) -> Form:
    """The form of n data along an axis; along the first one in tensors that have n rows, and another size there."""

    def axis_of(leaf: Any) -> int | None:
        shape = _shape(leaf)
        if len(shape) > axis and shape[axis] == n:
            return axis
        return 0 if shape and shape[0] == n else None

    return form_along(data, axis_of)


def form_along(data: Data, axis_of: Callable[[Any], int | None]) -> Form:
    """The form of data that run along the axis that a function says of what stands in their containers."""
    leaves, spec = flattened(*data)
    axes = tuple(map(axis_of, leaves))
    kept = (leaf if axis is None else _empty(leaf) for leaf, axis in zip(leaves, axes, strict=True))
    return Form(spec, tuple(kept), axes)


def form_of(model: Program, data: Data) -> Form | None:
    """The form of a pair's data, read off the plates of its model; None if no axis of a tensor is that of the data.

    A part of the data is taken along an axis. If that is the axis of the data, the model runs on this part, and all of
    its sites stand in a plate of its size.
    """
    for tried, (n, axis) in enumerate(_candidates(data)):
        if tried == MOST_TRIALS:
            return None
        form = form_with(data, n, axis)
        if _splits(model, form, data, n):
            return form
    return None


def in_rows(model: Program, guide: Any, data: Data) -> tuple[Program, Any, Data, Form | None]:
    """The pair on tensors of N rows, these, and the form that they had.

    None, and all as it was, for data that are rows already, or of which no form is known.
    """
    data = by_keyword(model, data)
    form = form_of(model, data)
    if form is None or _is_plain(form, data):
        return model, guide, data, None
    return InForm(model, form), None if guide is None else InForm(guide, form), (form.rows(*data), {}), form


def _is_plain(form: Form, data: Data) -> bool:
    """Whether the data are rows: the first argument, and other arguments."""
    args, kwargs = data
    in_no_container = len(form.leaves) == len(args) + len(kwargs)
    is_first = bool(args) and isinstance(args[0], Tensor) and form.axes[0] == 0
    return in_no_container and is_first and not any(form.axes)


def _candidates(data: Data) -> Iterator[tuple[int, int]]:
    """How many data there may be, and along which axis: first those of the first tensor."""
    seen = set()
    leaves = [leaf for leaf in flattened(*data)[0] if _shape(leaf)]
    for leaf in sorted(leaves, key=lambda leaf: not _is_real(leaf)):
        for axis, n in enumerate(_shape(leaf)):
            if n and (n, axis) not in seen:
                seen.add((n, axis))
                yield n, axis


def _splits(model: Program, form: Form, data: Data, n: int) -> bool:
    """Whether the model runs on parts of the data, with all of its sites in a plate of the part's size."""
    rows = form.rows(*data)
    program = on_all_data(InForm(model, form))
    sizes = {min(n, FEW), max(1, min(n, FEW) - 1)}
    with torch.no_grad(), fork_rng(), kept_store(), kept_buffers(model), suppress(Exception):
        for size in sizes:  # whatever the model raises on a part, it does not split
            trace = prune_subsample_sites(traced(program, tuple(a[:size].clone() for a in rows), {}))
            give_sizes(trace)
            try:
                data_plate(PairTrace(trace, Trace()), size)
            except NoDataPlate:
                return False
        return True
    return False


def _shape(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, PackedSequence):
        return (int(leaf.batch_sizes[0]),)
    return tuple(leaf.shape) if isinstance(leaf, Tensor | np.ndarray) else ()


def _empty(leaf: Any) -> Any:
    """Something of a leaf's kind: a form does not hold on to data."""
    if isinstance(leaf, PackedSequence):
        first = None if leaf.sorted_indices is None else torch.zeros(1, dtype=torch.long)
        return PackedSequence(leaf.data.new_empty(1), torch.ones(1, dtype=torch.long), first, first)
    return np.empty(0, leaf.dtype) if isinstance(leaf, np.ndarray) else leaf.new_empty(0)


def _is_real(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind == "f"
    return bool((leaf.data if isinstance(leaf, PackedSequence) else leaf).is_floating_point())


def _as_rows(leaf: Any, axis: int) -> tuple[Tensor, ...]:
    if isinstance(leaf, PackedSequence):
        return pad_packed_sequence(leaf, batch_first=True)  # (N, T, ...) and the lengths (N,)
    if isinstance(leaf, np.ndarray):
        leaf = torch.as_tensor(leaf if leaf.flags.writeable else leaf.copy())
    return (leaf.movedim(axis, 0) if axis else leaf,)


def _from_rows(leaf: Any, axis: int, given: Iterator[Tensor]) -> Any:
    value = next(given)
    if isinstance(leaf, PackedSequence):
        lengths = next(given).cpu()
        # as it was: a program may read the packed data themselves
        in_order = leaf.sorted_indices is None and bool((lengths[:-1] >= lengths[1:]).all())
        return pack_padded_sequence(value, lengths, batch_first=True, enforce_sorted=in_order)
    value = value.movedim(0, axis) if axis else value
    return value.numpy() if isinstance(leaf, np.ndarray) else value
