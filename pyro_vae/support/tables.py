"""Results as text in a terminal and as rows in a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

__all__ = ["as_text", "save_result", "write_rows"]


def as_text(table: Any, width: int = 100) -> str:
    """What a rich table or group looks like, without colours."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def write_rows(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, under the names of the columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def save_result(
    path: str | Path,
    what: str,
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    columns: Sequence[str] = (),
) -> Path:
    """Write a result's rows as CSV, or its figures as JSON, by the ending of the path, which is returned.

    Args:
        path: Where to.
        what: The result in words, with its verb: "inference gaps are".
        rows: What CSV gets.
        figures: What JSON gets.
        columns: Of the CSV; default those of the first row.

    Raises:
        ValueError: For another ending.
    """
    path = Path(path)
    if path.suffix == ".csv":
        write_rows(path, columns or list(rows[0]), rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(figures, indent=2) + "\n")
    else:
        raise ValueError(f"{what} saved as .csv or .json, got {path.name!r}")
    return path
