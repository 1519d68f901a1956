"""Tables: columns of several types and missing values, from a data frame, a dictionary of arrays or a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.archive import check_memory
from pyro_vae.data.inference import Values, column_of, read_values
from pyro_vae.data.splits import Data, Split, split_sizes
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.columns import Column, columns_table, decode_rows
from pyro_vae.support.files import open_plain
from pyro_vae.support.tables import as_text

__all__ = ["Table", "is_table_file", "table"]

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # how CSV files mark missing values, in any case
ENDINGS = {".csv": ",", ".tsv": "\t"}
MAX_BYTES = 2**36
BYTES_PER_BYTE = 50  # of memory, for short fields


@dataclass(eq=False, repr=False)
class Table(Data):
    """A table in memory, as `table` returns it: a `Data` whose pair gets `(x, mask)`.

    `x` is `(N, C)`, with levels as their numbers and typical values where one is missing, and `mask` is `(N, C)` of
    booleans, True where a value is known.

    Args:
        columns: What is known of each column.
        from_frame: Whether the source was a data frame of pandas.
    """

    columns: tuple[Column, ...] = ()
    from_frame: bool = False

    def decode(self, x: Tensor, mask: Tensor | None = None) -> Any:
        """Rows `(N, C)` with the names and values of the table: a data frame if it came from one, else arrays by name.

        Args:
            x: Rows, as `pv.sample` draws them or `pv.impute` completes them.
            mask: `(N, C)` of booleans, False where a value is to be left missing.
        """
        rows = decode_rows(self.columns, x, mask)
        if not self.from_frame:
            return rows
        import pandas

        return pandas.DataFrame(rows)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "columns": [column.to_dict() for column in self.columns]}

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self._counts().items() if count)
        return as_text(columns_table(f"Table {self.name!r}: {counts}", self.columns), width=120)


@checked_from(valid=None, test=None)
def table(
    source: Any,
    *,
    types: Mapping[str, Any] | None = None,
    mask: Mapping[str, Any] | None = None,
    valid: int | float = 0.1,
    test: int | float = 0.2,
    seed: int = 0,
) -> Table:
    """Read a table with columns of several types and missing values; printed, it shows what each column is taken for.

    Missing are NaN, None, whatever pandas counts as missing, empty fields of a file (also NA, N/A, NaN, null, None and
    ?), and what `mask` says. The type of a column follows from its known values, in this order:

    - truth values, or two different values: "binary"
    - categories of pandas: "ordinal" if ordered, else "categorical"; other texts: "categorical"
    - whole numbers from 0: "count"; other whole numbers: "real"
    - numbers above 0, the largest at least ten times the smallest: "positive"; other numbers: "real"

    Locations, scales and shares come from the known values of the training split. They are part of the columns, and so
    of a run's record. Values stay in the units of the table, so that a log p(x) of `pv.TabularVAE` is one in these
    units.

    Args:
        source: A data frame of pandas; a dictionary from names to arrays, tensors or lists of one length; or the path
            of a CSV file whose first row has the names (.tsv: separated by tabs).
        types: Types that replace the inferred ones, by name. A list of values makes a column ordinal, in this order;
            None leaves a column out.
        mask: For some columns, by name, booleans of their length: True where the value is known.
        valid, test: Size of these splits, as for `load`.
        seed: Seed of the splits.

    Returns:
        Table: With `train`, `valid`, `test`, `columns`, and `decode` for the way back.

    Raises:
        ValueError: For columns of different lengths, without two different values, with infinite values or values that
            do not fit their type; for numbers so large or small, or so large compared with how much they vary, that
            torch's default dtype does not hold them or tell them apart.
        TypeError: For values that are neither numbers nor texts.

    Example:
        >>> data = table(
        ...     {"age": [31.5, 40.0, None, 22.5, 61.0], "smokes": ["no", "yes", "no", None, "no"]}, valid=0, test=0
        ... )
        >>> [column.type for column in data.columns], data.train.args()[1][2].tolist()
        (['real', 'binary'], [False, True])
    """
    arguments.count("seed", seed, least=0)
    is_file = isinstance(source, str | os.PathLike)
    name = Path(source).name if is_file else "table"
    raw = _columns_of(_read_file(Path(source).expanduser()) if is_file else source)
    given = dict(types or {})
    for option, names in (("types", given), ("mask", mask or {})):
        if unknown := [each for each in names if each not in raw]:
            raise ValueError(f"{option} names {unknown[0]!r}, but the columns are {', '.join(raw)}")
    kept = {key: values for key, values in raw.items() if key not in given or given[key] is not None}
    if not kept:
        raise ValueError("the table has no columns")
    total = {key: _length(key, values) for key, values in kept.items()}
    if len(set(total.values())) > 1:
        raise ValueError(f"the columns have different lengths: {total}")
    read = {key: read_values(key, values, given.get(key), (mask or {}).get(key)) for key, values in kept.items()}
    n = next(iter(total.values()))
    order = split_sizes(n, valid, test, torch.Generator().manual_seed(seed))
    columns = tuple(column_of(key, values, order["train"].numpy()) for key, values in read.items())
    splits = _splits(columns, read, order)
    origin = {"data": os.fspath(source)} if is_file else {}
    return Table(
        name=name,
        **splits,
        shape=(len(columns),),
        binarize="none",
        seed=seed,
        flatten=True,
        origin={**origin, "flatten": True, "valid": valid, "test": test, "seed": seed, "types": given or None},
        columns=columns,
        from_frame=hasattr(source, "iloc"),
    )


def is_table_file(source: Any) -> bool:
    """Whether a source is the path of a table."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in ENDINGS


