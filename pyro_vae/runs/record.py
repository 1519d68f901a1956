"""The record of a run, `run.json`: its entries, its checksum, and the migration of earlier formats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from pyro_vae.runs.directory import CONFIG, METRICS, WEIGHTS
from pyro_vae.support.files import checksum
from pyro_vae.support.formats import check_entries, parse_json
from pyro_vae.support.serialization import as_json, finite

__all__ = ["FORMAT", "parse_record", "seal"]

FORMAT = 2
MAX_ELEMENTS = 2**28  # of one datum
Record = dict[str, Any]


def seal(record: Mapping[str, Any]) -> str:
    """A record as the text of `run.json`, with a checksum of its other entries."""
    values = finite(record)
    return as_json({**values, "checksum": _checksum(values)})


def parse_record(content: bytes) -> Record:
    """Parse a record of any format; returns it in the current format.

    Raises:
        ValueError: If it is damaged, incomplete, or of a later format.
    """
    record = check_entries(parse_json(content), format=int)
    if record["format"] != FORMAT and record["format"] not in MIGRATIONS:
        raise ValueError(
            f"it has run format {record['format']!r}, this version of pyro_vae reads 1 to {FORMAT}: update pyro_vae"
        )
    if record["format"] >= 2:
        check_entries(record, checksum=str, files=dict)
        check_entries(record["files"], **dict.fromkeys((CONFIG, WEIGHTS, METRICS), str))
        if record["checksum"] != _checksum({k: v for k, v in record.items() if k != "checksum"}):
            raise ValueError("its checksum does not fit its content: bring the original back, or train again")
    while record["format"] < FORMAT:
        record = MIGRATIONS[record["format"]](record)
    return _checked(record)


def _from_1(record: Record) -> Record:
    """Format 1 had neither checksums nor an environment; the duration is in the metrics."""
    missing = dict.fromkeys(("platform", "hardware", "git", "started", "seconds", "peak_memory", "peak_gpu_memory"))
    return {**missing, **record, "format": 2, "files": {}}


# One function per format; the tests load a stored run of each format.
MIGRATIONS: dict[int, Callable[[Record], Record]] = {1: _from_1}


def _checked(record: Record) -> Record:
    none = type(None)
    check_entries(record, data=dict, elbo=str, epochs=int, best=(int, none), stopped=str, files=dict)
    check_entries(record, started=(str, none), seconds=(int, float, none))
    check_entries(record["files"], **dict.fromkeys(record["files"], str))
    check_entries(record["data"], shape=list, fingerprint=str)
    shape, epochs, best = record["data"]["shape"], record["epochs"], record["best"]
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ValueError(f"its data have shape {shape!r:.80}, expected a list of whole numbers above 0")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"its data have shape {shape!r:.80}, more than {MAX_ELEMENTS:,} numbers each")
    if epochs < 0 or (best is not None and not 1 <= best <= epochs):
        raise ValueError(f"it has {epochs} epochs, the best of which is number {best}")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return checksum(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
