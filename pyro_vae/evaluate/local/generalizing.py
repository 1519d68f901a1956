"""Inference gaps on training data compared with those on held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table
from rich.text import Text

from pyro_vae.evaluate.local.result import InferenceGaps
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import drawable
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Generalization", "generalization"]


@dataclass(frozen=True, repr=False)
class Generalization(Result):
    """Gaps on training data, gaps on held-out data, and their difference, in nats per datum.

    Attributes:
        train, test: The two results.
    """

    title: ClassVar[str] = "generalization"
    _rows_name: ClassVar[str] = "rows"

    train: InferenceGaps
    test: InferenceGaps

    @property
    def gap(self) -> float:
        """Mean log p(x) of the training data minus that of the held-out data."""
        return float(self.train.log_prob.mean() - self.test.log_prob.mean())

    @property
    def gap_error(self) -> float:
        """Standard error of `gap` over the data."""
        return math.hypot(*(r.to_dict()["log_prob_error"] for r in (self.train, self.test)))

    def _values(self) -> dict[str, Any]:
        return {
            "num_train": len(self.train),
            "num_test": len(self.test),
            "family": self.train.family,
            "gap": self.gap,
            "gap_error": self.gap_error,
        }

    def _rows(self) -> list[dict[str, Any]]:
        train, test = self.train.to_dict(), self.test.to_dict()
        return [
            {
                "figure": name,
                "train": train[name],
                "test": test[name],
                "difference": train[name] - test[name],
                "difference_error": math.hypot(train[f"{name}_error"], test[f"{name}_error"]),
            }
            for name in (*self.train.columns(), "approximation", "amortization", "inference")
        ]

    def table(self) -> Table:
        """Both means of each value, and their difference with its standard error."""
        title = f"{len(self.train)} training data and {len(self.test)} others, nats per datum"
        table = new_table(title, "", "training", "held out", "difference", "±")
        for row in self.to_dicts():
            name, *numbers = row.values()
            table.add_row(Text(name), *(f"{number:.3f}" for number in numbers))
        return table

    def _draw(self) -> Figure:
        """The gaps on both data sets, and the difference of all values with its standard error."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        gaps, differences = figure.subplots(1, 2)
        parts = ("approximation", "amortization", "inference")
        for shift, label, result in ((-0.2, "training", self.train), (0.2, "held out", self.test)):
            heights = drawable((getattr(result, name) for name in parts), math.nan)
            errors = [getattr(result, f"{name}_error") for name in parts]
            positions = [i + shift for i in range(len(parts))]
            gaps.bar(positions, heights, 0.38, yerr=drawable(errors), capsize=3, label=label)
        gaps.set_xticks(range(len(parts)), parts)
        gaps.set(ylabel="gap (nats per datum)")
        gaps.legend(fontsize=8)
        rows = self.to_dicts()
        values, errors = [row["difference"] for row in rows], [row["difference_error"] for row in rows]
        differences.errorbar(values, range(len(rows)), xerr=drawable(errors), fmt="o", capsize=3)
        differences.set_yticks(range(len(rows)), [row["figure"] for row in rows], fontsize=8)
        differences.axvline(0, color="gray", lw=0.8, ls=":")
        differences.invert_yaxis()
        differences.set(xlabel="training - held out (nats per datum)")
        return figure


@checked
def generalization(train: InferenceGaps, test: InferenceGaps) -> Generalization:
    """Compare the gaps on training data and on held-out data.

    Args:
        train, test: Results of `inference_gaps` with the same families, on two data sets.

    Raises:
        ValueError: If their families differ.
    """
    if list(train.local) != list(test.local):
        raise ValueError(f"the results are of different families, {list(train.local)} and {list(test.local)}")
    return Generalization(train, test)
