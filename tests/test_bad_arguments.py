"""Bad arguments, by rule: every public call times every argument times values that none of its kind may have.

A bad value raises a `ValueError` or `TypeError` that names the argument, before any work. The calls are those of
`pyro_vae.__all__` and of its public modules; their arguments and the kinds of these come from the signatures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from pyro_vae.support.arguments import checked_from
from tests.helpers.bad_arguments import Call, bad_values, calls, kind_of, outcome

matplotlib.use("Agg")
CALLS = calls(Path(tempfile.mkdtemp(prefix="bad_arguments_")))

# What is accepted although it is no value of the annotated kind: (call, argument, value); none.
ACCEPTED: set[tuple[str, str, str]] = set()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_bad_values_are_refused_by_the_name_of_the_argument(call: Call) -> None:
    if call.name == "to_xarray":
        pytest.importorskip("arviz")
    call.run()  # with good ones
    found = {
        (call.name, name, repr(value)[:40]): outcome(call, name, value)
        for name, kind in call.arguments().items()
        for value in bad_values(kind)
    }
    assert {which: said for which, said in found.items() if said != "clear" and which not in ACCEPTED} == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_values_of_other_types_are_refused_by_the_name_of_the_argument(call: Call) -> None:
    if call.name == "to_xarray":
        pytest.importorskip("arviz")
    found = {(name, repr(value)[:20]): outcome(call, name, value) for name, value in call.of_other_types()}
    assert {which: said for which, said in found.items() if said != "clear"} == {}


def test_the_rule_covers_the_library() -> None:
    """So that it does not come to nothing when signatures are written in another way."""
    arguments = [(call, name, kind) for call in CALLS for name, kind in call.arguments().items()]
    assert len(CALLS) > 100
    assert sum(len(bad_values(kind)) for _, _, kind in arguments) > 3000
    assert sum(len(list(call.of_other_types())) for call in CALLS) > 500
    assert {kind.removesuffix("?") for _, _, kind in arguments} == {
        *("int", "float", "bool", "str", "choice", "path", "sizes", "size", "functions")
    }


def test_kinds_of_annotations() -> None:
    kinds = {"int": "int", "int | None": "int?", "Literal['a', 'b'] | None": "choice?", "str | Path": "path"}
    assert {text: kind_of(text) for text in kinds} == kinds
    assert kind_of(int) == "int"
    assert kind_of("Tensor") is None
    assert kind_of("float | Callable[[int], float]") is None


def test_checks_know_the_signature() -> None:
    @checked_from(a=1)
    def call(a: int, *rest: int, scale: float = 1.0, mode: bool | None = None, **more: int) -> Any:
        """What it does."""
        return a, rest, scale, mode, more

    assert call(1, 0, scale=2, mode=None, other=-1) == (1, (0,), 2, None, {"other": -1})
    assert call.__doc__ == "What it does."
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        call()  # type: ignore[call-arg]
    for options, words in (
        ({"a": 0}, "a must be at least 1, got 0"),
        ({"a": 10**30}, "a must be a whole number, got 1000"),
        ({"a": 10**5000}, "a must be a whole number, got a int"),
        ({"a": 1, "scale": float("inf")}, "scale must be a finite number, got inf"),
        ({"a": 1, "mode": 1}, "mode must be True, False or None, got 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call(**options)
