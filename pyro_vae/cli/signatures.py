"""Options of the command line from a function: their types from its signature, their help from its docstring."""

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
    """Give a parser or a group of one an option for each of some parameters of a function.

    Args:
        group: Where to.
        function: Whose parameters.
        names: Which of them.
        help: What to say of some of them in place of the docstring.
    """
    skip: set[str | int] = {name for name in inspect.signature(function).parameters if name not in names}
    group.add_function_arguments(function, as_group=False, skip=skip)
    texts = {**argument_help(function), **(help or {})}
    for action in group._group_actions if hasattr(group, "_group_actions") else group._actions:
        if action.dest in names:
            action.help = texts.get(action.dest)


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of a function says of each argument, in brief: its first sentence, and what the default means.

    An argument of the function that the text mentions is spelt as an option.

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
