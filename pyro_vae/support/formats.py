"""Parses the content of files that could be damaged or untrusted: depth, size and types are checked."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pyro_vae.support.tables import printable

__all__ = [
    "check_entries",
    "one_line",
    "parse_json",
    "parse_metadata",
    "parse_weights",
    "parse_yaml",
    "parsing",
]

MAX_DEPTH = 30
MAX_NODES = 10_000
MAX_MESSAGE = 600
MAX_NUMBER = 400  # characters of a number in YAML
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?")
# what parsers and the constructors of tensors raise for content that was made to look right
_MADE_UP = (KeyError, TypeError, AttributeError, IndexError, RuntimeError, RecursionError, MemoryError, OverflowError)


@contextmanager
def parsing(file: Path) -> Iterator[None]:
    """A context that adds the name of the file to the errors of parsing it."""
    try:
        yield
    except (ValueError, yaml.YAMLError, csv.Error, SafetensorError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from error
    except _MADE_UP as error:
        kind = type(error).__name__
        detail = "" if isinstance(error, RecursionError | MemoryError | OverflowError) else f": {one_line(error)}"
        raise ValueError(f"{file} is damaged: {kind} while reading it{detail}") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, printable and shortened: it could quote the whole of an untrusted file."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


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
    """Parse YAML.

    Errors are aliases, tags, numbers of base 60 (which take Python a time that grows with the square of their length),
    and more levels or values than a configuration has.
    """
    text = content.decode()
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}, which no configuration of this library has")
        if depth > MAX_DEPTH or number > MAX_NODES:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_NODES:,} values, more than a configuration")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ValueError(f"could not determine a constructor for the tag {tag!r:.80}: a configuration has none")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            if len(event.value) > MAX_NUMBER and event.value[0] in "+-.0123456789":
                raise ValueError(f"it has a number of {len(event.value):,} characters")
            if _BASE_60.fullmatch(event.value):
                raise ValueError(f"it has a number of base 60, {event.value!r:.40}: write it in digits")
    return yaml.load(text, Loader=_Loader)


# libyaml's is a hundred times as fast, and takes no time that grows with the square of the length
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_weights(content: bytes) -> dict[str, Tensor]:
    """Parse tensors by name; NaN is an error."""
    tensors = load(content)
    for name, value in tensors.items():
        if (value.is_floating_point() or value.is_complex()) and bool(value.isnan().any()):
            raise ValueError(f"the tensor {name!r:.80} holds NaN: go back to weights from before, or train again")
    return tensors


def parse_metadata(content: bytes, name: str) -> dict[str, Any]:
    """The entry of the metadata of a safetensors file that this library wrote there, as JSON.

    Raises:
        ValueError: If there is none.
    """
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found = check_entries(check_entries(header).get("__metadata__", {})).get(name)
    if not isinstance(found, str):
        raise ValueError(f"it has no header of {name}: this library did not write it")
    return check_entries(parse_json(found.encode()))


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
