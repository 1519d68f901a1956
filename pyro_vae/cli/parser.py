"""The parser of every command: help in plain words, and errors of one line that name the nearest option."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Iterable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from pyro_vae import models

__all__ = ["Parser"]

_NUMBERS = {"int": "INT", "float": "FLOAT", "int | float": "NUMBER"}


class _Formatter(DefaultHelpFormatter):
    """Defaults in plain words; neither Python's names of types nor lists of subclasses."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if getattr(action, "_jsonargparse_preexpanded_help", False):
            return text
        if action.dest == "help":
            return "Show this help."
        if action.dest == "print_config":
            return "Print all options as YAML, to edit and give to --config."
        if action.dest.endswith(".help"):
            return f"Show the arguments of a class, as for --{action.dest.removesuffix('.help')}."
        if action.required and action.option_strings:
            return f"{text} (required)".lstrip()
        if not action.option_strings or action.default is None or action.default == SUPPRESS:
            return text
        return f"{text} (default: {_plain(action.default)})".lstrip()

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = (self._get_type_str(action) or "").removesuffix(" | null")
        return _NUMBERS.get(kind, super()._get_default_metavar_for_optional(action))

    def _format_args(self, action: Action, default_metavar: str) -> str:
        return "CLASS" if action.dest.endswith(".help") else super()._format_args(action, default_metavar)

    def start_section(self, heading: str | None) -> None:
        super().start_section(re.sub(r"<class '([^']+)'>", r"\1", heading or ""))


def _plain(default: Any) -> str:
    if isinstance(default, dict | Namespace) and "class_path" in default:
        return _short(str(default["class_path"]))
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default) if isinstance(default, tuple) else default)


class Parser(ArgumentParser):
    """A `jsonargparse.ArgumentParser` that raises `argparse.ArgumentError` with one clear line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # a parser without `prog` is one that shows the arguments of a class
        settings: dict[str, Any] = {"usage": None if "prog" in kwargs else SUPPRESS, "formatter_class": _Formatter}
        settings |= {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(*args, **{**settings, **kwargs})

    def read(self, words: Sequence[str]) -> Namespace:
        """Parse the words after the command's name."""
        for action in self._actions:
            if action.dest.endswith(".help"):
                action.nargs = None  # without a value it would show a protocol, which has no arguments
        try:
            return self.parse_args(list(words))
        except ArgumentError as error:
            raise ArgumentError(None, self._explain(str(error.message))) from error
        except UnicodeDecodeError as error:
            raise ArgumentError(None, f"--config: the file is no text: {error}") from error

    def make(self, options: Namespace) -> Namespace:
        """Instantiate the classes among the options.

        Raises
        ------
        ValueError
            If a constructor raises, with its message.
        """
        try:
            return self.instantiate(options)
        except (ValueError, TypeError) as error:
            # jsonargparse tries all members of a union, and lists what each of them said
            said = re.findall(r"^ *- (.*)$", str(error), re.MULTILINE)
            meant = [line for line in said if not re.match(r"Expected |Type |.*unexpected keyword argument", line)]
            raise ValueError(meant[0] if meant else str(error)) from error

    def _explain(self, message: str) -> str:
        """What jsonargparse says on many lines, on one."""
        keys = re.findall(r'Parser key "([^"]+)"', message)
        option = "--" + ".".join(keys)
        see = f"`{self.prog} --help` lists the options"
        options = [name for action in self._actions for name in action.option_strings]
        if found := re.search(r"unrecognized arguments: ([^\s=]+)", message):
            return _unknown("option", found[1], options, see)
        if found := re.search(r"Option '([^']+)' is not accepted", message):
            classes = _CLASS_PATH.findall(message[: found.start()])
            if not keys or not classes:
                return _unknown("option", "--" + found[1], options, see)
            known = _parameters(classes[-1])
            takes = f"{_short(classes[-1])} takes {', '.join(known) or 'no options'}"
            return _unknown("option", f"{option}.{found[1]}", [f"{option}.{name}" for name in known], takes)
        if found := re.search(r"arguments are required: ([\w, ]+)", message):
            classes = _CLASS_PATH.findall(message[: found.start()])
            if classes:
                return (
                    f"{option} {_short(classes[-1])} needs {', '.join(f'{option}.{n}' for n in found[1].split(', '))}"
                )
            return f"{found[1].upper()} is missing. {see}"
        if found := re.search(r'"(\w+)" is required', message):
            return f"{found[1].upper()} is missing. {see}"
        if found := re.search(r"Import path (\S+) does not implement protocol Pair", message):
            return (
                f"--model: {found[1]} is no pair: expected a class with the methods model(self, x) and guide(self, x)"
            )
        if found := re.search(r"Does not implement protocol Pair. Got value: (.*)", message):
            return f"--model: expected the name of a class, or its class_path and init_args, got {found[1]}"
        if option == "--model" and (found := re.search(r"Expected a dot import path string: (\S+)", message)):
            known = [name for name in models.__all__ if name != "Pair"]
            return _unknown("model", found[1], known, f"Known: {', '.join(known)}; or module.Class of your own")
        if found := re.search(r"class_path '([^']+)':\s+(No module named .*|module .* has no attribute .*)", message):
            return f"{option}: cannot import {found[1]}: {found[2]}; run from the folder of the file, or set PYTHONPATH"
        if "Unexpected config:" in message:
            return "--config: expected a file with `name: value` on each line"
        if found := re.search(r"Problems parsing config: (.*)", message, re.DOTALL):
            return f"--config: the file is not valid YAML: {' '.join(found[1].split())}"
        expected = re.search(r"Subtypes: \[(.*)\]", message) or re.search(r"Expected a (.*)\. Got value", message)
        given = re.findall(r"(?:Given|Got) value: (.*)", message)
        if keys and expected and given:
            words = _words(expected[1])
            return f"{option}: expected {_listed(words)}, got {given[-1]}{_near(given[-1], words)}"
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message, count=1)
        return " ".join(message.replace("Expected a dot import path string:", "there is no class").split())


_CLASS_PATH = re.compile(r"class_path '([^']+)'")


def _unknown(kind: str, name: str, known: Iterable[str], rest: str) -> str:
    return f"unknown {kind} {name}{_near(name, known) or '.'} {rest}"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _short(class_path: str) -> str:
    return class_path.rsplit(".", 1)[-1]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return [p for p in parameters if p != "data_shape"]


def _words(types: str) -> list[str]:
    """Plain words for types as jsonargparse prints them, literal values by themselves."""
    plain = {"Sequence": "a list, as [1,2]", "NoneType": "null", "bool": "true or false"}
    words = []
    for literals, name, function in re.findall(r"Literal\[([^\]]*)\]|<class '([^']+)'>|(Callable)\[", types):
        words += re.findall(r"'([^']*)'", literals)
        words += [plain.get(_short(name), _short(name))] if name else []
        words += ["the path of a function"] if function else []
    return words or [types]


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
