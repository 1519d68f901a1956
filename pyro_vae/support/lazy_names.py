"""A package whose public names are imported on first access."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["lazy_attributes"]

SPECIAL = ("__all__", "__version__")


def lazy_attributes(package: str, names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build `__getattr__` and `__dir__` for a package that exports the names of the module `names` lazily.

    A submodule is imported without the other names: the import of one of those may have asked for it.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name not in SPECIAL:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        public = importlib.import_module(names)
        if name not in (*public.__all__, *SPECIAL):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = vars(sys.modules[package])[name] = getattr(public, name)  # the next access is direct
        return value

    def __dir__() -> list[str]:
        return [*importlib.import_module(names).__all__, *SPECIAL]

    return __getattr__, __dir__
