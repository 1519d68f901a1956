"""Every example runs from its command line, in little, without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = {
    "custom_pair.py": ["--epochs", "2", "--num_samples", "10"],
    "gaussian_vae.py": ["--epochs", "2", "--num_samples", "10"],
    "vae.py": ["--data", "digits", "--epochs", "2", "--num_samples", "10"],
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    assert name in TINY, f"add arguments for a tiny run of examples/{name} to this table"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *TINY[name]],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "nats per datum" in done.stdout
    assert list((tmp_path / "pictures").glob("*.png")), "no picture was written"


def test_table_has_no_stale_rows() -> None:
    missing = [name for name in TINY if not (EXAMPLES / name).is_file()]
    assert not missing, f"no such examples: {missing}"
