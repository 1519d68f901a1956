"""Whether a loss is being recorded, or compared, rather than trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

__all__ = ["Compile", "is_recording", "recording"]

Compile = bool | Literal["auto", "chosen"]  # "chosen": by the library, not by its user


_recording = False


@contextmanager
def recording() -> Iterator[None]:
    """A context in which objectives compute their loss without advancing their schedules."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def is_recording() -> bool:
    """Whether the loss is being recorded, or compared, rather than trained on."""
    return _recording
