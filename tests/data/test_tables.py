"""Tables: types and levels are inferred, missing values are found in all forms, and rows find the way back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.support.columns import as_columns, decode_rows

ROWS: dict[str, Any] = {
    "height": [170.5, 181.0, None, 165.25, 178.0, 160.0],
    "income": [1000.0, 250.5, 90000.0, math.nan, 3100.0, 12.0],
    "shift": [-1, 0, 2, 5, -3, None],
    "visits": [0, 3, 12, 1, None, 4],
    "smokes": [True, False, None, True, False, False],
    "city": ["Rome", "Oslo", "Rome", None, "Bern", "Oslo"],
}
TYPES = {
    "height": "real",
    "income": "positive",
    "shift": "real",
    "visits": "count",
    "smokes": "binary",
    "city": "categorical",
}


def types(table: pv.data.Table) -> dict[str, str]:
    return {column.name: column.type for column in table.columns}


def as_file(tmp_path: Path) -> Path:
    """The rows with missing values as files have them; truth values are words there."""
    marks = iter(["", "NA", "nan", "?", " null", "None"])
    lines = [",".join(ROWS)]
    for row in zip(*ROWS.values(), strict=True):
        fields = (next(marks) if v is None or v != v else str(v) for v in row)
        lines.append(",".join(fields))
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["dictionary", "arrays", "frame", "file"])
def test_types_and_missing_values_in_every_form(form: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    source: Any = ROWS
    if form == "arrays":
        source = {name: np.array(v, dtype=object if name in ("smokes", "city") else float) for name, v in ROWS.items()}
        source["height"] = torch.tensor([v or math.nan for v in ROWS["height"]], dtype=torch.double)
    elif form == "frame":
        source = pandas.DataFrame(ROWS)
        source["visits"] = source["visits"].astype("Int64")
    elif form == "file":
        source = as_file(tmp_path)
    table = pv.data.table(source, valid=0, test=0)
    assert types(table) == TYPES
    x, mask = table.train.args()
    expected = torch.tensor([[v is not None and v == v for v in row] for row in zip(*ROWS.values(), strict=True)])
    assert torch.equal(mask, expected)
    assert x.isfinite().all()
    back = decode_rows(table.columns, x, mask)
    for name, values in ROWS.items():
        for value, found in zip(values, back[name].tolist(), strict=True):
            if value is None or value != value:
                assert found is None or math.isnan(found)
            else:
                exact = str(value) if form == "file" and name == "smokes" else value
                assert found == (pytest.approx(exact, rel=1e-6) if isinstance(exact, float) else exact)
    rows = table.decode(x, mask)
    assert (type(rows).__name__ == "DataFrame") == (form == "frame")
    assert ["income", "positive", "log:", "6.87"] in [line.split()[:4] for line in repr(table).splitlines()]
    assert table.columns[0].missing == pytest.approx(1 / 6)


def test_figures_of_columns_are_those_of_the_known_training_values() -> None:
    torch.manual_seed(0)
    values = torch.randn(200, dtype=torch.double) * 3 + 50
    count = torch.poisson(torch.full((200,), 4.0))
    table = pv.data.table({"a": values, "b": values.exp(), "c": count}, mask={"a": torch.rand(200) < 0.7}, seed=3)
    assert table.columns[0].missing == pytest.approx(0.3, abs=0.1)
    rows, known = table.train.args()
    at = rows[:, 0][known[:, 0]].double()
    assert table.columns[0].loc == pytest.approx(at.mean().item(), rel=1e-6)
    assert table.columns[0].scale == pytest.approx(at.std(correction=0).item(), rel=1e-5)
    assert table.columns[1].loc == pytest.approx(rows[:, 1].double().log().mean().item(), rel=1e-6)
    assert table.columns[2].mean == pytest.approx(rows[:, 2].double().mean().item())
    # the splits are those of any other data
    same = pv.data.load(values.unsqueeze(1), seed=3)
    splits: list[Any] = [table.train, table.valid, table.test, same.train, same.valid, same.test]
    assert [len(split) for split in splits[:3]] == [len(split) for split in splits[3:]]


def test_types_given_by_hand_and_ordered_categories() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": ["S", "L", "M", "S"], "grade": [1, 2, 3, 3], "id": ["p", "q", "r", "s"]})
    frame["level"] = pandas.Categorical(["lo", "hi", "mid", "lo"], categories=["lo", "mid", "hi"], ordered=True)
    frame["other"] = pandas.Categorical(["u", "v", "v", "u"])
    given = {"size": ["S", "M", "L"], "grade": "ordinal", "id": None}
    table = pv.data.table(frame, types=given, valid=0, test=0)
    found = {column.name: (column.type, column.levels) for column in table.columns}
    assert found == {
        "size": ("ordinal", ("S", "M", "L")),
        "grade": ("ordinal", (1, 2, 3)),
        "level": ("ordinal", ("lo", "mid", "hi")),
        "other": ("binary", ("u", "v")),
    }
    assert table.train.x[:, 0].tolist() == [0, 2, 1, 0]
    assert table.decode(table.train.x)["size"].tolist() == ["S", "L", "M", "S"]


def test_columns_survive_json() -> None:
    columns = pv.data.table(ROWS, valid=0, test=0).columns
    assert as_columns(json.loads(json.dumps([column.to_dict() for column in columns]))) == columns


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, {}, r"different lengths: \{'a': 2, 'b': 1\}"),
        ({"a": [1.0, 1.0]}, {}, "column 'a' has 1 different values"),
        ({"a": [1.0, math.inf]}, {}, "column 'a' has infinite values"),
        ({"a": ["x", "y"]}, {"types": {"a": "real"}}, "column 'a' is to be real, but holds texts"),
        ({"a": [0.0, 1.5, 2.0]}, {"types": {"a": "positive"}}, "column 'a' is to be positive, but has the value 0"),
        ({"a": [0.5, 1.5, 2.0]}, {"types": {"a": "count"}}, "column 'a' is to be a count"),
        ({"a": [1, 2, 3]}, {"types": {"a": "binary"}}, "column 'a' is to be binary, but has 3 different values"),
        ({"a": ["S", "XL"]}, {"types": {"a": ["S", "M"]}}, r"has the values \['XL'\], which are not among its levels"),
        ({"a": [1, 2]}, {"types": {"a": "number"}}, "types.'a'. is 'number': expected one of real"),
        ({"a": [1, 2]}, {"types": {"b": "real"}}, "types names 'b', but the columns are a"),
        ({"a": [1, 2]}, {"mask": {"a": [1, 0]}}, "mask.'a'. must be booleans"),
        ({"a": [f"name {i}" for i in range(99)]}, {}, "column 'a' has 99 different texts in 99 rows, as names have"),
        ({"a": [1.7e9 + i + 0.5 for i in range(9)]}, {}, "column 'a' has values of size 1.7e[+]09 that vary by 2.58"),
        ({"a": [2**24 + i for i in range(9)]}, {}, "size 1.68e[+]07 whose logarithms vary by 1.54e-07"),
        ({"a": [1e6, 1e6 + 0.01]}, {"types": {"a": "positive"}}, "float32 does not tell them apart"),
        ({"a": [1e-50, 3e-49, 2e-50]}, {}, "sizes from 1e-50 to 3e-49, which are too small for torch.float32"),
        ({"a": [-1.5, 2.0, 1e30]}, {}, "sizes from 1.5 to 1e[+]30, which are too large for torch.float32"),
        ({"a": [10**400, 1, 2]}, {}, "whole numbers so large that double precision rounds them"),
        ({"a": [2**53 + 1, 2**53 + 2]}, {}, "whole numbers so large that double precision rounds them"),
        ({"a": [True, 1, 0]}, {}, "column 'a' holds truth values and numbers"),
        ({"a": ["S", "M"]}, {"types": {"a": ["S", "M", "M"]}}, "two or more different numbers, texts"),
        ({"a": ["S", "M"]}, {"types": {"a": ["S", "M", None]}}, "without one for missing values"),
        ({"a": [[1, 2], [3, 4]]}, {}, "column 'a' holds a list"),
        ({1: [1, 2]}, {}, "the columns must have names"),
        ([1, 2], {}, "cannot read a table from a list"),
    ],
)
def test_what_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pv.data.table(source, **{"valid": 0, "test": 0, **options})


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, message in (
        ("a,b\n1,2\n3\n", "line 3 of .* has 1 fields, but there are 2 names"),
        ("a,b\n\n1,2\n3\n", "line 4 of .* has 1 fields"),
        ("a;b\n1;2\n3;4\n", "has one column, 'a;b': fields are separated by commas"),
        ("a,a\n1,2\n", "two columns of one name"),
        ("a,b\n", "has no rows"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            pv.data.table(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        pv.data.table(tmp_path / "b.csv")
    path.write_text("a\n1\n2\n3\n4\n5\n")
    with pytest.raises(ValueError, match="is a table, whose columns have types of their own"):
        pv.data.load(path, binarize="static")
    with pytest.raises(ValueError, match=r"types=.* are those of the columns of a table"):
        pv.data.load("digits", types={"a": "real"})


def test_decoding_refuses_what_no_row_can_be() -> None:
    columns = pv.data.table(ROWS, valid=0, test=0).columns
    with pytest.raises(ValueError, match=r"expected rows of shape \(N, 6\)"):
        decode_rows(columns, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="column 'smokes' has values that are not the numbers of its levels"):
        decode_rows(columns, torch.full((2, 6), 2.0))
    with pytest.raises(TypeError, match=r"expected rows as a tensor .*, got a list"):
        decode_rows(columns, [[1.0] * 6])  # type: ignore[arg-type]
