"""The arguments of a pair: the keywords it accepts, its per-datum tensors, and slices of these."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.pair.protocol import Data, Program

__all__ = ["check_data", "check_keywords", "map_rows", "slices", "take", "takes_keywords", "takes_mask", "unwrapped"]


def check_keywords(
    question: Callable[..., Any],
    keywords: Mapping[str, Any],
    *programs: Program | None,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Refuse a keyword that is not an option of the call, unless all of the programs accept it.

    A program whose signature has `**kwargs`, or cannot be inspected, accepts everything.

    Args:
        question: The function that was called. Its keywords are suggested.
        keywords: The keywords that the call would pass to the pair.
        programs: The model and the guide, or one of them; None is skipped.
        hints: Advice by keyword, in place of a suggestion.

    Raises:
        TypeError: For an unknown keyword; the message names the nearest known one.
    """
    if not keywords:
        return
    known = [_keywords_of(program) for program in programs if program is not None]
    for name in keywords:
        if all(names is None or name in names for names in known):
            continue
        options = [p.name for p in inspect.signature(question).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if hints is not None and name in hints:
            advice = hints[name]
        else:
            near = difflib.get_close_matches(name, [*options, *(n for names in known for n in names or ())], n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(options)}"
        raise TypeError(
            f"{question.__name__}() got the keyword {name!r}, which is not one of its options and which "
            f"{'the pair' if len(known) > 1 else 'the program'} does not take: {advice}"
        )


def _keywords_of(program: Program) -> set[str] | None:
    """The keywords that a program accepts, None for any."""
    program = unwrapped(program)
    if isinstance(program, nn.Module):
        program = program.forward
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def takes_keywords(program: Program, names: Iterable[str]) -> bool:
    """Whether a program has arguments of all these names."""
    try:
        known = inspect.signature(program).parameters
    except (TypeError, ValueError):
        return False
    return set(known).issuperset(names)


def unwrapped(program: Program) -> Program:
    """The program inside Pyro's handlers."""
    while True:
        if isinstance(program, functools.partial) and program.args and isinstance(program.args[0], Messenger):
            program = program.args[1]
        elif isinstance(program, functools.partial) and isinstance(program.func, functools.partial):
            program = program.func
        elif not isinstance(program, nn.Module) and hasattr(program, "msngr") and hasattr(program, "fn"):
            program = program.fn  # a trace handler
        else:
            return program


def check_data(args: tuple[Any, ...]) -> int:
    """Check that `args[0]` is a tensor of data; returns N, its number of rows.

    Every tensor argument with N rows counts as per-datum.
    """
    if not args or not isinstance(args[0], Tensor):
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(
            f"the first argument after the pair must be the tensor of data, (N, ...), got {came}: this question takes "
            "one datum from the others, out of rows, or out of containers whose parts along one axis have all sites of "
            "the model in a plate of the part's size. What is in a closure or in an object a pair may hand on, "
            "lambda x: model(Batch(x))"
        )
    if args[0].dim() == 0 or len(args[0]) == 0:
        raise ValueError(f"the data must have at least one row, got shape {tuple(args[0].shape)}")
    return len(args[0])


def take(args: tuple[Any, ...], kwargs: dict[str, Any], start: int, stop: int) -> Data:
    """Rows `start:stop` of every per-datum tensor among a pair's arguments; the others are unchanged."""
    return map_rows(lambda a: a[start:stop], args, kwargs)


def map_rows(change: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Data:
    """Apply a function to every per-datum tensor among a pair's arguments."""
    n = len(args[0])

    def rows(a: Any) -> Any:
        return change(a) if isinstance(a, Tensor) and a.dim() > 0 and len(a) == n else a

    return tuple(map(rows, args)), {name: rows(a) for name, a in kwargs.items()}


def slices(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) that cover `range(total)`; the last piece may be shorter."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def takes_mask(program: Program) -> bool:
    """Whether the second argument of a program is called `mask`: it leaves out missing values itself."""
    try:
        return list(inspect.signature(unwrapped(program)).parameters)[1:2] == ["mask"]
    except (TypeError, ValueError):  # what has no signature
        return False
