"""What a column of a table holds: its values as numbers, its type, and figures of its known values."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.support.columns import KINDS, LEVELED, Column

__all__ = ["Values", "column_of", "read_values"]

SPREAD = 10  # a largest value so many times the smallest makes numbers above 0 "positive"
MANY = 50  # different texts, above which they look like names rather than categories


class Values(NamedTuple):
    """A column as read: numbers `(N,)` in double precision, those of levels where it has some; which are known."""

    numbers: np.ndarray
    known: np.ndarray
    type: str
    levels: tuple[Any, ...]


def read_values(name: str, values: Any, wanted: Any, mask: Any) -> Values:
    """The values of a column; `wanted` is None, a type, or a list of levels in order.

    Raises:
        ValueError: If they do not fit the type, or there are not two different ones.
        TypeError: If they are neither numbers nor texts.
    """
    order, is_ordered = _categories(values)
    if isinstance(wanted, Sequence | np.ndarray) and not isinstance(wanted, str):
        order, is_ordered, wanted = _given_levels(name, wanted), True, "ordinal"
    if wanted is not None and wanted not in KINDS:
        raise ValueError(
            f"types[{name!r}] is {wanted!r}: expected one of {', '.join(KINDS)}, a list of levels in order, or None"
        )
    cells = _cells(name, values)
    known = np.array([not _is_missing(cell) for cell in cells], dtype=bool)
    if mask is not None:
        told = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if told.dtype != np.bool_ or told.shape != known.shape:
            raise ValueError(
                f"mask[{name!r}] must be booleans of shape {known.shape}, got {told.shape} of {told.dtype}"
            )
        known = known & told
    present = [_plain(cell) for cell, here in zip(cells, known, strict=True) if here]
    numeric = _as_numbers(name, present)
    different = len(set(present if numeric is None else numeric.tolist()))
    if different < 2:
        raise ValueError(
            f"column {name!r} has {different} different values: there is nothing to model, leave it out by "
            f"types={{{name!r}: None}}"
        )
    if numeric is not None and not np.isfinite(numeric).all():
        raise ValueError(f"column {name!r} has infinite values: remove them, or mark them as missing")
    kind = wanted or _inferred(name, present, numeric, order, is_ordered, len(cells))
    if kind in LEVELED:
        levels = _levels(name, kind, present, numeric, order)
        place = {level: i for i, level in enumerate(levels)}
        keys = present if numeric is None or any(isinstance(level, str) for level in levels) else numeric.tolist()
        codes = np.array([place[key] for key in keys], dtype=float)
        return Values(_spread(codes, known), known, kind, levels)
    if numeric is None:
        raise ValueError(f"column {name!r} is to be {kind}, but holds texts, the first of them {present[0]!r:.40}")
    _check_numbers(name, kind, numeric)
    return Values(_spread(numeric, known), known, kind, ())


def column_of(name: str, values: Values, rows: np.ndarray) -> Column:
    """The column, with figures of the known values in some rows.

    Raises:
        ValueError: If these do not vary, or the default dtype of torch does not hold them or tell them apart.
    """
    known = values.known[rows]
    x = values.numbers[rows][known]
    missing = float(1 - values.known.mean())
    if values.type in LEVELED:
        number = len(values.levels)
        counts = np.bincount(x.astype(int), minlength=number) + 0.5  # levels that the training data lack are possible
        return Column(name, values.type, values.levels, shares=tuple((counts / counts.sum()).tolist()), missing=missing)
    if len(x) < 2 or x.min() == x.max():
        raise ValueError(
            f"column {name!r} has {len(np.unique(x))} different known values in the training split: use more rows, or "
            f"leave it out by types={{{name!r}: None}}"
        )
    _check_precision(name, values.type, values.numbers[values.known], x)
    if values.type == "count":
        logs = np.log1p(x)
        return Column(
            name, "count", loc=float(logs.mean()), scale=float(logs.std()), mean=float(x.mean()), missing=missing
        )
    x = np.log(x) if values.type == "positive" else x
    return Column(name, values.type, loc=float(x.mean()), scale=float(x.std()), missing=missing)


def _categories(values: Any) -> tuple[tuple[Any, ...], bool]:
    """The categories of a categorical column of pandas in their order, and whether the order has a meaning."""
    dtype: Any = getattr(values, "dtype", None)
    if not hasattr(dtype, "categories") or dtype.categories is None:
        return (), False
    return tuple(_plain(each) for each in dtype.categories), bool(dtype.ordered)


def _cells(name: str, values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    cells = list(values.tolist()) if hasattr(values, "tolist") else list(values)
    for cell in cells:
        if not (_is_missing(cell) or isinstance(_plain(cell), str | bool | int | float)):
            raise TypeError(
                f"column {name!r} holds a {type(cell).__name__}, {cell!r:.40}: expected numbers, texts or truth "
                "values, one for each row"
            )
    if not cells:
        raise ValueError(f"column {name!r} is empty")
    return cells


def _is_missing(cell: Any) -> bool:
    """Whether a cell is None, NaN, or one of the values by which pandas marks what is missing."""
    return (
        cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and math.isnan(cell))
    )


def _plain(cell: Any) -> Any:
    return cell.item() if isinstance(cell, np.generic) else cell


def _as_numbers(name: str, present: list[Any]) -> np.ndarray | None:
    """The values if all are numbers, else None; truth values are none.

    Raises:
        ValueError: For whole numbers that double precision does not hold, and for truth values among numbers, of which
            Python takes True and 1 for equal.
    """
    are_truths = [isinstance(cell, bool) for cell in present if not isinstance(cell, str)]
    if any(are_truths) and not all(are_truths):
        raise ValueError(f"column {name!r} holds truth values and numbers: expected one kind, for example 0 and 1")
    if any(isinstance(cell, bool | str) for cell in present):
        return None
    for cell in present:
        if isinstance(cell, int) and (abs(cell) > sys.float_info.max or int(float(cell)) != cell):
            raise ValueError(
                f"column {name!r} has whole numbers so large that double precision rounds them: subtract an offset, or "
                "give texts if they are names"
            )
    return np.array([float(cell) for cell in present])


def _given_levels(name: str, wanted: Any) -> tuple[Any, ...]:
    """The levels that a user listed, in their order.

    Raises:
        ValueError: For a list that is no list of different values.
    """
    levels = tuple(_plain(each) for each in wanted)
    is_right = all(isinstance(each, str | bool | int | float) and not _is_missing(each) for each in levels)
    if not is_right or len(set(levels)) < len(levels) or len(levels) < 2:
        raise ValueError(
            f"types[{name!r}] lists the levels {list(levels)!r:.80}: expected two or more different numbers, texts or "
            "truth values, without one for missing values"
        )
    return levels


def _spread(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The numbers of the known values at their places, NaN at the others."""
    placed = np.full(known.shape, np.nan)
    placed[known] = numbers
    return placed


