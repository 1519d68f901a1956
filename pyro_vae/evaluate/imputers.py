"""Imputation of tables without a model, for comparison, and the scores of any imputation by column."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.columns import LEVELED, Column, as_columns
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ColumnScore", "ImputationScores", "impute_without_model", "imputation_scores"]


@dataclass(frozen=True)
class ColumnScore:
    """How well the missing values of one column were filled in.

    Attributes:
        column, type: The column's name and type.
        missing: How many values were missing and are known to the judge.
        rmse: Root mean squared error in the column's units; NaN of a column with levels.
        nrmse: The same in units of the column's standard deviation over all rows.
        accuracy: The share of right levels; NaN of a column without levels.
    """

    column: str
    type: str
    missing: int
    rmse: float
    nrmse: float
    accuracy: float


@dataclass(frozen=True, repr=False)
class ImputationScores(PanelResult):
    """The scores of an imputation, in total and by column.

    Attributes:
        nrmse: The mean of the columns' normalized errors, over the columns without levels; NaN if there are none. An
            imputation by the mean has about 1.
        accuracy: The mean of the columns' accuracies, over the columns with levels; NaN if there are none.
        columns: The scores of each column that has missing values.
    """

    title: ClassVar[str] = "imputation scores"
    _rows_name: ClassVar[str] = "columns"
    _columns: ClassVar[Sequence[str]] = tuple(ColumnScore.__dataclass_fields__)

    nrmse: float
    accuracy: float
    columns: list[ColumnScore]

    def _values(self) -> dict[str, Any]:
        return {"nrmse": self.nrmse, "accuracy": self.accuracy}

    def _rows(self) -> Sequence[Any]:
        return self.columns

    def table(self) -> Table:
        """A line for each column, and one for all."""
        table = new_table(self.title, "column", "type", "missing", "RMSE", "RMSE / s.d.", "accuracy")
        for row in self.columns:
            table.add_row(row.column, row.type, str(row.missing), *map(_number, (row.rmse, row.nrmse, row.accuracy)))
        table.add_row("mean", "", "", "", _number(self.nrmse), _number(self.accuracy))
        return table

    def __repr__(self) -> str:
        return f"RMSE {_number(self.nrmse)} s.d., accuracy {_number(self.accuracy)} ({len(self.columns)} columns)"

    def _size(self) -> tuple[float, float]:
        return 6, 0.6 + 0.25 * len(self.columns)

    def _panel(self, ax: Axes) -> None:
        for i, row in enumerate(self.columns):
            value = row.accuracy if row.type in LEVELED else row.nrmse
            ax.barh(i, value, color="C1" if row.type in LEVELED else "C0")
        ax.set(yticks=range(len(self.columns)), xlabel="RMSE in s.d. (accuracy of columns with levels)")
        ax.set_yticklabels([without_math(row.column[:30]) for row in self.columns])
        ax.invert_yaxis()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


@checked
def imputation_scores(truth: Tensor, filled: Tensor, mask: Tensor, columns: Sequence[Column]) -> ImputationScores:
    """Compare filled-in values with the deleted ones, for each column.

    Args:
        truth: The complete rows `(N, C)`. A value that is NaN was never known, and is left out.
        filled: The imputed rows `(N, C)`, `pv.impute(...).mean` for example.
        mask: `(N, C)` of booleans, False where a value was missing.
        columns: The C columns.

    Raises:
        ValueError: If the shapes differ, or nothing was missing.
    """
    columns = as_columns(columns)
    if not truth.shape == filled.shape == mask.shape or truth.dim() != 2 or truth.shape[1] != len(columns):
        raise ValueError(
            f"expected truth, filled and mask of one shape (N, {len(columns)}), got {tuple(truth.shape)}, "
            f"{tuple(filled.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be booleans, True where a value is known, got {mask.dtype}")
    judged = ~mask & ~truth.isnan()
    rows = []
    for j, column in enumerate(columns):
        at = judged[:, j]
        if not bool(at.any()):
            continue
        right, guess = truth[at, j].double(), filled[at, j].double()
        if column.type in LEVELED:
            accuracy = float((right == guess.round()).double().mean())
            rows.append(ColumnScore(column.name, column.type, int(at.sum()), math.nan, math.nan, accuracy))
        else:
            values = truth[~truth[:, j].isnan(), j].double()
            rmse = float((right - guess).square().mean().sqrt())
            spread = float(values.std(correction=0))
            nrmse = rmse / spread if spread else math.nan
            rows.append(ColumnScore(column.name, column.type, int(at.sum()), rmse, nrmse, math.nan))
    if not rows:
        raise ValueError("nothing was missing whose truth is known: there is nothing to score")
    return ImputationScores(_mean([row.nrmse for row in rows]), _mean([row.accuracy for row in rows]), rows)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@checked
def impute_without_model(
    x: Tensor,
    mask: Tensor,
    columns: Sequence[Column],
    *,
    method: Literal["mean", "knn", "iterative"] = "mean",
    seed: int | None = None,
) -> Tensor:
    """Fill in missing values of a table by scikit-learn's imputers: what a model has to beat.

    Numbers are standardized first, positive ones and counts as they are, and columns with levels become one indicator
    for each level, of which the largest imputed one is chosen.

    Args:
        x: Rows `(N, C)`; the values at missing places do not matter.
        mask: `(N, C)` of booleans, True where a value is known.
        columns: The C columns.
        method: "mean" (of levels the most frequent), "knn" (`KNNImputer`, 5 neighbors weighted by distance),
            "iterative" (`IterativeImputer`, Bayesian ridge regression of each column on all others in turn).
        seed: Seed of the draws of the regressions. None: from the generator of torch.

    Returns:
        Tensor: Completed rows `(N, C)`, known values unchanged.

    Raises:
        ValueError: For an unknown method, other shapes, or a column without known values.
    """
    columns = as_columns(columns)
    if method not in ("mean", "knn", "iterative"):
        raise ValueError(f"method must be 'mean', 'knn' or 'iterative', got {method!r}")
    if x.dim() != 2 or x.shape != mask.shape or x.shape[1] != len(columns) or mask.dtype != torch.bool:
        raise ValueError(
            f"expected rows and a mask of booleans of one shape (N, {len(columns)}), got {tuple(x.shape)} and "
            f"{tuple(mask.shape)} of {mask.dtype}"
        )
    if bool((~mask.any(0)).any()):
        raise ValueError(f"column {columns[int((~mask.any(0)).nonzero()[0])].name!r} has no known value")
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    # among regressions on each other, indicators that sum to one would never leave their means
    first = 1 if method == "iterative" else 0
    numbers, sizes = _as_numbers(x.double(), mask, columns, first)
    mean, spread = numbers.nanmean(0), (numbers - numbers.nanmean(0)).square().nanmean(0).sqrt().clamp_min(1e-12)
    filled = torch.tensor(_fill(((numbers - mean) / spread).cpu().numpy(), method, seed)) * spread + mean
    parts = zip(filled.split(sizes, 1), columns, strict=True)
    made = torch.stack([_level(part, first) if column.num_levels else part[:, 0] for part, column in parts], 1)
    least = torch.tensor([0.0 if c.type == "count" else 1e-12 if c.type == "positive" else -math.inf for c in columns])
    return torch.where(mask, x, made.clamp_min(least.double()).to(x))


def _level(indicators: Tensor, first: int) -> Tensor:
    """The level of the largest indicator; where these begin with the `first`, that before is what they leave of one."""
    rest = 1 - indicators.sum(1, keepdim=True)
    return torch.cat([rest, indicators], 1).argmax(1) if first else indicators.argmax(1)


def _as_numbers(x: Tensor, mask: Tensor, columns: Sequence[Column], first: int) -> tuple[Tensor, list[int]]:
    """Numbers, and an indicator for each level from the `first`, NaN where missing; and how many of each column."""
    parts = []
    for j, column in enumerate(columns):
        values = x[:, j : j + 1]
        if column.num_levels:
            values = (values == torch.arange(first, column.num_levels, device=x.device)).to(x.dtype)
        parts.append(values.masked_fill(~mask[:, j : j + 1], math.nan))
    return torch.cat(parts, 1), [part.shape[1] for part in parts]


def _fill(values: Any, method: str, seed: int) -> Any:
    if method == "mean":
        from sklearn.impute import SimpleImputer

        return SimpleImputer().fit_transform(values)
    if method == "knn":
        from sklearn.impute import KNNImputer

        return KNNImputer(weights="distance").fit_transform(values)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last sweeps change little
        return IterativeImputer(max_iter=20, tol=0.01, random_state=seed).fit_transform(values)
