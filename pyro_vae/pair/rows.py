"""Parameters with a row for each datum, met by other data: what to say of the error."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger

from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.support.random import fork_rng

__all__ = ["RowsOfOtherData", "names_rows", "rows_named", "rows_of_others"]

F = TypeVar("F", bound=Callable[..., Any])


class RowsOfOtherData(ValueError):
    """A pair with parameters for each datum was run on other data than these."""


def rows_of_others(shapes: Mapping[str, Sequence[int]], n: int, sizes: set[int]) -> str:
    """What to say of a run on n data that failed over one of these other sizes; "" if no parameter has that size.

    Args:
        shapes: The shapes of the parameters by name.
        n: Number of data.
        sizes: The sizes that the run failed over.
    """
    for name, shape in shapes.items():
        # the weights of a network, of `pyro.module`, have sizes of their own
        found = [size for size in shape if size in sizes and size not in (1, n)]
        if found and "$$$" not in name:
            return (
                f"the pair has the parameter {name!r} of shape {tuple(shape)}, with a row for each datum of {found[0]}"
                f", and {n} data came: such parameters are those of the data that they were trained on. Give these "
                f"data, all {found[0]} at once (in training, batch_size={found[0]}), or write a guide whose encoder "
                "network gives the distribution of each datum"
            )
    return ""


@contextmanager
def rows_named(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """A context in which the pair runs: errors of shapes are explained where parameters for each datum are their cause.

    Raises:
        RowsOfOtherData: In place of such an error.
    """
    try:
        yield
    except RowsOfOtherData:
        raise
    except (RuntimeError, ValueError) as error:
        text = _explanation(error, model, guide, args, kwargs)
        if text:
            raise RowsOfOtherData(text) from error
        raise


def names_rows(run: F) -> F:
    """A decorator of functions `(model, guide, args, kwargs, ...)` that run a pair: see `rows_named`."""

    @functools.wraps(run)
    def named(model: Program, guide: Program, args: Any, kwargs: Any = None, **options: Any) -> Any:
        with rows_named(model, guide, args, kwargs or {}):
            return run(model, guide, args, kwargs, **options)

    return named  # type: ignore[return-value]


class _Shapes(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[int, ...]] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        whole = getattr(msg["value"], "_pyro_unconstrained_param", msg["value"])  # inside a subsampled plate
        self.found[msg["name"]] = tuple(whole.shape)


def _explanation(error: Exception, model: Program, guide: Program, args: Any, kwargs: dict[str, Any]) -> str:
    numbers = set(map(int, re.findall(r"\d+", str(error))))
    n = len(args[0]) if args and isinstance(args[0], torch.Tensor) and args[0].dim() else 0
    others = ("multiplied", "Expected value", "Expected parameter")  # in networks; of supports, with all values
    if n not in numbers or any(words in str(error) for words in others):
        return ""
    with torch.no_grad(), fork_rng(), _Shapes() as shapes, suppress(Exception):
        traced(model, args, kwargs, on=traced(guide, args, kwargs))
    return rows_of_others(shapes.found, n, numbers)
