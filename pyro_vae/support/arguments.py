"""Checks of arguments, made before any work: an error says which argument it is, what came and what is expected.

Each check returns the value that it has checked. A value of another type raises TypeError, one that is out of range
ValueError. With `none=True`, None is a value, too.

`checked` makes the checks of a public call from its signature; what its annotations do not say, such as the largest
value, the call checks itself.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from pyro_vae.support.annotations import described, fits, resolved

__all__ = [
    "callables",
    "checked",
    "checked_from",
    "choice",
    "count",
    "flag",
    "function",
    "instance",
    "path",
    "real",
    "seed",
    "shown",
    "sizes",
    "wrong",
]

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


def shown(value: Any) -> str:
    """A value for a message, on one line of at most 80 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of an integer with thousands of digits, or of a class of the user
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def wrong(error: type[Exception], name: str, expected: str, value: Any) -> Exception:
    """The error for an argument that is not what is expected."""
    return error(f"{name} must be {expected}, got {shown(value)}")


def count(name: str, value: Any, *, least: int = 1, none: bool = False) -> Any:
    """A whole number from `least`; no truth value, no fraction, and not too large for an index."""
    if none and value is None:
        return None
    expected = "a whole number" + (" above 0" if least == 1 else f" from {least}" if least >= 0 else "")
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise wrong(TypeError, name, expected, value)
    number = int(value)
    if not least <= number <= sys.maxsize:
        raise wrong(ValueError, name, expected, value)
    return number


def seed(name: str, value: Any) -> int | None:
    """A seed: a whole number from 0 that fits into 63 bits, or None."""
    found: int | None = count(name, value, least=0, none=True)
    return found


def real(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    none: bool = False,
) -> Any:
    """A finite number within these limits: `above` and `below` are excluded, `least` and `most` are included."""
    if none and value is None:
        return None
    limits = (("above", above), ("from", least), ("below", below), ("up to", most))
    found = [(word, limit) for word, limit in limits if limit is not None]
    expected = " ".join(["a number" if found else "a finite number", *(f"{word} {limit:g}" for word, limit in found)])
    if not isinstance(value, Real) or isinstance(value, bool):
        raise wrong(TypeError, name, expected, value)
    number: Any = value
    lower = -math.inf if above is None else above
    upper = math.inf if below is None else below
    is_within = lower < number < upper and (least is None or number >= least) and (most is None or number <= most)
    if not is_within or abs(number) > sys.float_info.max:
        raise wrong(ValueError, name, expected, value)
    return value


def flag(name: str, value: Any, *others: str, none: bool = False) -> Any:
    """True or False, nothing that merely counts as one of them; or one of the words in `others`."""
    if isinstance(value, bool) or (none and value is None) or (isinstance(value, str) and value in others):
        return value
    words = ["True", "False", *map(repr, others), *["None"] * none]
    expected = f"{', '.join(words[:-1])} or {words[-1]}"
    raise wrong(ValueError if isinstance(value, str) and others else TypeError, name, expected, value)


def choice(name: str, value: Any, options: Iterable[str], *, none: bool = False) -> Any:
    """One of several words."""
    if none and value is None:
        return None
    options = list(options)
    if not isinstance(value, str) or value not in options:
        kind = ValueError if isinstance(value, str) else TypeError
        raise wrong(kind, name, f"one of {', '.join(options)}", value)
    return value


def instance(name: str, value: T, kinds: type | tuple[type, ...], expected: str, *, none: bool = False) -> T:
    """A value of one of these types."""
    if not isinstance(value, kinds) and not (none and value is None):
        raise wrong(TypeError, name, expected, value)
    return value


def function(name: str, value: Any, expected: str = "a function", *, none: bool = False) -> Any:
    """Anything that can be called."""
    if not callable(value) and not (none and value is None):
        raise wrong(TypeError, name, expected, value)
    return value


def callables(name: str, value: Any) -> Sequence[Callable[..., Any]]:
    """A list or tuple of functions."""
    expected = "a list of functions"
    if not isinstance(value, list | tuple):
        raise wrong(TypeError, name, expected, value)
    for i, each in enumerate(value):
        function(f"{name}[{i}]", each)
    return value


