"""The evaluations of a run: the one that stands for it, and others on fewer data or with fewer samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.runs.reading import MB, parsing, read_plain
from pyro_vae.support.formats import check_entries, parse_json

__all__ = ["evaluation_path", "read_evaluation"]

NUMBER = (int, float, type(None))
ENTRIES = ("log_prob", "num_data", "num_samples")  # a deterministic pair has no log p(x)


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """What an evaluation holds; None if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = read_plain(file, MB)
    except FileNotFoundError:
        return None
    with parsing(file):
        found = check_entries(parse_json(content))
        return check_entries(found, **dict.fromkeys((n for n in ENTRIES if n in found), NUMBER))


def evaluation_path(folder: Path, split: str, values: Mapping[str, Any]) -> Path:
    """Where the evaluation of a split belongs: it stands for the run, unless a better one does.

    Args:
        folder: The run directory.
        split: "train", "valid" or "test".
        values: The evaluation.
    """
    headline = folder / f"evaluation-{split}.json"
    try:
        known = read_evaluation(headline)
    except (ValueError, OSError):
        return headline
    if known is None or _of_other_weights(values, known):
        return headline
    if not any(_fewer(values, known, what) for what in ("data", "samples")):
        return headline
    counts = [f"{values[f'num_{n}']:g}-{n}" for n in ("data", "samples") if values.get(f"num_{n}") is not None]
    return folder / f"{'-'.join([headline.stem, *counts])}.json"


def _fewer(values: Mapping[str, Any], known: Mapping[str, Any], what: str) -> bool:
    now, before = values.get(f"num_{what}"), known.get(f"num_{what}")
    return now is not None and before is not None and now < before


def _of_other_weights(values: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    weights = {values.get("weights"), known.get("weights")} - {None}
    return len(weights) > 1
