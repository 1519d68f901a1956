"""The classes that an untrusted configuration may name: they are checked before anything is imported."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["check_names"]

# The packages that classes may come from. Importing these modules runs only code of this library and of torch.
PARTS = (
    *(f"pyro_vae.{room}" for room in ("models", "guides", "nets", "conditionals", "priors", "elbo")),
    "torch.nn",
)
MAX_WORD = 100
# Anything else could be read as an import path, as YAML, or as the path of a file.
_WORD = re.compile(r"[A-Za-z0-9_+-]*")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def check_names(value: Any, file: Path, *keys: str) -> None:
    """Refuse a part of a configuration that names anything except classes of `pyro_vae` and `torch.nn`, at any depth.

    All strings are checked, also keys: if an argument is annotated as a callable or a class, jsonargparse imports it
    from a plain string. This function imports nothing outside these packages.

    Args:
        value: The value that was read from YAML or JSON.
        file: The file that it was read from, for the message.
        keys: The keys that lead to it in the file, for the message.

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


def _refuse(value: Any, file: Path, *keys: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= MAX_WORD else shown[:MAX_WORD] + "..."
    raise ValueError(
        f"{file} names {shown} as {'.'.join(keys)}, which is not a class of pyro_vae or torch.nn: loading it "
        "could run code chosen by the author of this directory. If it is your own class, or you trust the author, pass "
        "trust=True (--trust true on the command line)"
    )


def _foreign(cls: type) -> frozenset[str]:
    """Names of the subclasses defined outside the library so far: jsonargparse builds them from a bare name."""
    names = frozenset[str]()
    subclasses: list[type] = type.__subclasses__(cls)
    for sub in subclasses:
        names |= _foreign(sub) | (frozenset() if _inside(sub.__module__) else {sub.__name__})
    return names


def _is_allowed(path: str) -> bool:
    if len(path) > MAX_WORD or not _PATH.fullmatch(path):
        return False
    module, _, name = path.rpartition(".")
    if module != "pyro_vae" and not _inside(module):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    # by its defining module: these modules also hold imported classes
    if not _inside(getattr(found, "__module__", None) or ""):
        return False
    return inspect.isclass(found) and (not path.startswith("torch.") or issubclass(found, nn.Module))


def _inside(module: str) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in PARTS)
