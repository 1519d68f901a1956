"""Does a value fit an annotation, and what does an annotation say in words."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from torch import Tensor, nn

__all__ = ["described", "fits", "resolved"]

_LISTS: tuple[Any, ...] = (Sequence, Collection, list, tuple)
_WORDS: dict[Any, str] = {
    **{float: "a number", int: "a whole number", bool: "True or False", str: "a text", Tensor: "a tensor"},
    **{nn.Module: "a torch.nn.Module", type(None): "None"},
}


def resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The annotation that a text stands for, given the names that it was written with; Any if it cannot be known."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # of this library's own code
    except NameError:  # what is imported for type checkers alone
        return Any


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is of the annotated kind, as far as that can be told without calling it."""
    if annotation is Any or isinstance(annotation, TypeVar):
        return True
    if annotation is None:
        return value is None
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(part, value) for part in parts)
    if origin is Literal:
        return isinstance(value, str) or value in parts  # which word it may be, the call says better
    if origin is Callable:
        return callable(value)
    if origin in _LISTS:
        return _is_list(value) and all(fits(parts[0], each) for each in value)
    return _is_a(origin or annotation, value)


def described(annotation: Any) -> str:
    """What is expected, in words: "a function or None"."""
    if annotation is None:
        return "None"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        parts = tuple(sorted(parts, key=lambda part: part is type(None)))
        return " or ".join(dict.fromkeys(described(part) for part in parts if part is not int or float not in parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Callable:
        return "a function"
    if origin in _LISTS:
        return f"a list, each entry {described(parts[0])}" if parts[0] is not Any else "a list"
    kind = origin or annotation
    if kind is Mapping:
        return "a dictionary"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)


def _is_a(kind: Any, value: Any) -> bool:
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if kind in (int, float):
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    # a module of another class may do the same
    return isinstance(value, nn.Module if issubclass(kind, nn.Module) else kind)