def path(name: str, value: Any, *, none: bool = False) -> Any:
    """The name of a file or folder as a `Path`: text that is not empty, or a path."""
    if none and value is None:
        return None
    expected = "the name of a file or folder"
    if not isinstance(value, str | os.PathLike):
        raise wrong(TypeError, name, expected, value)
    text = os.fspath(value)
    if not isinstance(text, str):
        raise wrong(TypeError, name, expected, value)
    if not text or "\0" in text:
        raise wrong(ValueError, name, expected, value)
    return Path(text)


def sizes(name: str, value: Any, *, least: int = 1, alone: bool = False, none: bool = False) -> Any:
    """Whole numbers from `least`, as a list or tuple; or (if `alone`) a single one."""
    if none and value is None:
        return None
    if alone and isinstance(value, Integral) and not isinstance(value, bool):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong(TypeError, name, "an int or a sequence of ints", value)
    for each in value:
        if not isinstance(each, Integral) or isinstance(each, bool):
            raise wrong(TypeError, name, "an int or a sequence of ints", value)
        if not least <= int(each) <= sys.maxsize:
            expected = "numbers that fit into an index" if least < 0 else f"whole numbers from {least}"
            raise ValueError(f"{name} must hold {expected}, got {shown(value)}")
    return value


def checked(target: C) -> C:
    """Check the types of the arguments of a function or class, by its annotations, before it does anything.

    Numbers must be finite, and whole ones fit into an index; how small they may be is for the function to say, or for
    `checked_from`. Of everything else the type is checked: functions, tensors, modules, lists, dictionaries, classes,
    and unions of them.
    """
    return _checked(target, {})


def checked_from(**least: int | None) -> Callable[[C], C]:
    """As `checked`, with the least values of whole numbers; None for what the call itself checks, and says better."""
    return lambda target: _checked(target, least)


def _checked(target: C, least: Mapping[str, int | None]) -> C:
    if isinstance(target, type):
        target.__init__ = _checked(target.__init__, least)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)
    lowest = {"seed": 0, "seeds": 0, **{name: number for name, number in least.items() if number is not None}}
    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    parameters = [p for p in named if least.get(p.name, 0) is not None]
    found = {p.name: _check_of(p.annotation, lowest.get(p.name, -sys.maxsize)) for p in parameters}
    checks = {name: check for name, check in found.items() if check is not None}
    others = {p.name: p.annotation for p in parameters if p.name not in checks and p.annotation is not p.empty}

    def check_all(given: dict[str, Any]) -> None:
        for name, annotation in others.items():  # now, when all names that it is written with are known
            checks[name] = functools.partial(_fitting, annotation=resolved(annotation, target.__globals__))
        others.clear()
        for name, value in given.items():
            if name in checks:
                checks[name](name, value)

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return target(*args, **kwargs)  # which says it better
        check_all(given)
        return target(*args, **kwargs)

    return call  # type: ignore[return-value]


def _whole(name: str, value: Any, *, least: int, none: bool) -> Any:
    """As `count`, in the words of the library for values that are too small."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
    return count(name, value, least=-sys.maxsize, none=none)


def _fitting(name: str, value: Any, *, annotation: Any) -> Any:
    """A value of the annotated kind."""
    if not fits(annotation, value):
        raise wrong(TypeError, name, described(annotation), value)
    return value


def _check_of(annotation: Any, least: int) -> Callable[[str, Any], Any] | None:
    """The check that an annotation describes; None for one that describes something else."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(typing|collections\.abc|pathlib)\.", "", text)
    parts = {part.strip() for part in re.split(r"\|(?![^\[]*\])", text)}
    none = "None" in parts
    words = re.findall(r"^Literal\[(.*)\]$", next(iter(parts))) if len(parts - {"None"}) == 1 else []
    if words or parts - {"None"} == {"str"}:
        return functools.partial(instance, kinds=str, expected="a text", none=none)
    checks: dict[frozenset[str], Callable[..., Any]] = {
        frozenset(["int"]): functools.partial(_whole, least=least),
        frozenset(["float"]): real,
        frozenset(["bool"]): flag,
        frozenset(["str", "Path"]): path,
        frozenset(["Sequence[int]"]): functools.partial(sizes, least=least),
        frozenset(["int", "Sequence[int]"]): functools.partial(sizes, least=least, alone=True),
    }
    check = checks.get(frozenset(parts - {"None"}))
    return None if check is None else functools.partial(check, none=none)
