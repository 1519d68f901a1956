"""The arguments of a call: their tensors, which are inputs of a graph, and all else, which is fixed in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["describe", "layout_of", "signature_of", "tensors_in", "with_tensors"]

_CONTAINERS = (list, tuple, dict)


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """The properties of an input that compiled code depends on."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in lists, tuples and dictionaries of them, in their order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _CONTAINERS):
            found.extend(leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return found


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with the next of these in place of each of its tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, _CONTAINERS):
        return tree_map(lambda leaf: next(tensors) if isinstance(leaf, Tensor) else leaf, value)
    return value


def signature_of(value: Any) -> Any:
    """What a graph depends on: the layout of tensors, and all other values."""
    if isinstance(value, Tensor):
        return layout_of(value)
    if isinstance(value, _CONTAINERS):
        leaves, structure = tree_flatten(value)
        return (str(structure), *(layout_of(v) if isinstance(v, Tensor) else _hashable(v) for v in leaves))
    return _hashable(value)


def describe(signature: tuple[Any, ...]) -> str:
    """The arguments in a signature of a call, whose last three entries are no arguments, for people."""

    def text(part: Any) -> str:
        if isinstance(part, tuple) and part and isinstance(part[0], torch.Size):
            return f"{str(part[2]).removeprefix('torch.')} {tuple(part[0])}"
        if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str) and part[0].isidentifier():
            return f"{part[0]}={text(part[1])}"
        if isinstance(part, tuple):
            return f"[{', '.join(map(text, part[1:]))}]"
        return repr(part)[:40]

    return ", ".join(map(text, signature[:-3])) or "no arguments"


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
