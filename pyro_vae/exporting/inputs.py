"""The arguments of a pair as named tensors, at any number of data."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

from pyro_vae.pair.arguments import unwrapped
from pyro_vae.pair.protocol import Program

__all__ = ["Arguments", "identifier"]


class Arguments:
    """The arguments of a pair: tensors, which become inputs, and all else, which stays as it is.

    Args:
        programs: Programs that take them. The parameters of the first one that has a name for each name the inputs.
        args, kwargs: The arguments, with the data `(N, ...)` first.

    Attributes:
        names: Of the tensors.
        tensors: The tensors.
        n: Number of data.
    """

    def __init__(self, programs: Sequence[Program], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {f"[{i}]": name for i, name in enumerate(_parameters(programs, len(args)))}
        leaves, self._tree = tree_flatten_with_path((args, kwargs), is_leaf=lambda a: isinstance(a, PackedSequence))
        self._leaves = [leaf for _, leaf in leaves]
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        for path, leaf in leaves:
            if isinstance(leaf, PackedSequence):
                raise TypeError(
                    "an exported program takes plain tensors, and a PackedSequence came: write the pair with padded "
                    "data and a tensor of lengths, (N, T, ...) and (N,), and mask what is beyond the lengths"
                )
            if isinstance(leaf, Tensor) and leaf.dim() > 0:
                first, *rest = [str(key) for key in path[1:]]
                name = [named.get(first, first) if str(path[0]) == "[0]" else first, *rest]
                self.names.append(identifier("_".join(map(identifier, name)), self.names))
                self.tensors.append(leaf)
        if not self.tensors:
            came = type(args[0]).__name__ if args else "nothing"
            raise TypeError(f"an exported program takes tensors of data, (N, ...), and got {came}")
        self.n = len(self.tensors[0])
        if self.n == 0:
            raise ValueError(f"the example data must have at least one row, got shape {tuple(self.tensors[0].shape)}")

    def of_size(self, n: int) -> list[Tensor]:
        """The tensors for n data: the rows of the example, over and over."""
        rows = torch.arange(n) % self.n
        return [t[rows.to(t.device)] if len(t) == self.n else t for t in self.tensors]

    def filled(self, tensors: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors."""
        new = iter(tensors)
        leaves = [next(new) if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._tree)
        return args, kwargs


def identifier(text: str, taken: Any = ()) -> str:
    """A text as a name of Python that is not taken: "auto.z" -> "auto_z"."""
    name = re.sub(r"\W+", "_", text).strip("_") or "input"
    if name[0].isdigit() or keyword.iskeyword(name):
        name = f"_{name}"
    found, i = name, 1
    while found in taken:
        i += 1
        found = f"{name}_{i}"
    return found


def _parameters(programs: Sequence[Program], count: int) -> list[str]:
    """The names of the first positional parameters of the first program that has as many."""
    for program in map(unwrapped, programs):
        called = program.forward if isinstance(program, torch.nn.Module) else program
        try:
            parameters = inspect.signature(called).parameters.values()
        except (TypeError, ValueError):
            continue
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(names) >= count:
            return names[:count]
    return [f"x{i}" if i else "x" for i in range(count)]