def _inferred(
    name: str, present: list[Any], numeric: np.ndarray | None, order: tuple[Any, ...], is_ordered: bool, rows: int
) -> str:
    if order:
        return "ordinal" if is_ordered and len(order) > 2 else "binary" if len(order) == 2 else "categorical"
    different = len(set(present if numeric is None else numeric.tolist()))
    if different == 2:
        return "binary"
    if numeric is None:
        if different > MANY and different > rows / 2:
            raise ValueError(
                f"column {name!r} has {different} different texts in {rows} rows, as names have: leave it out by "
                f"types={{{name!r}: None}}, or insist with 'categorical'"
            )
        return "categorical"
    if (numeric == numeric.round()).all():
        return "count" if numeric.min() >= 0 else "real"
    return "positive" if numeric.min() > 0 and numeric.max() >= SPREAD * numeric.min() else "real"


def _levels(
    name: str, kind: str, present: list[Any], numeric: np.ndarray | None, order: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The levels in their order: the given one, that of numbers, or that of the alphabet."""
    if order:
        found, levels = set(present), order
        if not found <= set(order):
            other = sorted(found - set(order), key=str)
            raise ValueError(
                f"column {name!r} has the values {other[:3]!r:.80}, which are not among its levels {order!r:.80}"
            )
    elif numeric is not None:
        whole = bool((numeric == numeric.round()).all())
        levels = tuple(int(v) if whole else v for v in np.unique(numeric).tolist())
    else:
        levels = tuple(sorted(set(present), key=lambda level: (str(type(level)), level)))
    if kind == "binary" and len(levels) != 2:
        raise ValueError(f"column {name!r} is to be binary, but has {len(levels)} different values: {levels!r:.80}")
    return levels


def _check_precision(name: str, kind: str, every: np.ndarray, rows: np.ndarray) -> None:
    """Refuse numbers that the default dtype of torch cannot hold, or does not tell apart.

    Args:
        every: All known values.
        rows: Those of the training data, whose spread counts.
    """
    dtype = torch.get_default_dtype()
    limits = torch.finfo(dtype)
    least, largest = float(np.abs(every).min()), float(np.abs(every).max())
    spread = float(rows.std() if kind == "real" else np.log1p(rows).std() if kind == "count" else np.log(rows).std())
    if kind == "real":  # a normal density squares them
        is_held = largest < math.sqrt(limits.max) / 10 and spread > math.sqrt(limits.tiny) * 10
    else:
        is_held = largest < limits.max and (kind == "count" or least >= limits.tiny)
    if not is_held:
        raise ValueError(
            f"column {name!r} has values of sizes from {least:.3g} to {largest:.3g}, which are too "
            f"{'large' if largest > 1 else 'small'} for {dtype}: give the column in another unit"
        )
    if limits.eps * (largest if kind == "real" else 1.0) > 1e-3 * spread:
        varied = f"that vary by {spread:.3g}" if kind == "real" else f"whose logarithms vary by {spread:.3g}"
        raise ValueError(
            f"column {name!r} has values of size {largest:.3g} {varied}: {dtype} does not tell them apart. "
            "Subtract an offset, or use torch.set_default_dtype(torch.float64)"
        )


def _check_numbers(name: str, kind: str, numeric: np.ndarray) -> None:
    low = float(numeric.min())
    if kind == "positive" and low <= 0:
        raise ValueError(f"column {name!r} is to be positive, but has the value {low:g}: use 'real'")
    if kind == "count" and (low < 0 or not (numeric == numeric.round()).all()):
        raise ValueError(
            f"column {name!r} is to be a count, but not all its values are whole numbers from 0: use 'real'"
        )
