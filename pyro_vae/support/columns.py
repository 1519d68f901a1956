"""Columns of a table: their types, levels and scaling, and rows in the units of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.tables import new_table

__all__ = ["KINDS", "LEVELED", "Column", "ColumnType", "as_columns", "columns_table", "decode_rows"]

ColumnType = Literal["real", "positive", "count", "binary", "categorical", "ordinal"]
KINDS: tuple[str, ...] = get_args(ColumnType)
LEVELED = ("binary", "categorical", "ordinal")  # types whose values are levels, stored by their number
MAX_LEVELS = 10_000


@checked
@dataclass(frozen=True)
class Column:
    """What is known of a column: its type, and figures of its known values in the training data.

    A tensor of rows holds the column's own values where it is real, positive or a count; the numbers 0 to L - 1 of
    `levels` where it is binary, categorical or ordinal.

    Args:
        name: Its name.
        type: "real", "positive", "count", "binary", "categorical" or "ordinal".
        levels: The values of a binary, categorical or ordinal column, in their order; empty for others.
        loc, scale: Mean and standard deviation: of the values of a real column, of log x of a positive one, of
            log(1 + x) of a count. 0 and 1 for others.
        mean: The mean of a count.
        shares: The share of each level, none of them zero.
        missing: The share of missing values.

    Raises:
        ValueError: If these do not fit each other.

    Example:
        >>> Column("sex", "binary", levels=("f", "m"), shares=(0.4, 0.6)).num_levels
        2
    """

    name: str
    type: str
    levels: tuple[Any, ...] = ()
    loc: float = 0.0
    scale: float = 1.0
    mean: float = 1.0
    shares: tuple[float, ...] = ()
    missing: float = 0.0

    def __post_init__(self) -> None:
        if self.type not in KINDS:
            raise ValueError(f"column {self.name!r} has type {self.type!r}: expected one of {', '.join(KINDS)}")
        is_leveled = self.type in LEVELED
        number = len(self.levels)
        right = number == 2 if self.type == "binary" else 2 <= number <= MAX_LEVELS if is_leveled else number == 0
        if not right or len(self.shares) != number or not all(0 < share < 1 for share in self.shares):
            raise ValueError(
                f"column {self.name!r} of type {self.type!r} has {number} levels with the shares {self.shares!r:.80}: "
                "expected 2 levels of a binary column, 2 or more of a categorical or ordinal one, none of another, and "
                "a share between 0 and 1 of each"
            )
        if is_leveled and (len(set(self.levels)) < number or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(
                f"column {self.name!r} has levels {self.levels!r:.80} with shares that sum to {sum(self.shares):.6g}: "
                "expected each level once, and shares that sum to 1"
            )
        if not (math.isfinite(self.loc) and 0 < self.scale < math.inf and 0 < self.mean < math.inf):
            raise ValueError(
                f"column {self.name!r} has loc {self.loc}, scale {self.scale} and mean {self.mean}: expected finite "
                "numbers, scale and mean above 0"
            )

    @property
    def num_levels(self) -> int:
        """The number of levels, 0 of a column without."""
        return len(self.levels)

    @property
    def typical(self) -> float:
        """A value that every likelihood of the column allows, which stands where a value is missing."""
        if self.type in LEVELED:
            return float(self.shares.index(max(self.shares)))
        if self.type == "count":
            return float(round(self.mean))
        return math.exp(self.loc) if self.type == "positive" else self.loc

    def to_dict(self) -> dict[str, Any]:
        """The column as JSON can hold it."""
        return {**asdict(self), "levels": list(self.levels), "shares": list(self.shares)}


def as_columns(columns: Any) -> tuple[Column, ...]:
    """Columns from themselves, or from their dictionaries, which a stranger may have written.

    Raises:
        TypeError, ValueError: If they are neither.
    """
    if not isinstance(columns, Sequence) or isinstance(columns, str) or not columns:
        raise TypeError(f"columns must be a list of pv.data.Column, as pv.data.table(...).columns, got {columns!r:.80}")
    made = tuple(column if isinstance(column, Column) else _from_dict(column) for column in columns)
    names = [column.name for column in made]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have one name: {', '.join(sorted(n for n in set(names) if names.count(n) > 1))}")
    return made


def _from_dict(values: Any) -> Column:
    if not isinstance(values, Mapping) or not {"name", "type"} <= set(values) <= set(Column.__dataclass_fields__):
        raise TypeError(f"a column must be a pv.data.Column or its to_dict(), got {values!r:.80}")
    numbers = [values.get(key, 1.0) for key in ("loc", "scale", "mean", "missing")]
    lists = [values.get(key, ()) for key in ("levels", "shares")]
    texts = [values["name"], values["type"]]
    is_right = (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(each, list | tuple) for each in lists)
        and all(isinstance(level, str | bool | int | float) for level in lists[0])
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in [*numbers, *lists[1]])
    )
    if not is_right:
        raise TypeError(f"the entries of a column are not of their types: {dict(values)!r:.200}")
    return Column(**{**values, "levels": tuple(lists[0]), "shares": tuple(map(float, lists[1]))})


def decode_rows(columns: Sequence[Column], x: Tensor, mask: Tensor | None = None) -> dict[str, np.ndarray]:
    """Rows `(N, C)` as arrays by name, levels in place of their numbers; missing values are NaN, or None of levels.

    Raises:
        TypeError: For rows that are no tensor.
        ValueError: For rows or a mask of another shape, or the number of a level that does not exist.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected rows as a tensor (N, {len(columns)}), got a {type(x).__name__}")
    if x.dim() != 2 or x.shape[1] != len(columns):
        raise ValueError(f"expected rows of shape (N, {len(columns)}), one value for each column, got {tuple(x.shape)}")
    known = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    if known.shape != x.shape or known.dtype != torch.bool:
        raise ValueError(
            f"expected a mask of booleans of shape {tuple(x.shape)}, got {tuple(known.shape)} of {known.dtype}"
        )
    found: dict[str, np.ndarray] = {}
    for j, column in enumerate(columns):
        values, here = x[:, j].detach().cpu().double().numpy(), known[:, j].cpu().numpy()
        if column.type in LEVELED:
            codes = np.where(here, values, 0)
            if not (np.isin(codes, np.arange(column.num_levels))).all():
                raise ValueError(f"column {column.name!r} has values that are not the numbers of its levels")
            levels = np.array([*column.levels, None], dtype=object)[
                np.where(here, codes, column.num_levels).astype(int)
            ]
            found[column.name] = levels if not here.all() else np.array(levels.tolist())
        elif column.type == "count" and here.all() and (values == values.round()).all():
            found[column.name] = values.astype(np.int64)
        else:
            found[column.name] = np.where(here, values, np.nan)
    return found


def columns_table(title: str, columns: Sequence[Column]) -> Any:
    """The columns as a rich table: name, type, what their values are, and the share that is missing."""
    table = new_table(title, "column", "type", "values", "missing")
    for column in columns:
        table.add_row(column.name[:40], column.type, _values(column), f"{column.missing:.1%}")
    return table


def _values(column: Column) -> str:
    if column.type in LEVELED:
        words = [f"{level} {share:.0%}" for level, share in zip(column.levels, column.shares, strict=True)]
        return ", ".join(words[:3]) + (f", ... ({len(words)} levels)" if len(words) > 3 else "")
    if column.type == "count":
        return f"mean {column.mean:.3g}"
    middle, spread = f"{column.loc:.3g}", f"{column.scale:.3g}"
    return f"log: {middle} ± {spread}" if column.type == "positive" else f"{middle} ± {spread}"
