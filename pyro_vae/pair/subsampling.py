"""Plates whose size or indices a pair leaves open: sizes read off, all indices in place of a draw, or one draw."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.pair.protocol import Program
from pyro_vae.pair.rows import rows_named

__all__ = ["SameIndices", "give_sizes", "on_all_data", "plate_of_rows"]

SUBSAMPLE = SubsampleMessenger._subsample
UNSIZED = -1  # Pyro's size of `pyro.plate(name)`


def give_sizes(*traces: Any) -> None:
    """Give the plates without a size the one that they have elsewhere in the traces, or that of what is inside them.

    `pyro.plate("data")` says that its dimension is independent, and leaves the size to the distributions in it.
    """
    sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]
    frames = [(f, site) for site in sites for f in site["cond_indep_stack"] if f.vectorized]
    if all(f.size != UNSIZED for f, _ in frames):
        return
    found: dict[str, tuple[int, int]] = {f.name: (f.size, f.full_size) for f, _ in frames if f.size != UNSIZED}
    inside: dict[str, int] = {}
    for f, site in frames:
        if f.name not in found:
            inside[f.name] = max(inside.get(f.name, 1), *(_size(shape, f.dim) for shape in _batch_shapes(site)))
    found |= {name: (size, size) for name, size in inside.items()}
    for site in sites:
        site["cond_indep_stack"] = tuple(
            f._replace(size=found[f.name][0], full_size=found[f.name][1]) if f.size == UNSIZED and f.vectorized else f
            for f in site["cond_indep_stack"]
        )


def _batch_shapes(site: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    fn, value = site["fn"], site["value"]
    event_dim = getattr(fn, "event_dim", 0)
    yield tuple(getattr(fn, "batch_shape", ()))
    if isinstance(value, Tensor):
        yield tuple(value.shape[: value.dim() - event_dim])


def _size(shape: tuple[int, ...], dim: int) -> int:
    return shape[dim] if len(shape) >= -dim else 1


class SameIndices(Messenger):
    """Every plate that draws its indices draws them once within this context, and has the same ones in later runs."""

    def __init__(self) -> None:
        super().__init__()
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample) and msg["value"] is None and msg["name"] in self.indices:
            msg["value"], msg["done"] = self.indices[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample) and isinstance(msg["value"], Tensor):
            self.indices.setdefault(msg["name"], msg["value"])


def plate_of_rows(name: str, n: int, whole: int, dim: int, device: Any = None) -> Any:
    """The plate of a guide over n rows out of `whole`, which of them it need not know.

    Indices are given and not drawn: the model may be given those that they really are.
    """
    rows = None if whole == n else torch.arange(n, device=device)
    return pyro.plate(name, whole, subsample=rows, dim=dim)


def on_all_data(program: Program, *, weighed: bool = True) -> Program:
    """The program with all of the elements of each plate that would draw a part of them by itself.

    A density is that of all data, and of all elements of a datum; which of them a step is trained on belongs to the
    training. A plate of as many elements as there are rows in the data keeps them: these are a minibatch already,
    which the plate only weighs; not even that if not `weighed`.
    """
    if isinstance(program, functools.partial) and program.func is _run_on_all:
        return program
    return functools.partial(_run_on_all, program, weighed)


def _run_on_all(program: Program, weighed: bool, /, *args: Any, **kwargs: Any) -> Any:
    rows = {len(a) for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor) and a.dim()}
    with _all_indices(rows, weighed), rows_named(program, program, args, kwargs):
        return program(*args, **kwargs)


@contextmanager
def _all_indices(rows: set[int], weighed: bool) -> Iterator[None]:
    owner: Any = SubsampleMessenger
    before = owner._subsample

    # not `before`: within another one, this one rules
    def subsample(name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *device: Any) -> Any:
        if subsample is None and subsample_size is not None:
            if subsample_size not in rows:
                subsample_size = None  # all indices
            elif not weighed:
                size = subsample_size
        return SUBSAMPLE(name, size, subsample_size, subsample, *device)

    owner._subsample = staticmethod(subsample)
    try:
        yield
    finally:
        owner._subsample = staticmethod(before)
