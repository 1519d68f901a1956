"""The parser of every command, with help in plain words."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, get_loader, set_loader
from yaml import YAMLError

from pyro_vae.cli.messages import explain, short_name
from pyro_vae.support.import_paths import stable_paths
from pyro_vae.support.stubs import look_along_own_path

__all__ = ["Parser"]


def _load(text: str) -> Any:
    """Load YAML, in which classes may have import paths of earlier versions."""
    return stable_paths(get_loader("yaml")(text))


set_loader("pyro_vae", _load, exceptions=(YAMLError,))

_NUMBERS = {"int": "INT", "float": "FLOAT", "int | float": "NUMBER"}


class _Formatter(DefaultHelpFormatter):
    """Shows defaults in plain words, without Python type names and lists of subclasses."""

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
        return short_name(str(default["class_path"]))
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default) if isinstance(default, tuple) else default)


class Parser(ArgumentParser):
    """A `jsonargparse.ArgumentParser` that raises `argparse.ArgumentError` with one clear line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        look_along_own_path()
        # jsonargparse makes a parser without `prog` to show the arguments of a class
        settings: dict[str, Any] = {"usage": None if "prog" in kwargs else SUPPRESS, "formatter_class": _Formatter}
        settings |= {"exit_on_error": False, "allow_abbrev": False, "parser_mode": "pyro_vae"}
        super().__init__(*args, **{**settings, **kwargs})

    def read(self, argv: Sequence[str]) -> Namespace:
        """Parse the arguments after the name of the command."""
        for action in self._actions:
            if action.dest.endswith(".help"):
                action.nargs = None  # without a value it would show a protocol, which has no arguments
        try:
            return self.parse_args(list(argv))
        except ArgumentError as error:
            options = [name for action in self._actions for name in action.option_strings]
            raise ArgumentError(None, explain(str(error.message), self.prog, options)) from error
        except UnicodeDecodeError as error:
            raise ArgumentError(None, f"--config: the file is not a text file: {error}") from error

    def make(self, options: Namespace) -> Namespace:
        """Instantiate the classes among the options.

        Raises:
            ValueError: If a constructor raises, with its message.
        """
        try:
            return self.instantiate(options)
        except (ValueError, TypeError) as error:
            # jsonargparse tries all members of a union, and lists the error of each
            lines = re.findall(r"^ *- (.*)$", str(error), re.MULTILINE)
            own = [line for line in lines if not re.match(r"Expected |Type |.*unexpected keyword argument", line)]
            raise ValueError(own[0] if own else str(error)) from error
