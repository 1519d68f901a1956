"""A snapshot of tensors and values in two files, which are either complete or absent."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.support.files import read_file, write_file
from pyro_vae.support.formats import check_entries, parsing
from pyro_vae.support.memory import physical_memory

__all__ = ["Snapshot", "prefixed", "read_snapshot", "stripped", "write_snapshot"]

FORMAT = 1
MAX_VALUES_BYTES = 2**28  # bytes of JSON; a million epochs take less
TENSORS, VALUES = ".safetensors", ".json"


@dataclass
class Snapshot:
    """Tensors by name, and values by name that JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, prefix: str, other: Snapshot) -> None:
        """Add another snapshot under a name."""
        self.tensors |= prefixed(prefix, other.tensors)
        self.values[prefix] = other.values

    def copy(self) -> Snapshot:
        """A deep copy, with the tensors on the same devices."""
        return Snapshot({name: t.detach().clone() for name, t in self.tensors.items()}, copy.deepcopy(self.values))

    def part(self, prefix: str) -> Snapshot:
        """The snapshot that was added under a name."""
        return Snapshot(stripped(prefix, self.tensors), self.values[prefix])


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix added to their names."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def stripped(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, with the prefix removed."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write `path`.safetensors, then `path`.json, which holds the checksums of both and is written last.

    Raises:
        OSError: If the files cannot be written.
    """
    # cloned: safetensors refuses tensors that share memory
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in snapshot.tensors.items()}
    data = save(tensors)
    write_file(path.with_name(path.name + TENSORS), data)
    content = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "values": snapshot.values}
    content["checksum"] = _checksum(content)
    write_file(path.with_name(path.name + VALUES), json.dumps(content))


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot of `write_snapshot`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or of another version; the message names it.
    """
    values_file, tensors = path.with_name(path.name + VALUES), path.with_name(path.name + TENSORS)
    found = read_file(values_file, MAX_VALUES_BYTES)
    with parsing(values_file):
        content = check_entries(json.loads(found), values=dict, sha256=str)  # a metric may be NaN
        if content.get("checksum") != _checksum(content):
            raise ValueError("its checksum is not that of its content")
        if content.get("format") != FORMAT:
            raise ValueError(f"it has format {content.get('format')!r}, this version of pyro_vae reads {FORMAT}")
    data = read_file(tensors, physical_memory() or 2**40, expected=content["sha256"])
    with parsing(tensors):  # whoever made its checksum right did not make its content right
        return Snapshot(load(data), content["values"])


def _checksum(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
