"""A package whose public names are imported when one of them is first asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["deferred"]

SPECIAL = ("__all__", "__version__")


def deferred(package: str, names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package whose names are those of the module `names`.

    A module of the package comes without the others: they may be the ones that are asking for it.
    """

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name not in SPECIAL:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        public = importlib.import_module(names)
        if name not in (*public.__all__, *SPECIAL):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = vars(sys.modules[package])[name] = getattr(public, name)  # so that it is asked for once
        return value

    def __dir__() -> list[str]:
        return [*importlib.import_module(names).__all__, *SPECIAL]

    return __getattr__, __dir__
