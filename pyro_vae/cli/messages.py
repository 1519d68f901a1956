"""One-line error messages for a wrong command line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence

from pyro_vae import models

__all__ = ["explain", "short_name"]

_CLASS_PATH = re.compile(r"class_path '([^']+)'")


def explain(message: str, prog: str, options: Sequence[str]) -> str:
    """A message of jsonargparse, which has many lines, as one line that names the nearest known name.

    `prog` is the command and `options` are its options, with `--`. A message of an unknown form is only joined into one
    line.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    option = "--" + ".".join(keys)
    see = f"`{prog} --help` lists the options"
    if found := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        return _unknown("option", found[1], options, see)
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        classes = _CLASS_PATH.findall(message[: found.start()])
        if not keys or not classes:
            return _unknown("option", "--" + found[1], options, see)
        known = _parameters(classes[-1])
        takes = f"{short_name(classes[-1])} takes {', '.join(known) or 'no options'}"
        return _unknown("option", f"{option}.{found[1]}", [f"{option}.{name}" for name in known], takes)
    if found := re.search(r"arguments are required: ([\w, ]+)", message):
        classes = _CLASS_PATH.findall(message[: found.start()])
        if classes:
            return (
                f"{option} {short_name(classes[-1])} needs {', '.join(f'{option}.{n}' for n in found[1].split(', '))}"
            )
        return f"{found[1].upper()} is missing. {see}"
    if found := re.search(r'"(\w+)" is required', message):
        return f"{found[1].upper()} is missing. {see}"
    if found := re.search(r"Import path (\S+) does not implement protocol Pair", message):
        return f"--model: {found[1]} is not a pair: expected a class with the methods model(self, x) and guide(self, x)"
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


def _unknown(kind: str, name: str, known: Iterable[str], rest: str) -> str:
    return f"unknown {kind} {name}{_near(name, known) or '.'} {rest}"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def short_name(class_path: str) -> str:
    """`Class` of `module.Class`."""
    return class_path.rsplit(".", 1)[-1]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return [p for p in parameters if p != "data_shape"]


def _words(types: str) -> list[str]:
    """Plain words for types as jsonargparse prints them; literal values stand for themselves."""
    plain = {"Sequence": "a list, as [1,2]", "NoneType": "null", "bool": "true or false"}
    words = []
    for literals, name, function in re.findall(r"Literal\[([^\]]*)\]|<class '([^']+)'>|(Callable)\[", types):
        words += re.findall(r"'([^']*)'", literals)
        words += [plain.get(short_name(name), short_name(name))] if name else []
        words += ["the path of a function"] if function else []
    return words or [types]


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
