"""Inference gaps on training data against those on data held out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from pyro_vae.evaluate.local.gaps import InferenceGaps
from pyro_vae.support.tables import as_text

__all__ = ["Generalization", "generalization"]


@dataclass(frozen=True, repr=False)
class Generalization:
    """Gaps on training data beside those on data held out, and the difference, in nats per datum.

    Attributes:
        train, test: The two results.
    """

    train: InferenceGaps
    test: InferenceGaps

    @property
    def gap(self) -> float:
        """Mean log p(x) of the training data less that of the others: how far the model fits them better."""
        return float(self.train.log_prob.mean() - self.test.log_prob.mean())

    @property
    def gap_error(self) -> float:
        """Standard error of `gap` over the data."""
        return math.hypot(*(r.to_dict()["log_prob_error"] for r in (self.train, self.test)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a figure: both means, and their difference with its standard error."""
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

    def __repr__(self) -> str:
        table = Table(
            title=f"{len(self.train)} training data and {len(self.test)} others, nats per datum",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for column in ("", "training", "held out", "difference", "±"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for row in self.to_dicts():
            name, *numbers = row.values()
            table.add_row(name, *(f"{number:.3f}" for number in numbers))
        return as_text(table)


def generalization(train: InferenceGaps, test: InferenceGaps) -> Generalization:
    """Compare the gaps on training data and on data held out: do model and encoder serve both as well?

    Args:
        train, test: Results of `inference_gaps` with the same families, on two data sets.

    Raises:
        ValueError: If their families differ.
    """
    if list(train.local) != list(test.local):
        raise ValueError(f"the results are of different families, {list(train.local)} and {list(test.local)}")
    return Generalization(train, test)
