"""The mutation score: which check noticed which fault, in words, and as a table of the documentation."""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.paths import ROOT
from tests.mutants.running import Verdict

__all__ = ["Score"]

PAGE = ROOT / "docs" / "developing.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass
class Score:
    """The verdicts on all mutants, by what they are planted into."""

    verdicts: dict[str, list[Verdict]]
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether every fault took effect and no check complains of what is right."""
        return all(v.took_effect and v.sound and not v.error for each in self.verdicts.values() for v in each)

    def checks(self, kind: str) -> list[str]:
        return list(dict.fromkeys(check for v in self.verdicts[kind] for check in v.found))

    def __str__(self) -> str:
        lines = []
        for kind, verdicts in self.verdicts.items():
            checks = self.checks(kind)
            width = max(len(v.name) for v in verdicts)
            lines.append(f"\n{'fault in ' + kind:{width}}  " + "  ".join(checks))
            for v in verdicts:
                cells = "  ".join(f"{'yes' if v.found.get(c) else '-':{len(c)}}" for c in checks)
                flaws = [] if v.took_effect else ["NO EFFECT"]
                flaws += [] if v.sound else ["the right one is complained of"]
                flaws += [v.error.strip().splitlines()[-1]] if v.error else []
                lines.append(f"{v.name:{width}}  {cells}  {'; '.join(flaws)}".rstrip())
            lines += [f"  {line}" for line in self.counts(kind)]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])

    def counts(self, kind: str) -> list[str]:
        """How many each check noticed."""
        verdicts = self.verdicts[kind]
        lines = [
            f"{check}: {sum(bool(v.found.get(check)) for v in verdicts)} of {len(verdicts)}"
            for check in self.checks(kind)
        ]
        return [*lines, f"any: {sum(v.noticed for v in verdicts)} of {len(verdicts)}"]

    def table(self) -> str:
        """Tables of Markdown."""
        parts = []
        for kind, verdicts in self.verdicts.items():
            checks = self.checks(kind)
            rows = [f"| planted into {kind} | noticed | share |", "|---|--:|--:|"]
            for check in [*checks, "any of them"]:
                count = sum(v.noticed if check == "any of them" else bool(v.found.get(check)) for v in verdicts)
                label = check if check in ("any of them", "fit", "tests") else f"`{check}`"
                rows.append(f"| {label} | {count} of {len(verdicts)} | {100 * count / len(verdicts):.0f} % |")
            parts.append("\n".join(rows))
        return "\n\n".join(parts)

    def write(self) -> None:
        """Put the tables between the marks of `docs/developing.md`."""
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{self.table()}\n{END}{after}")
