"""Command-line options from a function: types from its signature, help texts from its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["add_options", "argument_help"]

_ENTRY = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def add_options(
    group: Any, function: Callable[..., Any], names: list[str], help: Mapping[str, str] | None = None
) -> None:
    """Add an option for each of some parameters of a function.

    Args:
        group: The parser, or a group of one, that gets the options.
        function: The function.
        names: The names of the parameters.
        help: Help texts of some parameters that replace those of the docstring.
    """
    skip: set[str | int] = {name for name in inspect.signature(function).parameters if name not in names}
    group.add_function_arguments(function, as_group=False, skip=skip)
    texts = {**argument_help(function), **(help or {})}
    for action in group._group_actions if hasattr(group, "_group_actions") else group._actions:
        if action.dest in names:
            action.help = texts.get(action.dest)


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """A help text for each argument of a function: the first sentence of its docstring entry, and its default.

    Names of arguments in the text are written as options.

    >>> def f(epochs=None, steps=None):
    ...     '''Train.
    ...
    ...     Args:
    ...         epochs: Length of the run, in place of `steps`.
    ...             More about it. Default: 50.
    ...     '''
    >>> argument_help(f)
    {'epochs': 'Length of the run, in place of --steps. Default: 50.'}
    """
    _, _, text = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.split("\n\n")[0].splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = [name.lstrip("*") for name in entry[1].split(", ")]
            line = entry[2]
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".lstrip()
    parameters = list(inspect.signature(function).parameters)
    return {name: _brief(text, parameters) for name, text in found.items()}


def _brief(text: str, parameters: list[str]) -> str:
    first, *others = re.split(r'(?<=\.) (?=[A-Z"])', text)
    brief = " ".join([first, *(other for other in others if other.startswith(("Default", '"auto"')))])
    brief = re.sub(r" \(see `[^)]*\)", "", brief)
    for name in parameters:
        brief = brief.replace(f"`{name}`", f"--{name}")
    return brief.replace("`pv.elbo.names()`", "see `pyro-vae list`").replace("`", "")
