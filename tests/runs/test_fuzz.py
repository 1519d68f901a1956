"""Changed files of every kind that is read: each is refused by name, or read as it says; nothing happens outside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.fuzzing import KINDS, fuzz

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")


@pytest.mark.slow
def test_300_changed_files(tmp_path: Path) -> None:
    """`make fuzz-files` tries ten thousand."""
    counts, wrong = fuzz(300, tmp_path)
    assert not wrong, "\n".join(wrong)
    for name in KINDS:
        assert counts[f"{name}: read"] >= 1  # the original
    refused = sum(count for name, count in counts.items() if name.endswith("refused"))
    assert refused > 150


@pytest.mark.slow
@pytest.mark.parametrize("hole", ["pyro_vae.runs.run.check_names", "pyro_vae.runs.config._check_untrusted"])
def test_the_fuzzer_finds_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hole: str) -> None:
    """Without the look at the names, a module of the stranger is imported, or a model of a terabyte is begun."""
    monkeypatch.setattr(hole, lambda *_: None)
    kinds = ("run: configuration", "resume: configuration")
    monkeypatch.setattr("tests.helpers.fuzzing.KINDS", {name: KINDS[name] for name in kinds})
    assert fuzz(120, tmp_path)[1]
