"""Values in the form that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["as_json", "finite"]


def as_json(values: Mapping[str, Any]) -> str:
    """Indented JSON with a line break at its end; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(finite(values), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, and tuples by lists, in nested values."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