def _columns_of(source: Any) -> dict[str, Any]:
    if not isinstance(source, Mapping) and not hasattr(source, "iloc"):
        raise TypeError(
            f"cannot read a table from a {type(source).__name__}: expected a data frame of pandas, a dictionary from "
            "names to arrays, or the path of a .csv file"
        )
    names = list(source)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"the columns must have names, which are texts, each once; got {names!r:.200}")
    return {name: source[name] for name in names}


def _length(name: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError:
        raise TypeError(
            f"column {name!r} is a {type(values).__name__}: expected an array, a tensor or a list"
        ) from None


def _read_file(path: Path) -> dict[str, list[Any]]:
    """The columns of a CSV file, as numbers where all fields are numbers, None where a value is missing."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{str(path)!r} is not a table: expected a file that ends in {' or '.join(ENDINGS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {str(path)!r} (looked from {Path.cwd()})")
    size = path.stat().st_size
    check_memory(f"{str(path)!r} has {size:,} bytes, but its fields need about", BYTES_PER_BYTE * size)
    with open_plain(path, MAX_BYTES, links=True) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            reader = csv.reader(text, delimiter=ENDINGS[path.suffix.lower()], skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{str(path)!r} is not a table of texts in UTF-8: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{str(path)!r} has no rows: the first line holds the names of the columns, the others values")
    (_, names), *numbered = rows
    if len(names) == 1 and (other := [sign for sign in ";\t" if sign in names[0]]):
        raise ValueError(
            f"{str(path)!r} has one column, {names[0]!r:.60}: fields are separated by commas in .csv files and by tabs "
            f"in .tsv files, not by {other[0]!r}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{str(path)!r} has two columns of one name: {names!r:.200}")
    for line, row in numbered:
        if len(row) != len(names):
            raise ValueError(f"line {line} of {str(path)!r} has {len(row)} fields, but there are {len(names)} names")
    values = [row for _, row in numbered]
    found = {}
    for name, column in zip(names, zip(*values, strict=True), strict=True):
        found[name] = _as_numbers([None if field.strip().lower() in MISSING else field.strip() for field in column])
    return found


def _as_numbers(fields: list[str | None]) -> list[Any]:
    """Numbers in place of texts, if all of them are numbers."""
    try:
        return [None if field is None else float(field) for field in fields]
    except ValueError:
        return fields


def _splits(columns: tuple[Column, ...], read: Mapping[str, Values], order: Mapping[str, Tensor]) -> dict[str, Any]:
    dtype = torch.get_default_dtype()
    typical = np.array([column.typical for column in columns])
    known = np.stack([values.known for values in read.values()], 1)
    x = np.where(known, np.stack([values.numbers for values in read.values()], 1), typical)
    found: dict[str, Any] = {"train": None, "valid": None, "test": None}
    for name, index in order.items():
        if len(index):
            rows = torch.tensor(x[index.numpy()], dtype=dtype)
            found[name] = Split(rows, given=torch.tensor(known[index.numpy()]))
    return found
