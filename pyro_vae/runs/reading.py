"""Reads files that could be damaged or untrusted: sizes, links, depth and types are checked first."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pyro_vae.runs.directory import CONFIG, METRICS, RECORD, WEIGHTS, pending
from pyro_vae.support.files import check_plain
from pyro_vae.support.memory import physical_memory

__all__ = [
    "one_line",
    "checksum",
    "parsing",
    "check_entries",
    "parse_json",
    "parse_weights",
    "parse_yaml",
    "read_run_file",
    "read_plain",
]

MAX_DEPTH = 30
MAX_NODES = 10_000
MAX_MESSAGE = 600
MB = 2**20
LIMITS = {CONFIG: MB, RECORD: MB, METRICS: 256 * MB, WEIGHTS: physical_memory() or 64 * 1024 * MB}


@contextmanager
def parsing(file: Path) -> Iterator[None]:
    """A context that adds the name of the file to the errors of parsing it."""
    try:
        yield
    except (ValueError, yaml.YAMLError, csv.Error, SafetensorError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} while reading it") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, shortened: it could quote the whole of an untrusted file."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


def checksum(content: bytes) -> str:
    """The SHA-256 digest in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_plain(file: Path, limit: int, *, trust: bool = False) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is larger than `limit` bytes, a directory, a device, or (unless `trust`) a link.
    """
    check_plain(file, limit, trust=trust)
    return file.read_bytes()


def read_run_file(path: Path, name: str, expected: str | None, *, trust: bool = False) -> tuple[Path, bytes]:
    """A file of a run and its content: the final file, or the pending one that was about to replace it.

    Args:
        path: The run directory.
        name: The name of the file.
        expected: Its checksum in the record; None for runs of a format without checksums.
        trust: Follow links.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If its checksum is not that of the record, or it cannot be read.
    """
    file = path / name
    missing = f"{path} holds no {name}: it is not a run directory, or a damaged one"
    try:
        content: bytes | None = read_plain(file, LIMITS[name], trust=trust)
    except FileNotFoundError as error:
        if expected is None:
            raise FileNotFoundError(missing) from error
        content = None
    if content is not None and expected in (None, checksum(content)):
        return file, content
    try:  # the process was killed between the record and the last of its files
        replacement = read_plain(pending(file), LIMITS[name], trust=trust)
    except FileNotFoundError:
        replacement = b""
    if replacement and checksum(replacement) == expected:
        return pending(file), replacement
    if content is None:
        raise FileNotFoundError(missing)
    raise ValueError(
        f"{file} is damaged, or was changed after training: its checksum is not the one in {RECORD}. Bring the "
        "original back, or train again"
    )


def parse_json(content: bytes) -> Any:
    """Parse JSON; NaN and infinities, which Python would accept, and duplicate keys are errors."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not valid JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("it has a duplicate key")
        return found

    return json.loads(content.decode(), parse_constant=refuse, object_pairs_hook=unique)


def parse_yaml(content: bytes) -> Any:
    """Parse YAML; aliases, and more levels or values than a configuration has, are errors."""
    text = content.decode()
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}, which no configuration of this library has")
        if depth > MAX_DEPTH or number > MAX_NODES:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_NODES:,} values, more than a configuration")
    return yaml.safe_load(text)


def parse_weights(content: bytes) -> dict[str, Tensor]:
    """Parse tensors by name; NaN is an error."""
    tensors = load(content)
    for name, value in tensors.items():
        if (value.is_floating_point() or value.is_complex()) and bool(value.isnan().any()):
            raise ValueError(f"the tensor {name!r} holds NaN: go back to weights from before, or train again")
    return tensors


def check_entries(found: Any, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A mapping as a dictionary, after a check that it has these entries, each of one of these types.

    Raises:
        ValueError: If it is not a mapping, or an entry is missing or of another type.
    """
    if not isinstance(found, Mapping):
        raise ValueError(
            f"expected entries `name: value`, found {'nothing' if found is None else type(found).__name__}"
        )
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"it has no entry {name!r}")
        value = found[name]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join("null" if k is type(None) else k.__name__ for k in allowed)
            raise ValueError(f"its entry {name!r} is {value!r:.80}, expected {words}")
    return dict(found)
