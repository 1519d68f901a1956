"""The house: imports run downwards, every file and folder says what it is, and no name stands for two things."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import pyro_vae
from tests.helpers.paths import ROOT as CHECKOUT

ROOT = Path(pyro_vae.__file__).parent

# From the ground up: a room may import from its own files and from the floors below it.
FLOORS = [
    ["support"],
    ["nets", "plots", "distributed"],
    ["pair"],
    ["compilation"],
    ["conditionals", "data"],
    ["priors", "oracles"],
    ["elbo"],
    ["evaluate", "models", "guides", "exporting"],
    ["training"],
    ["runs"],
    ["reports"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What is meant beyond the order: who must not know of whom.
STRANGERS = {
    "elbo": {"conditionals", "priors", "data", "oracles"},
    "evaluate": {"data"},
    "data": {"nets", "pair"},
    "compilation": {"nets"},
    "training": {"models", "conditionals", "priors", "nets", "oracles"},
    "models": {"data", "elbo"},
}

# Within a folder, too, for those that have a direction of their own.
INNER = {"elbo": [["estimators"], ["objectives"], ["adversarial"], ["registry"]]}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in ROOT.rglob("*.py")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_modules(source: str) -> Iterator[str]:
    """The modules of the package that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in found if name.partition(".")[0] == "pyro_vae")


def imported_rooms(source: str) -> Iterator[str]:
    for name in imported_modules(source):
        yield name.split(".")[1] if "." in name else "pyro_vae"


@lru_cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    found = set(imported_rooms(path.read_text())) - {room}
    assert {other for other in found if FLOOR[other] >= FLOOR[room]} == set()
    assert found & STRANGERS.get(room, set()) == set()


@pytest.mark.parametrize("room", INNER)
def test_imports_within_a_room_run_downwards(room: str) -> None:
    floor = {part: i for i, parts in enumerate(INNER[room]) for part in parts}
    for path in (ROOT / room).glob("*/*.py"):
        part = path.parent.name
        found = {name.split(".")[2] for name in imported_modules(path.read_text()) if name.count(".") > 1}
        above = {other for other in found & set(floor) - {part} if floor[other] >= floor[part]}
        assert not above, f"{name_of(path)} imports from {above}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module_of(path): set(imported_modules(path.read_text())) - {module_of(path)} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "nets", "plots"}


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = (
        "import torch, pyro_vae.nets\nfrom pyro_vae import data as d\ndef f():\n    from pyro_vae.elbo.terms import x"
    )
    assert sorted(imported_rooms(source)) == ["data", "elbo", "nets"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_begins_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "a one-line docstring first"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("__init__.py")), ids=name_of)
def test_an_init_holds_names_alone(path: Path) -> None:
    logic = [
        node
        for node in tree_of(path).body
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert not logic, f"line {logic[0].lineno}: move it to a module of its own"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_named_as_what_is_in_it(path: Path) -> None:
    names = {node.name for node in tree_of(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert path.stem not in names


@pytest.mark.parametrize(
    "name", ["pyro_vae", *sorted(m for m in MODULES if (ROOT.parent / m.replace(".", "/")).is_dir())]
)
def test_no_name_hides_a_module(name: str) -> None:
    """So that `pyro_vae.evaluate.preflight`, say, is the folder for whoever imports it and for whoever looks it up."""
    package = importlib.import_module(name)
    for inner in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{name}.{inner.name}")
        assert isinstance(getattr(package, inner.name), ModuleType)


LONGEST = 80  # lines of code of a function, without its docstring and its signature


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
            assert lines <= LONGEST, f"{node.name} has {lines} lines"


def test_tests_stand_in_the_rooms_of_what_they_test() -> None:
    tests = CHECKOUT / "tests"
    other = {"fuzz", "helpers", "mutants", "programs", "stored_runs", "browser"}
    assert {path.name for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"} - other <= set(FLOOR)


def test_no_test_module_lends_helpers_to_another() -> None:
    for path in (CHECKOUT / "tests").rglob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tests"):
                assert "test_" not in str(node.module), f"{path.name}: move what it needs to tests/helpers"
