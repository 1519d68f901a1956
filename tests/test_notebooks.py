"""Every notebook runs from its first cell to its last, in little; warnings are errors, as in all tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.paths import EXAMPLES

NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.py"))
TINY = {"EPOCHS": "2", "SAMPLES": "20", "REPEATS": "3", "SEEDS": "[0, 1]"}  # in place of the settings in capitals


def in_little(source: str) -> str:
    """The notebook with tiny settings."""
    return re.sub(r"^([A-Z]+) = .*$", lambda m: f"{m[1]} = {TINY[m[1]]}", source, flags=re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(in_little(path.read_text()), path, "exec"), {"__name__": "notebook"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells(path: Path) -> None:
    """Each cell stands alone as Python, text cells are one text, and code comes between them."""
    kinds = []
    for cell in re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        nodes = ast.parse(body).body
        kinds.append(head.strip())
        if head.strip() == "[markdown]":
            assert len(nodes) == 1
            assert isinstance(nodes[0], ast.Expr)
        else:
            assert head.strip() == ""
            assert nodes
    assert kinds[0] == "[markdown]"
    assert len(kinds) > 6
