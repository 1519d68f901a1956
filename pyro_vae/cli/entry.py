"""The entry point of `pyro-vae`."""

from __future__ import annotations

import difflib
import importlib
import shlex
import sys
import sysconfig
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["main"]

_COMMANDS = {
    "train": "Train a pair, report its ELBO and log p(x), draw pictures.",
    "evaluate": "Report ELBO and log p(x) of a run.",
    "compare-elbos": "Compare ELBO estimators on a run.",
    "gaps": "Split the inference gap of a run into approximation and amortization gap.",
    "diagnose": "Report the health of a run's latent space.",
    "calibrate": "Say whether the guide of a run is right.",
    "sample": "Draw data from the prior of a run.",
    "quality": "Compare samples of a run with unseen data.",
    "reconstruct": "Reconstruct data with a run.",
    "export": "Write the encoder and the decoder of a run for torch.export and ONNX.",
    "report": "Make one page to look at of a run, or of several side by side.",
    "explore": "Open a page to move in the latent space of a run.",
    "runs": "List runs in a table, or show where two of them differ.",
    "list": "List models, data sets, estimators and parts by name.",
}
_MODULES = {
    "list": "listing",
    "export": "exports",
    **dict.fromkeys(("compare-elbos", "gaps", "diagnose", "calibrate"), "questions"),
    **dict.fromkeys(("sample", "reconstruct"), "pictures"),
}
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError, SyntaxError)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `pyro-vae`.

    Returns the exit status: 0; 1 after an error, 2 if the command line cannot be parsed, 130 after Ctrl-C. Unless it is
    0, one line on stderr gives the reason.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"pyro-vae {version('pyro-vae')}")
        return 0
    name = argv[0]
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f", did you mean {near[0]}" if near else ""
        print(f"pyro-vae: unknown command {name}{hint}? Known: {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            importlib.import_module(f"pyro_vae.cli.{_MODULES.get(name, name)}").run(
                name, argv[1:], shlex.join(["pyro-vae", *argv])
            )
    except ArgumentError as error:
        print(f"pyro-vae {name}: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"pyro-vae {name}: interrupted{': ' * bool(str(stop))}{_printable(str(stop))}", file=sys.stderr)
        return 130
    except Exception as error:
        place = "" if _is_non_finite(error) else _place(error)
        if not (place or isinstance(error, _EXPECTED)):
            raise  # a bug of this library, which needs a traceback
        print(f"pyro-vae {name}: {_one_line(error)}{place}", file=sys.stderr)
        return 1
    return 0


def _help() -> str:
    commands = "\n".join(f"  {name:<15}{text}" for name, text in _COMMANDS.items())
    return f"""usage: pyro-vae COMMAND [options]

Train variational autoencoders in Pyro and evaluate them.

commands:
{commands}

`pyro-vae COMMAND --help` lists the options of a command, `pyro-vae --version` prints the version."""


def _one_line(error: Exception) -> str:
    text = _printable(" ".join(str(error).split()))
    plain = text and (isinstance(error, ValueError | TypeError | OSError) or _is_non_finite(error))
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")


def _printable(text: str) -> str:
    # an untrusted file could contain terminal control characters
    return "".join(c if c.isprintable() else "?" for c in text)


def _is_non_finite(error: Exception) -> bool:
    from pyro_vae.training.nonfinite import NonFiniteLoss  # not at the top: `--help` need not wait for torch

    return isinstance(error, NonFiniteLoss)


def _place(error: BaseException | None) -> str:
    """Where in the user's own code an error or its cause was raised; empty if it was raised elsewhere."""
    libraries = [str(Path(__file__).parents[1]), *sysconfig.get_paths().values()]
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not frame.filename.startswith((*libraries, "<")):
                return f" ({frame.filename}, line {frame.lineno})"
        error = error.__cause__ or error.__context__
    return ""


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-vae: warning: {_printable(' '.join(str(message).split()))}", file=sys.stderr)
