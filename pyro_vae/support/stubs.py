"""Where jsonargparse looks for the types of arguments that have no annotations."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

__all__ = ["look_along_own_path"]


def look_along_own_path() -> None:
    """Let it look along the path of this process.

    By itself it starts `python -c "import sys, json; ..."` to learn the path of a new one: a second of waiting, and a
    file json.py in the current folder, which may be that of a stranger's run, would be executed.
    """
    try:
        import typeshed_client
    except ImportError:  # it comes with jsonargparse[signatures]; without it there are no stubs to look for
        return
    found: Any = typeshed_client.get_search_context
    if not isinstance(found, functools.partial):
        path = [Path(entry) for entry in sys.path if entry]
        typeshed_client.get_search_context = functools.partial(found, search_path=path)
