"""An amortized guide in words: its sites, in the order in which they are sampled."""

from __future__ import annotations

from typing import Any

__all__ = ["describe"]


def describe(guide: Any) -> str:
    """One line per site: given what, which family, which support, amortized or free."""
    head = f"AmortizedGuide, structure {guide.structure!r}, "
    head += f"data plate {guide.plate!r}" if guide.plate else "no data plate"
    rows = []
    for site in guide.sites:
        given = [name for name in guide.given[site.name] if name not in (*guide.summed_out, *guide.factors)]
        if not site.is_local:
            given = list(guide.parents[site.name])
        how = "amortized" if site.is_local else "free"
        inner = [f.name for f in site.frames if f.name != guide.plate]
        if inner:
            how += f", in {', '.join(inner)}"
        if coupled := sorted(guide.coupled[site.name] & set(inner)):
            how += f"; elements of {', '.join(coupled)} taken as independent"
        rows.append((site.name, f"given {', '.join(given)}" if given else "", site.family_name, site.values.label, how))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = [
        "  " + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    if guide.summed_out:
        lines.append(f"  {', '.join(guide.summed_out)}: enumerated by the model")
    return "\n".join([head, *lines])
