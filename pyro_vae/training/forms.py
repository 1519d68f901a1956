"""Forms of training data: dictionaries, nested tuples and arrays as one tuple of tensors, which batches are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.pair.protocol import Program

__all__ = ["as_tensors", "in_tensors"]

NO_BATCHES = (
    "fit trains on batches of tensors with one row per datum, and the data hold none: a pair that has its data itself "
    "is trained by pv.SVI(model, guide).step()"
)


def as_tensors(source: Any) -> Any:
    """Arrays of numpy and frames of pandas as tensors, a list of numbers as one tensor; anything else as it is."""
    if isinstance(source, np.ndarray):
        return torch.as_tensor(source if source.flags.writeable else source.copy())
    if hasattr(source, "to_numpy") and hasattr(source, "iloc"):
        return torch.tensor(source.to_numpy())
    if isinstance(source, tuple):
        return tuple(map(as_tensors, source))
    if isinstance(source, Mapping):
        return {name: as_tensors(value) for name, value in source.items()}
    is_list = isinstance(source, list) and source
    if is_list and all(isinstance(v, int | float) or (isinstance(v, Tensor) and v.dim() == 0) for v in source):
        return torch.stack([torch.as_tensor(v) for v in source])
    return source


def in_tensors(model: Program, guide: Program | None, *sources: Any) -> tuple[Any, ...]:
    """The pair on a tuple of tensors, and the sources of its data as such tuples, training data first.

    A dictionary is given to the pair by keyword if the model takes all of its keys, else as one argument. What is not a
    tensor, such as a number after the data, is the same for all batches. Other sources, and the pair, stay as they are.

    Raises:
        TypeError: For an autoguide, or None in the place of a guide, on data of these forms; for data without a tensor.
        ValueError: For validation data of another form than the training data.
    """
    sources = tuple(map(as_tensors, sources))
    first = sources[0]
    if first == ():
        raise TypeError(NO_BATCHES)
    if not isinstance(first, tuple | Mapping) or (first and isinstance(first, tuple) and all(map(_has_rows, first))):
        return model, guide, *sources
    leaves, form = tree_flatten(first)
    rows = [_has_rows(leaf) for leaf in leaves]
    if not any(rows):
        raise TypeError(NO_BATCHES)
    if guide is None:
        raise TypeError(
            "a guide is made here for data that are a tensor, or a tuple of tensors with one row per datum: make it "
            "with pv.AmortizedGuide(model, ...), called as the model is"
        )
    if isinstance(guide, AutoGuide):
        raise TypeError(
            f"the autoguide {type(guide).__name__} needs data that are a tensor, or a tuple of tensors with one row "
            "per datum, whose further members are passed on as *args"
        )
    found = []
    for source in sources:
        if not isinstance(source, tuple | Mapping):
            found.append(source)
            continue
        values, other = tree_flatten(source)
        if other != form or [_has_rows(value) for value in values] != rows:
            raise ValueError("the validation data have another form than the training data")
        found.append(tuple(value for value, is_row in zip(values, rows, strict=True) if is_row))
    spread = _spread(model, first)

    def on(program: Program) -> Program:
        def run(*tensors: Tensor) -> Any:
            given = iter(tensors)
            value = tree_unflatten([next(given) if r else leaf for leaf, r in zip(leaves, rows, strict=True)], form)
            return spread(program, value)

        return run

    return on(model), on(guide), *found


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _spread(model: Program, data: Any) -> Callable[[Program, Any], Any]:
    """How a program takes the data: as arguments, as keywords or as one argument."""
    if isinstance(data, tuple):
        return lambda program, value: program(*value)
    try:
        names = set(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        names = set()
    if names.issuperset(data):
        return lambda program, value: program(**value)
    return lambda program, value: program(value)
