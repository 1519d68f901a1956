"""Where things lie in a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXAMPLES", "ROOT", "STORED"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
STORED = ROOT / "tests" / "stored_runs"
