"""Imports run downwards only, and files stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent

# A module may import from its own part and from the parts below it.
PARTS = [
    ["names", "shared_memory"],
    ["memory", "nets", "oracles", "progress", "plots", "ranks", "tables"],
    ["conditionals"],
    ["priors"],
    ["data", "models"],
    ["elbo"],
    ["rewrites"],
    ["compiled", "precision"],
    ["phased"],
    ["svi"],
    ["evaluate"],
    ["feed"],
    ["checkpoints", "course", "device", "guard", "meter", "history"],
    ["resumption"],
    ["fit", "paired"],
    ["compare_training", "tracking"],
    ["runs"],
    ["cli"],
]
RANK = {part: rank for rank, parts in enumerate(PARTS) for part in parts}

# What is meant beyond the order: who must not know of whom.
STRANGERS = {
    "evaluate": {"models", "fit", "runs", "cli", "data"},
    "elbo": {"models", "conditionals", "priors", "data"},
    "data": {"models", "conditionals", "priors", "nets"},
    "compiled": {"models", "conditionals", "priors", "nets", "data"},
    "svi": {"models", "conditionals", "priors", "nets", "data"},
    "fit": {"models", "conditionals", "priors", "nets"},
    "models": {"data"},
}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_parts(source: str) -> Iterator[str]:
    """The parts of the package that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            head, *rest = name.split(".")
            if head == "pyro_vae":
                yield rest[0] if rest else "pyro_vae"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    part = part_of(path)
    found = set(imported_parts(path.read_text())) - {part}
    assert {other for other in found if RANK[other] >= RANK[part]} == set()
    assert found & STRANGERS.get(part, set()) == set()


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in FILES} <= set(RANK)


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = (
        "import torch, pyro_vae.nets\nfrom pyro_vae import data as d\ndef f():\n    from pyro_vae.elbo.terms import x"
    )
    assert sorted(imported_parts(source)) == ["data", "elbo", "nets"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_begins_with_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "a one-line docstring first"
