"""How faithful synthetic rows of a table are: columns, pairs of columns, a discriminator, and a test on real rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.console import Group
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.columns import LEVELED, Column, as_columns
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ColumnDistance", "TableFidelity", "table_fidelity"]


@dataclass(frozen=True)
class ColumnDistance:
    """The distance between the distributions of a real and a synthetic column.

    Attributes:
        column, type: The column's name and type.
        distance: That of Kolmogorov and Smirnov, of a column with levels the total variation; 0 for equal
            distributions, 1 for disjoint ones.
    """

    column: str
    type: str
    distance: float


@dataclass(frozen=True, repr=False)
class TableFidelity(PanelResult):
    """How faithful synthetic rows are.

    Attributes:
        distance: The mean of the columns' distances; 0 is best.
        correlation: The mean absolute difference of the rank correlations of pairs of columns; 0 is best.
        discriminator: Cross-validated accuracy of gradient-boosted trees that tell real from synthetic rows, of equal
            numbers; 0.5 is best.
        on_real, on_synthetic: The score on real test rows of trees that predict the target column, trained on real and
            on synthetic rows: accuracy of a target with levels, R squared of another. NaN without test rows.
        target: The target column.
        columns: The distance of each column.
    """

    title: ClassVar[str] = "fidelity of synthetic rows"
    _rows_name: ClassVar[str] = "columns"
    _columns: ClassVar[Sequence[str]] = tuple(ColumnDistance.__dataclass_fields__)

    distance: float
    correlation: float
    discriminator: float
    on_real: float
    on_synthetic: float
    target: str
    columns: list[ColumnDistance]

    def _values(self) -> dict[str, Any]:
        names = ("distance", "correlation", "discriminator", "on_real", "on_synthetic", "target")
        return {name: getattr(self, name) for name in names}

    def _rows(self) -> Sequence[Any]:
        return self.columns

    def table(self) -> Any:
        """The scores with their best values, then the columns."""
        scores = new_table(self.title, "score", "value", "best")
        for name, value, best in (
            ("distance of columns", self.distance, "0"),
            ("difference of correlations", self.correlation, "0"),
            ("accuracy of a discriminator", self.discriminator, "0.5"),
        ):
            scores.add_row(name, f"{value:.3f}", best)
        if not math.isnan(self.on_real):
            scores.add_row(f"{self.target} on real rows, trained on synthetic", f"{self.on_synthetic:.3f}", "")
            scores.add_row(f"{self.target} on real rows, trained on real", f"{self.on_real:.3f}", "")
        rows = new_table("", "column", "type", "distance")
        for row in self.columns:
            rows.add_row(row.column, row.type, f"{row.distance:.3f}")
        return Group(scores, rows)

    def __repr__(self) -> str:
        return (
            f"distance {self.distance:.3f}, correlations {self.correlation:.3f}, discriminator "
            f"{self.discriminator:.3f} ({len(self.columns)} columns)"
        )

    def _size(self) -> tuple[float, float]:
        return 6, 0.6 + 0.25 * len(self.columns)

    def _panel(self, ax: Axes) -> None:
        ax.barh(range(len(self.columns)), [row.distance for row in self.columns])
        ax.set(yticks=range(len(self.columns)), xlabel="distance of distributions", xlim=(0, 1))
        ax.set_yticklabels([without_math(row.column[:30]) for row in self.columns])
        ax.invert_yaxis()


@checked
def table_fidelity(
    real: Tensor,
    synthetic: Tensor,
    columns: Sequence[Column],
    *,
    mask: Tensor | None = None,
    test: Tensor | None = None,
    test_mask: Tensor | None = None,
    target: str | None = None,
    seed: int | None = None,
) -> TableFidelity:
    """Compare synthetic rows with real ones.

    Compared are the distributions of each column, the rank correlations of each pair of columns (levels by their
    numbers, except of categorical columns with more than two), and what gradient-boosted trees learn: whether they can
    tell real from synthetic rows, and whether a column is predicted from the others as well after training on
    synthetic rows as after training on real ones. Synthetic rows that are copies of real ones have the best scores of
    all: compare them with rows that the model has not seen.

    Args:
        real: Rows `(N, C)`, of a test split for example.
        synthetic: Rows `(M, C)`, `pv.sample(vae.model, M)` for example.
        columns: The C columns.
        mask: `(N, C)` of booleans, False where a value of a real row is missing. A synthetic row of the discriminator
            then lacks the values that a real one lacks.
        test: Rows `(K, C)` that neither model nor trees have seen, for the test on real rows; `real` are then those to
            train on.
        test_mask: `(K, C)`, as `mask`.
        target: The column to predict. Default: the last one with levels, else the last one.
        seed: Seed of the trees and of the choice of rows. None: from the generator of torch.

    Raises:
        ValueError: For other shapes, fewer than 20 rows, or a target that no column is.
    """
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    columns = as_columns(columns)
    known = _checked_rows("real", real, mask, columns)
    _checked_rows("synthetic", synthetic, None, columns)
    names = [column.name for column in columns]
    last = max((j for j, column in enumerate(columns) if column.type in LEVELED), default=len(columns) - 1)
    if target is not None and target not in names:
        raise ValueError(f"target is {target!r}, but the columns are {', '.join(names)}")
    chosen = last if target is None else names.index(target)
    rows = [
        ColumnDistance(column.name, column.type, _distance(column, real[known[:, j], j], synthetic[:, j]))
        for j, column in enumerate(columns)
    ]
    on_real = on_synthetic = math.nan
    if test is not None:
        test_known = _checked_rows("test", test, test_mask, columns)
        truth = _with_nan(test, test_known)
        on_real = _predicted(_with_nan(real, known), truth, columns, chosen, seed)
        on_synthetic = _predicted(synthetic.double(), truth, columns, chosen, seed)
    return TableFidelity(
        distance=sum(row.distance for row in rows) / len(rows),
        correlation=_correlation_difference(real, synthetic, known, columns),
        discriminator=_discriminator(real, synthetic, known, columns, seed),
        on_real=on_real,
        on_synthetic=on_synthetic,
        target=names[chosen],
        columns=rows,
    )


def _checked_rows(name: str, x: Tensor, mask: Tensor | None, columns: Sequence[Column]) -> Tensor:
    known = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    if x.dim() != 2 or x.shape[1] != len(columns) or len(x) < 20:
        raise ValueError(f"{name} must be at least 20 rows of shape (N, {len(columns)}), got {tuple(x.shape)}")
    if known.shape != x.shape or known.dtype != torch.bool or bool((~known.any(0)).any()):
        raise ValueError(
            f"the mask of {name} must be booleans of shape {tuple(x.shape)} with a known value in each column, got "
            f"{tuple(known.shape)} of {known.dtype}"
        )
    return known


def _with_nan(x: Tensor, known: Tensor) -> Tensor:
    return x.double().masked_fill(~known, math.nan)


def _distance(column: Column, real: Tensor, synthetic: Tensor) -> float:
    if column.type in LEVELED:
        counts = [torch.bincount(x.long(), minlength=column.num_levels).double() / len(x) for x in (real, synthetic)]
        return float((counts[0] - counts[1]).abs().sum() / 2)
    from scipy.stats import ks_2samp

    return float(ks_2samp(real.cpu().numpy(), synthetic.cpu().numpy()).statistic)


def _correlation_difference(real: Tensor, synthetic: Tensor, known: Tensor, columns: Sequence[Column]) -> float:
    """Over pairs of columns with an order; of known values of both. NaN if there is no pair."""
    from scipy.stats import spearmanr

    ordered = [j for j, column in enumerate(columns) if column.type != "categorical"]
    a, b = real.cpu().double().numpy(), synthetic.cpu().double().numpy()
    found = []
    for place, i in enumerate(ordered):
        for j in ordered[place + 1 :]:
            both = (known[:, i] & known[:, j]).cpu().numpy()
            pairs = (a[both][:, [i, j]], b[:, [i, j]])
            if any(len(x) < 3 or (x[0] == x).all(0).any() for x in pairs):
                continue  # a constant column has no correlation
            first, second = (float(spearmanr(x[:, 0], x[:, 1]).statistic) for x in pairs)
            found.append(abs(first - second))
    return sum(found) / len(found) if found else math.nan


def _discriminator(real: Tensor, synthetic: Tensor, known: Tensor, columns: Sequence[Column], seed: int) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    generator = torch.Generator().manual_seed(seed)
    n = min(len(real), len(synthetic))
    a, b = (torch.randperm(len(x), generator=generator)[:n] for x in (real, synthetic))
    x = torch.cat([_with_nan(real[a], known[a]), _with_nan(synthetic[b], known[a])]).cpu().numpy()
    y = [0] * n + [1] * n
    trees = HistGradientBoostingClassifier(categorical_features=_is_categorical(columns), random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(trees, x, y, cv=folds).mean())


def _predicted(train: Tensor, test: Tensor, columns: Sequence[Column], target: int, seed: int) -> float:
    """The score on test rows of trees that predict a column from the others."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    has_levels = columns[target].type in LEVELED
    others = [j for j in range(len(columns)) if j != target]
    if not others:
        return math.nan
    kind = HistGradientBoostingClassifier if has_levels else HistGradientBoostingRegressor
    flags = [_is_categorical(columns)[j] for j in others]
    trees = kind(categorical_features=flags, random_state=seed)
    (x, y), (x_test, y_test) = ((rows[~rows[:, target].isnan()].cpu().numpy(),) * 2 for rows in (train, test))
    if has_levels and len(set(y[:, target])) < 2:
        return float((y_test[:, target] == y[0, target]).mean())
    return float(trees.fit(x[:, others], y[:, target]).score(x_test[:, others], y_test[:, target]))


def _is_categorical(columns: Sequence[Column]) -> list[bool]:
    # scikit-learn takes at most 255 levels; more are ordered by their numbers
    return [column.type in ("binary", "categorical") and column.num_levels <= 255 for column in columns]
