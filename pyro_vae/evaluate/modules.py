"""The networks behind a pair of callables."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["eval_mode", "modules_of"]


def modules_of(*programs: Callable[..., Any]) -> dict[str, nn.Module]:
    """The networks that some callables use, by the name they go under there; best effort.

    Found are: a callable that is a module, the module a method belongs to, modules among a function's closure, globals
    and defaults, and in lists, tuples and dicts there; partial objects and wrapped functions are looked through.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(name: str, value: Any, depth: int) -> None:
        if id(value) in seen or depth > 4:
            return
        if isinstance(value, nn.Module):
            seen.add(id(value))
            found.setdefault(name or type(value).__name__, value)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                visit(f"{name}[{i}]", item, depth + 1)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}[{key!r}]", item, depth + 1)
        elif callable(value) and not inspect.isclass(value) and not inspect.isbuiltin(value):
            seen.add(id(value))
            enter(value, depth + 1)

    def enter(program: Any, depth: int) -> None:
        if isinstance(program, functools.partial):
            visit("", program.func, depth)
            visit("args", [*program.args, *program.keywords.values()], depth)
            return
        if inspect.ismethod(program):
            if isinstance(program.__self__, nn.Module):
                visit("", program.__self__, depth)
            else:
                visit("self", vars(program.__self__) if hasattr(program.__self__, "__dict__") else None, depth)
            program = program.__func__
        program = inspect.unwrap(program)
        if not inspect.isfunction(program):
            call = getattr(program, "__dict__", None)
            if call:
                visit(type(program).__name__, call, depth)
            return
        # a library's own functions hold no networks of the pair
        if (program.__module__ or "").split(".")[0] in {"torch", "pyro", "numpy"} and not program.__closure__:
            return
        variables = inspect.getclosurevars(program)
        for name, value in (*variables.nonlocals.items(), *variables.globals.items()):
            if not inspect.ismodule(value):
                visit(name, value, depth)
        visit("default", list(program.__defaults__ or ()), depth)

    for program in programs:
        visit("", program, 0)
    return found


@contextmanager
def eval_mode(*programs: Callable[..., Any]) -> Iterator[None]:
    """Put the networks of some callables in evaluation mode, and back afterwards."""
    training = [m for net in modules_of(*programs).values() for m in net.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
