"""The arguments of a pair: what a run of it changes in place, given back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Inputs", "named_arrays"]


class Inputs:
    """The arguments as they were.

    Args:
        args, kwargs: Of the pair.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = named_inputs(args, kwargs)
        self._names = {id(array): name for name, array in named_arrays(values)}
        self._kept: list[tuple[Any, Any]] = []
        for value in values.values():
            self._keep(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.layout is torch.strided and value.device.type != "meta" and not value.is_nested:
                self._kept.append((value, value.detach().clone()))
        elif isinstance(value, np.ndarray):
            self._kept.append((value, value.copy()))
        elif isinstance(value, dict | list):
            self._kept.append((value, copy.copy(value)))
            for item in value.values() if isinstance(value, dict) else value:
                self._keep(item)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item)

    def restore(self) -> list[str]:
        """Give all arguments, and the containers among them, their values back; the arrays that changed, in words."""
        changed = []
        for value, kept in self._kept:
            if isinstance(value, Tensor | np.ndarray):
                differs = torch.as_tensor(_differs(value, kept))
                if not bool(differs.any()):
                    continue
                changed.append(
                    f"{self._names.get(id(value), 'an argument')} ({int(differs.sum())} of {differs.numel()} values)"
                )
                _give_back(value, kept)
            elif isinstance(value, dict):
                value.clear()
                value.update(kept)
            else:
                value[:] = kept
        return changed


def named_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by what messages call them."""
    return {f"argument {i}": a for i, a in enumerate(args)} | {f"argument {k!r}": a for k, a in kwargs.items()}


def named_arrays(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors and arrays among some arguments, those in their containers included."""
    for name, value in values.items():
        if isinstance(value, Tensor | np.ndarray):
            yield name, value
        elif isinstance(value, dict):
            yield from named_arrays({f"{name}[{key!r}]": item for key, item in value.items()})
        elif isinstance(value, list | tuple):
            yield from named_arrays({f"{name}[{i}]": item for i, item in enumerate(value)})


def _differs(value: Any, kept: Any) -> Any:
    if value.shape != kept.shape:
        return True
    nan = (value != value) & (kept != kept)
    return (value != kept) & ~nan


def _give_back(value: Any, kept: Any) -> None:
    if isinstance(value, np.ndarray):
        value[...] = kept
        return
    with torch.no_grad():
        if value.shape == kept.shape and not value.is_inference():
            value.copy_(kept)
        else:
            value.data = kept
