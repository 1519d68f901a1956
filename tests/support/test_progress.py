"""Where a progress bar is shown."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian
from pyro_vae.support import notebooks
from pyro_vae.support.progress import progress_bar


class ZMQInteractiveShell:
    """What `get_ipython()` returns in a notebook goes by this name."""


class Cell:
    """The output of a notebook's cell: what was shown in it, one entry a bar, in its last state."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, str]] = []
        self.updates = 0

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        index = len(self.outputs)
        self.outputs.append(content)

        def update(new: dict[str, str], *, raw: bool) -> None:
            assert raw
            self.outputs[index] = new
            self.updates += 1

        return SimpleNamespace(update=update)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    cell = Cell()
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    monkeypatch.setattr(notebooks, "PAUSE", 0.0)
    return cell


def test_a_notebook_shows_a_bar_unless_told_not_to(cell: Cell) -> None:
    with progress_bar("work <1>", 3, None) as advance:
        advance()
        advance(1, status="ELBO -1")
        assert cell.outputs[0]["text/plain"] == "work <1> 2 of 3 0:00 ELBO -1"
        assert 'value="2" max="3"' in cell.outputs[0]["text/html"]
        assert "work &lt;1&gt;" in cell.outputs[0]["text/html"]
        advance()
    assert len(cell.outputs) == 1
    assert cell.outputs[0]["text/plain"] == "work <1> 3 of 3 0:00 ELBO -1"
    with progress_bar("silent", 3, False) as advance:
        advance()
    assert len(cell.outputs) == 1


def test_a_bar_without_an_end_counts(cell: Cell) -> None:
    with progress_bar("epochs", None, True) as advance:
        advance(4)
    assert cell.outputs[0]["text/html"].startswith("<progress></progress>")
    assert cell.outputs[0]["text/plain"].startswith("epochs 4 ")


def test_a_notebook_is_not_flooded(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "PAUSE", 3600.0)
    with progress_bar("steps", 1000, None) as advance:
        for _ in range(1000):
            advance()
    assert cell.updates == 1  # the last state
    assert "1000 of 1000" in cell.outputs[0]["text/plain"]


def test_an_error_leaves_the_bar_where_it_was(cell: Cell) -> None:
    def interrupted() -> None:
        with progress_bar("steps", 10, None) as advance:
            advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "3 of 10" in cell.outputs[0]["text/plain"]


def test_fit_shows_its_bar_in_a_notebook(cell: Cell) -> None:
    pair = LinearGaussian()
    pv.fit(pair.model, pair.guide, pair.simulate(8), epochs=1, batch_size=4, progress=None)
    assert len(cell.outputs) == 1
    assert "ELBO" in cell.outputs[0]["text/plain"]


@pytest.mark.parametrize("terminal", [True, False])
def test_elsewhere_only_a_terminal_does(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(Console, "is_terminal", terminal)
    monkeypatch.setattr("pyro_vae.support.progress.Progress.start", lambda self: shown.append(self))
    with progress_bar("work", 3, None) as advance:
        advance()
    assert bool(shown) is terminal
