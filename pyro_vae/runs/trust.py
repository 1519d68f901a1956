"""What a configuration from someone else may name: looked at before anything in it is imported."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["check_names"]

# Where the classes must come from. Importing these modules runs no code but this library's and torch's own.
PARTS = ("pyro_vae.models", "pyro_vae.nets", "pyro_vae.conditionals", "pyro_vae.priors", "pyro_vae.elbo", "torch.nn")
MAX_WORD = 100
# Anything else could be read as an import path, as YAML, or as the path of a file.
_WORD = re.compile(r"[A-Za-z0-9_+-]*")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def check_names(value: Any, file: Path, *keys: str) -> None:
    """Refuse a part of a configuration that names anything but classes of `pyro_vae` and `torch.nn`, at any depth.

    Every string counts, keys included: wherever an argument is annotated as a callable or a class, a plain string is
    enough to have it imported. Nothing outside of these packages is imported here.

    Args:
        value: What was read from YAML or JSON.
        file: Where it was read, for the message.
        keys: Where it stands there, for the message.

    Raises:
        ValueError: At the first string that is neither a plain word nor the path of such a class.
    """
    _check(value, file, _foreign(nn.Module), *keys)


def _check(value: Any, file: Path, foreign: frozenset[str], *keys: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not (isinstance(key, str) and len(key) <= MAX_WORD and _KEY.fullmatch(key)):
                _refuse(key, file, *keys)
            if key == "class_path" and not (isinstance(inner, str) and _is_allowed(inner)):
                _refuse(inner, file, *keys, key)
            _check(inner, file, foreign, *keys, key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check(inner, file, foreign, *keys, str(index))
    elif isinstance(value, str):
        is_word = len(value) <= MAX_WORD and _WORD.fullmatch(value) and value not in foreign
        if not (is_word or _is_allowed(value)):
            _refuse(value, file, *keys)
    elif not (value is None or isinstance(value, bool | int | float)):
        _refuse(value, file, *keys)


def _refuse(what: Any, file: Path, *keys: str) -> None:
    shown = repr(what)
    shown = shown if len(shown) <= MAX_WORD else shown[:MAX_WORD] + "..."
    raise ValueError(
        f"{file} names {shown} as {'.'.join(keys)}, which is no class of pyro_vae or torch.nn: to load it could run "
        "code that whoever made this directory has chosen. If it is your own class, or you trust them, pass trust=True "
        "(--trust true on the command line)"
    )


def _foreign(cls: type) -> frozenset[str]:
    """Names of the subclasses that others have defined so far: a name alone is enough to have one built."""
    names = frozenset[str]()
    subclasses: list[type] = type.__subclasses__(cls)
    for sub in subclasses:
        names |= _foreign(sub) | (frozenset() if _inside(sub.__module__) else {sub.__name__})
    return names


def _is_allowed(path: str) -> bool:
    if len(path) > MAX_WORD or not _PATH.fullmatch(path):
        return False
    place, _, name = path.rpartition(".")
    if place != "pyro_vae" and not _inside(place):
        return False
    try:
        found = getattr(importlib.import_module(place), name, None)
    except ImportError:
        return False
    # where it was defined: a module holds classes of others, too
    if not _inside(getattr(found, "__module__", None) or ""):
        return False
    return inspect.isclass(found) and (not path.startswith("torch.") or issubclass(found, nn.Module))


def _inside(module: str) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in PARTS)
