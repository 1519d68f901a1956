"""The result of `preflight`: the issues, and the sites of the pair."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.console import Group
from rich.text import Text

from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Level", "PreflightIssue", "PreflightReport"]

Level = Literal["error", "warning"]
SITE_COLUMNS = ("site", "model", "guide", "batch", "event", "plates")
WHOLE = "(the pair)"  # in place of a site, for an issue of the whole pair


@dataclass(frozen=True)
class PreflightIssue:
    """One finding: an "error" makes results or training wrong, a "warning" is legal but rarely intended."""

    level: Level
    code: str
    site: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.level} [{self.code}]: {self.message}"


@dataclass(frozen=True, repr=False)
class PreflightReport(PanelResult):
    """The result of `preflight`; prints one paragraph per issue and, without errors, a table of the sites.

    Attributes:
        issues: The issues in the order in which they were found.
        sites: For each site its name, its families in the model and in the guide, its shapes, and its plates.
    """

    title: ClassVar[str] = "preflight"
    _rows_name: ClassVar[str] = "issues"
    _columns: ClassVar[list[str]] = list(PreflightIssue.__dataclass_fields__)

    issues: list[PreflightIssue]
    sites: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def problems(self) -> list[PreflightIssue]:
        """The `issues`, under the name that they had before; goes with version 0.2."""
        warnings.warn("PreflightReport.problems is now .issues", FutureWarning, stacklevel=2)
        return self.issues

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(issue.level != "error" for issue in self.issues)

    @property
    def _count(self) -> dict[str, int]:
        errors = sum(issue.level == "error" for issue in self.issues)
        return {"errors": errors, "warnings": len(self.issues) - errors}

    @property
    def _verdict(self) -> str:
        found = "{errors} error(s), {warnings} warning(s)".format(**self._count)
        return f"preflight: {found if self.issues else 'the pair is sound'}"

    def __repr__(self) -> str:
        paragraphs = [self._verdict, *map(str, self.issues)]
        if self.ok and self.sites:
            rows = [SITE_COLUMNS, *self.sites]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
            paragraphs.append("\n".join(lines))
        return "\n\n".join(paragraphs)

    def _values(self) -> dict[str, Any]:
        sites = [dict(zip(SITE_COLUMNS, site, strict=True)) for site in self.sites]
        return {"ok": self.ok, **self._count, "sites": sites}

    def _rows(self) -> list[PreflightIssue]:
        return self.issues

    def table(self) -> Group:
        """The issues, and the sites."""
        parts: list[Any] = [Text(self._verdict)]
        if self.issues:
            issues = new_table("", "level")
            for column in ("code", "site", "message"):
                issues.add_column(column)
            for issue in self.issues:
                issues.add_row(*map(Text, (issue.level, issue.code, issue.site or WHOLE, issue.message)))
            parts.append(issues)
        if self.sites:
            sites = new_table("", SITE_COLUMNS[0])
            for column in SITE_COLUMNS[1:]:
                sites.add_column(column)
            for site in self.sites:
                sites.add_row(*map(Text, site))
            parts.append(sites)
        return Group(*parts)

    def _names_of_sites(self) -> list[str]:
        named = (*(site[0] for site in self.sites), *(issue.site or WHOLE for issue in self.issues))
        return list(dict.fromkeys(named)) or [WHOLE]

    def _is_empty(self) -> bool:
        return False  # no issue is good news

    def _size(self) -> tuple[float, float]:
        return 6, 1.2 + 0.35 * len(self._names_of_sites())

    def _panel(self, ax: Axes) -> None:
        """The numbers of errors and warnings of each site."""
        from matplotlib.ticker import MaxNLocator

        found = Counter((issue.site or WHOLE, issue.level) for issue in self.issues)
        names = self._names_of_sites()
        errors, warnings = ([found[name, level] for name in names] for level in ("error", "warning"))
        ax.barh(range(len(names)), errors, color="C3", label="errors")
        ax.barh(range(len(names)), warnings, left=errors, color="C1", label="warnings")
        ax.set_yticks(range(len(names)), map(without_math, names))
        ax.set_xlim(0, max(1, *(e + w for e, w in zip(errors, warnings, strict=True))) * 1.05)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.invert_yaxis()
        ax.set(xlabel="issues", ylabel="site")
        ax.set_title(self._verdict, loc="left", fontsize=10)
        if self.issues:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
