"""The networks behind a pair of callables."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from pyro_vae.pair.running import Running

__all__ = ["to_networks_device", "eval_mode", "modules_of"]

MAX_DEPTH = 6
MAX_ITEMS = 1000  # items inspected per container: a longer list holds data, not networks
LIBRARIES = {"torch", "pyro", "numpy", *sys.stdlib_module_names}


def modules_of(*programs: Callable[..., Any]) -> dict[str, nn.Module]:
    """The networks that some callables use, by the name that each has there; best effort.

    The search covers a callable that is a module, the owner of a method, the closure, defaults and globals of a
    function and of the functions inside it, and the containers and attributes of objects found on the way. It looks
    inside partial objects, wrapped functions and Pyro's handlers. A module inside another module is not listed
    separately.
    """
    search = _Search()
    for program in programs:
        search.visit("", program)
    inner = {id(part) for net in search.found.values() for part in net.modules() if part is not net}
    return {name: net for name, net in search.found.items() if id(net) not in inner}


class _Search:
    def __init__(self) -> None:
        self.found: dict[str, nn.Module] = {}
        self.seen: dict[int, Any] = {}  # keeps the objects alive, so that their ids stay valid
        self.depth = 0

    def visit(self, name: str, value: Any) -> None:
        if self.depth >= MAX_DEPTH or id(value) in self.seen:
            return
        if isinstance(value, type | types.ModuleType | Tensor | str | bytes | int | float):
            return
        self.seen[id(value)] = value
        self.depth += 1
        self.enter(name, value)
        self.depth -= 1

    def enter(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            self.module(name or type(value).__name__, value)
        elif isinstance(value, types.MethodType):
            owner = "" if isinstance(value.__self__, nn.Module) else "self"
            self.visit(owner, value.__self__)
            self.visit("", value.__func__)
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, functools.partial):
            self.depth -= 1  # Pyro's handlers wrap a program in two of them each, and may be stacked
            self.visit("", value.func)
            self.items((f"args[{i}]", item) for i, item in enumerate(value.args))
            self.items(value.keywords.items())
            self.depth += 1
        elif isinstance(value, dict):
            self.items((f"{name}[{key!r}]", item) for key, item in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            self.items((f"{name}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, types.SimpleNamespace) or not _from_library(type(value)):
            self.items((f"{name or 'self'}.{key}", item) for key, item in getattr(value, "__dict__", {}).items())
            if callable(value):
                self.visit("", type(value).__call__)
        else:  # such as a handler of Pyro
            self.items((key, getattr(value, key, None)) for key in ("fn", "func", "__wrapped__"))

    def items(self, items: Any) -> None:
        for name, item in itertools.islice(items, MAX_ITEMS):
            self.visit(name, item)

    def module(self, name: str, net: nn.Module) -> None:
        unique = next(
            n for n in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2))) if n not in self.found
        )
        self.found[unique] = net
        # attributes beside the registered submodules: a plain list of networks, an autoguide's model
        attributes = {k: v for k, v in vars(net).items() if k not in ("_parameters", "_buffers", "_modules")}
        self.items((f"{name}.{key}", item) for key, item in attributes.items())
        if not _from_library(type(net)):
            self.visit("", type(net).forward)

    def function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.visit(name, cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        self.visit("", getattr(function, "__wrapped__", None))
        if _from_library(function):
            return
        code = function.__code__
        arguments = code.co_varnames[: code.co_argcount]
        self.items(zip(reversed(arguments), reversed(function.__defaults__ or ()), strict=False))
        self.items((function.__kwdefaults__ or {}).items())
        names = _names(code)
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                nets = {other: vars(value).get(other) for other in names}
                self.items((f"{name}.{other}", net) for other, net in nets.items() if isinstance(net, nn.Module))
            else:
                self.visit(name, value)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _from_library(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in LIBRARIES


def to_networks_device(args: tuple[Any, ...], *programs: Callable[..., Any]) -> tuple[Any, ...]:
    """Move the tensors among the arguments to the device of the programs' networks, if all of these share one.

    Training may have moved the networks to a GPU, while the data are usually still where they were loaded.
    """
    devices = {p.device for net in modules_of(*programs).values() for p in net.parameters()}
    if len(devices) != 1:
        return args
    device = devices.pop()

    def moved(leaf: Any) -> Any:
        there: Any = leaf
        return there.to(device) if isinstance(leaf, Tensor | PackedSequence) else leaf

    return tuple(tree_map(moved, a, is_leaf=lambda leaf: isinstance(leaf, PackedSequence)) for a in args)


@contextmanager
def eval_mode(*programs: Callable[..., Any]) -> Iterator[None]:
    """Put the networks of some callables in evaluation mode, and restore their modes afterwards."""
    training = [m for net in modules_of(*programs).values() for m in net.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with Running():
            yield
    finally:
        for module in training:
            module.training = True
