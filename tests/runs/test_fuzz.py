"""Changed files of every kind that is read: each is refused by name, or read as it says; nothing happens outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.fuzzing import KINDS, fuzz
from tests.helpers.paths import ROOT

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


OPENED = """
import importlib, sys
from pathlib import Path
from tests.helpers import fuzzing

module, _, name = sys.argv[1].rpartition(".")
setattr(importlib.import_module(module), name, lambda *_: None)
fuzzing.KINDS = {name: fuzzing.KINDS[name] for name in ("run: configuration", "resume: configuration")}
sys.exit(0 if fuzzing.fuzz(120, Path(sys.argv[2]))[1] else "nothing was found")
"""


@pytest.mark.slow
@pytest.mark.parametrize("hole", ["pyro_vae.runs.run.check_names", "pyro_vae.runs.config._check_untrusted"])
def test_the_fuzzer_finds_a_hole(tmp_path: Path, hole: str) -> None:
    """Without the look at the names, a module of the stranger is imported, or a model of a terabyte is begun.

    In a process of its own, where nothing of other tests is loaded.
    """
    words = [sys.executable, "-c", OPENED, hole, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
