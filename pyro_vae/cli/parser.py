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


def _plain(default: Any) -> str:
    if isinstance(default, dict | Namespace) and "class_path" in default:
        return str(default["class_path"]).rsplit(".", 1)[-1]
    return str(default).lower() if isinstance(default, bool) else str(default)


class Parser(ArgumentParser):
    """A `jsonargparse.ArgumentParser` that raises `argparse.ArgumentError` with one clear line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = {"formatter_class": _Formatter, "exit_on_error": False, "allow_abbrev": False}
        super().__init__(*args, **{**settings, **kwargs})

    def read(self, words: Sequence[str]) -> Namespace:
        """Parse the words after the command's name."""
        for action in self._actions:
            if action.dest.endswith(".help"):
                action.nargs, action.metavar = None, "CLASS"
        try:
            return self.parse_args(list(words))
        except ArgumentError as error:
            raise ArgumentError(None, self._explain(str(error.message))) from error
        except UnicodeDecodeError as error:
            raise ArgumentError(None, f"--config: the file is no text: {error}") from error

    def _explain(self, message: str) -> str:
        """What jsonargparse says on many lines, on one."""
        keys = re.findall(r'Parser key "([^"]+)"', message)
        option = "--" + ".".join(keys)
        see = f"; {self.prog} --help lists the options"
        if found := re.search(r"unrecognized arguments: (.*)", message):
            name = found[1].split("=")[0].split()[0]
            return f"unknown option {name}{_near(name, self._option_strings())}{see}"
        if found := re.search(r"Option '([^']+)' is not accepted", message):
            classes = re.findall(r"class_path '([^']+)'", message[: found.start()])
            if not keys or not classes:
                return f"unknown option {found[1]}{_near('--' + found[1], self._option_strings())}{see}"
            known = _parameters(classes[-1])
            takes = f"{classes[-1].rsplit('.', 1)[-1]} takes {', '.join(known) or 'no options'}"
            return f"unknown option {option}.{found[1]}{_near(found[1], known)}; {takes}"
        if found := re.search(r"arguments are required: ([\w, ]+)", message):
            classes = re.findall(r"class_path '([^']+)'", message[: found.start()])
            needed = ", ".join(f"{option}.{name}" if keys else name.upper() for name in found[1].split(", "))
            return f"{option} {classes[-1].rsplit('.', 1)[-1]} needs {needed}" if classes else f"{needed} is missing{see}"
        if found := re.search(r'"(\w+)" is required', message):
            return f"{found[1].upper()} is missing{see}"
        if found := re.search(r"Import path (\S+) does not implement protocol Pair", message):
            return f"--model: {found[1]} is no pair: expected a class with the methods model(self, x) and guide(self, x)"
        if found := re.search(r"Expected a dot import path string: (\S+)", message):
            if option == "--model":
                known = [name for name in models.__all__ if name != "Pair"]
                near = _near(found[1], known)
                return f"unknown model {found[1]}{near}; known: {', '.join(known)}; or give module.Class of your own"
        elif found := re.search(r"class_path '([^']+)':\s+(No module named .*|module .* has no attribute .*)", message):
            return f"{option}: cannot import {found[1]}: {found[2]}; run from the folder of the file, or set PYTHONPATH"
        if found := re.search(r"Unexpected config:", message):
            return "--config: expected a file of options, `name: value` on each line"
        if found := re.search(r"Problems parsing config: (.*)", message, re.DOTALL):
            return f"--config: the file is not valid YAML: {' '.join(found[1].split())}"
        expected = re.search(r"Subtypes: \[(.*)\]", message) or re.search(r"Expected a (.*)\. Got value", message)
        given = re.findall(r"(?:Given|Got) value: (.*)", message)
        if keys and expected and given:
            known = _names(expected[1])
            return f"{option}: expected {_listed(known)}, got {given[-1]}{_near(given[-1], known)}"
        return " ".join(re.sub(r'Parser key "([^"]+)":', r"--\1:", message, count=1).split())

    def _option_strings(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return [p for p in parameters if p != "data_shape"]


def _names(types: str) -> list[str]:
    """The words for types as jsonargparse prints them, literal values by themselves."""
    words = []
    for literals, name, function in re.findall(r"Literal\[([^\]]*)\]|<class '([^']+)'>|(Callable)\[", types):
        words += re.findall(r"'([^']*)'", literals)
        short = name.rsplit(".", 1)[-1]
        words += [{"Sequence": "a list, as [1,2]", "NoneType": "null"}.get(short, short)] if short else []
        words += ["the path of a function"] if function else []
    return words or [types]


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
