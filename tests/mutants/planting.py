"""A fault planted into a function of the library: its source is changed, and its code exchanged."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

__all__ = ["Change"]


@dataclass(frozen=True)
class Change:
    """Text of one function of a module, and what stands in its place.

    The code object is exchanged, so that all who have imported the function have the fault.

    Args:
        target: Module below `pyro_vae` and qualified name, as `elbo.estimators.score:Reinforce.coefficients`.
        old: Part of the function's source, which stands there once.
        new: What it becomes.
    """

    target: str
    old: str
    new: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Inside, the library has the fault."""
        module_name, _, qualified = self.target.partition(":")
        module = importlib.import_module(f"pyro_vae.{module_name}")
        function = _function(module, qualified)
        right = function.__code__
        function.__code__ = self._code(module, right)
        try:
            yield
        finally:
            function.__code__ = right

    def _code(self, module: Any, right: CodeType) -> CodeType:
        path = Path(inspect.getfile(module))
        lines = path.read_text().splitlines(keepends=True)
        first = right.co_firstlineno - 1
        source = "".join(inspect.getblock(lines[first:]))
        assert source.count(self.old) == 1, f"{self.target}: {self.old!r} stands there {source.count(self.old)} times"
        changed = "".join(lines[:first]) + source.replace(self.old, self.new)
        changed += "".join(lines[first + source.count("\n") :])
        every = list(_inner(compile(changed, str(path), "exec", dont_inherit=True)))
        (code,) = (c for c in every if c.co_qualname == right.co_qualname and c.co_firstlineno == first + 1)
        assert code.co_freevars == right.co_freevars, f"{self.target}: the change needs other cells"
        return code


def _function(module: Any, qualified: str) -> FunctionType:
    found = module
    for name in qualified.split("."):
        found = inspect.getattr_static(found, name)
        found = found.fget if isinstance(found, property) else found
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType)
    return found


def _inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _inner(part)
