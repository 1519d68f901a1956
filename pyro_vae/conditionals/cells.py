"""The likelihood of a row of a table: a distribution of its own for each column, in the units of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.conditionals.cell_distributions import Cells, LeveledCategorical
from pyro_vae.conditionals.count_distributions import MeanNegativeBinomial, ZeroInflated
from pyro_vae.conditionals.density_distributions import ExactStudentT
from pyro_vae.conditionals.likelihoods import Likelihood
from pyro_vae.support.arguments import checked
from pyro_vae.support.columns import Column, as_columns

__all__ = ["CELL_LIKELIHOODS", "ColumnLikelihood"]

# the likelihoods that a column of a type may have, the default first
CELL_LIKELIHOODS: dict[str, tuple[str, ...]] = {
    "real": ("normal", "student_t", "laplace"),
    "positive": ("log_normal",),
    "count": ("negative_binomial", "poisson", "zero_inflated_poisson", "zero_inflated_negative_binomial"),
    "binary": ("bernoulli",),
    "categorical": ("categorical",),
    "ordinal": ("ordinal",),
}


class ColumnLikelihood(Likelihood):
    r"""`p(x|z) = \prod_j p_j(x_j|z)` for rows of a table: each column has a likelihood of its type.

    Values are those of the table, in its units, and so is the density: features are in units where a column has mean 0
    and standard deviation 1, and the Jacobian of that scaling is part of the density. With all features zero each
    column has its own mean, shares and, where it is learned, a scale of 1 standard deviation.

    - real: `loc + scale * normal(h, s)`, or "student_t" (4 degrees of freedom), "laplace"
    - positive: `log x = loc + scale * normal(h, s)`, with s below 2
    - count: "negative_binomial" with mean `m exp(h)` and a dispersion, or "poisson", or either with extra zeros
    - binary, categorical: log-odds or log-shares, h plus those of the column
    - ordinal: cumulative log-odds, `P(x <= k) = sigmoid(c_k - h)`, with learned and ordered cutpoints c

    Args:
        columns: The C columns, `pv.data.table(...).columns`.
        likelihoods: For some columns, by name, another likelihood of `pv.conditionals.CELL_LIKELIHOODS`.
        scale: "column", one learned scale (or dispersion) for each column; "cell", one for each value from the network.
            The latter can find columns whose values repeat, and give them a density without bound.

    Raises:
        TypeError, ValueError: For columns that are none, names that no column has, or likelihoods that do not fit.

    Reference: Nazabal et al. 2020 (HI-VAE), arXiv 1807.03653, section 3.2 (there with s from the network).
    """

    @checked
    def __init__(
        self,
        columns: Sequence[Any],
        likelihoods: Mapping[str, str] | None = None,
        scale: Literal["column", "cell"] = "column",
    ) -> None:
        if scale not in ("column", "cell"):
            raise ValueError(f"scale must be 'column' or 'cell', got {scale!r}")
        self_columns = as_columns(columns)
        chosen = chosen_likelihoods(self_columns, likelihoods or {})
        places: dict[str, list[int]] = {}
        for j, name in enumerate(chosen):
            places.setdefault(name, []).append(j)
        groups = {name: _GROUPS[name]([self_columns[j] for j in at], scale == "cell") for name, at in places.items()}
        Conditional.__init__(self, len(columns), sum(group.size for group in groups.values()))
        self.columns, self.scale = self_columns, scale
        self.places = places
        self.groups = nn.ModuleDict(groups)

    @property
    def support(self) -> Any:  # type: ignore[override]
        return self.elements(torch.zeros(self.param_shape)).support

    def elements(self, h: Tensor) -> Cells:
        made = iter(self.groups.values())
        sizes = [group.size for group in self.groups.values()]
        parts = [next(made)(features) for features in h.split(sizes, -1)]
        return Cells(list(self.places.values()), parts)

    def features_at(self, mean: Tensor) -> Tensor:
        """Zeros, which give the mean of each column itself."""
        return mean.new_zeros(self.param_shape)


def chosen_likelihoods(columns: Sequence[Column], likelihoods: Mapping[str, str]) -> list[str]:
    """The name of each column's likelihood.

    Raises:
        ValueError: For a name that no column has, or a likelihood that a column of its type cannot have.
    """
    names = [column.name for column in columns]
    for name in likelihoods:
        if name not in names:
            raise ValueError(f"likelihoods names {name!r}, but the columns are {', '.join(names)}")
    chosen = []
    for column in columns:
        possible = CELL_LIKELIHOODS[column.type]
        wanted = likelihoods.get(column.name, possible[0])
        if wanted not in possible:
            raise ValueError(
                f"likelihoods[{column.name!r}] is {wanted!r}, but the column is {column.type}: expected "
                f"{' or '.join(possible)}; another type is given to pv.data.table(types=...)"
            )
        chosen.append(wanted)
    return chosen


class _Group(nn.Module):
    """Columns of one likelihood: features `(*, m n)`, m for each column, to a distribution of batch shape `(*, n)`."""

    features = 1
    scaled = True
    loc: Tensor
    unit: Tensor
    rate: Tensor

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        super().__init__()
        self.n = len(columns)
        self.per_cell = per_cell and self.scaled
        self.size = self.n * (self.features + self.per_cell)
        self.register_buffer("loc", torch.tensor([c.loc for c in columns]), persistent=False)
        self.register_buffer("unit", torch.tensor([c.scale for c in columns]), persistent=False)
        self.register_buffer("rate", torch.tensor([c.mean for c in columns]), persistent=False)
        if self.scaled and not per_cell:
            self.log_scale = nn.Parameter(torch.zeros(self.n))

    def forward(self, h: Tensor) -> Any:
        parts = h.unflatten(-1, (-1, self.n)).unbind(-2)
        if self.scaled:
            *parts, log_scale = parts if self.per_cell else (*parts, self.log_scale)
            return self.made(*parts, bounded_exp(log_scale))
        return self.made(*parts)

    def made(self, *parts: Tensor) -> Any:
        """The distribution from features of shape `(*, n)` and, where there is one, the scale."""
        raise NotImplementedError


class _Normal(_Group):
    family: Any = dist.Normal

    def made(self, h: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        return self.family(self.loc + self.unit * h, self.unit * scale)


class _Laplace(_Normal):
    family = dist.Laplace


class _StudentT(_Normal):
    @staticmethod
    def family(loc: Tensor, scale: Tensor) -> Any:
        return ExactStudentT(loc.new_full((), 4.0), loc, scale)


class _LogNormal(_Group):
    def made(self, h: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        # bounded, so that the mean is a finite float
        scale = 3 * scale / (2 + scale)  # 1 at 1, below 3
        return dist.LogNormal(self.loc + self.unit * 2 * soft_bound(h / 2), self.unit * scale)


class _Poisson(_Group):
    scaled = False

    def made(self, h: Tensor) -> Any:  # type: ignore[override]
        return dist.Poisson(self.rate * bounded_exp(h))


class _NegativeBinomial(_Group):
    dispersion: Tensor

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        super().__init__(columns, per_cell)
        # that of the column: log(1 + x) has about the variance 1 / mean + dispersion
        found = [min(max(c.scale**2 - 1 / (1 + c.mean), 1e-3), 1.0) for c in columns]
        self.register_buffer("dispersion", torch.tensor(found), persistent=False)

    def made(self, h: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        return MeanNegativeBinomial(self.rate * bounded_exp(h), self.dispersion * scale)


class _ZeroInflatedPoisson(_Poisson):
    features = 2

    def made(self, h: Tensor, gate: Tensor) -> Any:  # type: ignore[override]
        return ZeroInflated(super().made(h), gate_logits=soft_bound(gate) - FEW_ZEROS)


class _ZeroInflatedNegativeBinomial(_NegativeBinomial):
    features = 2

    def made(self, h: Tensor, gate: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        return ZeroInflated(super().made(h, scale), gate_logits=soft_bound(gate) - FEW_ZEROS)


FEW_ZEROS = 3.0  # extra zeros begin with a probability of 5 %
SMALL_STEP = 1e-4  # between two cutpoints, so that each level stays possible


class _Bernoulli(_Group):
    scaled = False
    odds: Tensor

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        super().__init__(columns, per_cell)
        odds = [math.log(c.shares[1] / c.shares[0]) for c in columns]
        self.register_buffer("odds", torch.tensor(odds), persistent=False)

    def made(self, h: Tensor) -> Any:  # type: ignore[override]
        return dist.Bernoulli(logits=h + self.odds)


class _Leveled(_Group):
    """Columns with levels, of which some may have more than others."""

    scaled = False
    impossible: Tensor

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        self.most = max(c.num_levels for c in columns)
        super().__init__(columns, per_cell)
        levels = torch.tensor([[c.num_levels] for c in columns])
        self.register_buffer("impossible", torch.arange(self.most) >= levels, persistent=False)

    def over_levels(self, log_mass: Tensor) -> LeveledCategorical:
        return LeveledCategorical(log_mass.masked_fill(self.impossible, -math.inf))


class _Categorical(_Leveled):
    shares: Tensor

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        self.features = max(c.num_levels for c in columns)
        super().__init__(columns, per_cell)
        logs = torch.tensor([[math.log(s) for s in (*c.shares, *[1.0] * (self.most - c.num_levels))] for c in columns])
        self.register_buffer("shares", logs, persistent=False)

    def made(self, *h: Tensor) -> Any:
        return self.over_levels(torch.stack(h, -1) + self.shares)  # (*, n, levels)


class _Ordinal(_Leveled):
    """Cumulative log-odds: `P(x <= k) = sigmoid(c_k - h)`, McCullagh 1980, doi 10.1111/j.2517-6161.1980.tb01109.x."""

    def __init__(self, columns: Sequence[Column], per_cell: bool) -> None:
        super().__init__(columns, per_cell)
        cuts = torch.zeros(self.n, self.most - 1, dtype=torch.double)
        for i, column in enumerate(columns):
            below = torch.tensor(column.shares, dtype=torch.double).cumsum(0)[:-1]
            cuts[i, : len(below)] = torch.logit(below)
            cuts[i, len(below) :] = cuts[i, len(below) - 1] + torch.arange(1, self.most - len(below))
        steps = cuts.diff()
        self.first = nn.Parameter(cuts[:, :1].to(torch.get_default_dtype()))
        # steps are positive: the inverse of softplus
        steps = (steps - SMALL_STEP).clamp_min(SMALL_STEP)
        self.steps = nn.Parameter((steps + torch.log(-torch.expm1(-steps))).to(torch.get_default_dtype()))

    def made(self, h: Tensor) -> Any:  # type: ignore[override]
        cuts = torch.cat([self.first, softplus(self.steps) + SMALL_STEP], -1).cumsum(-1)  # (n, levels - 1)
        height = cuts - soft_bound(h / 3).mul(3).unsqueeze(-1)  # (*, n, levels - 1)
        # the last level of a column lies above its last cutpoint
        last = self.impossible.roll(-1, -1)[..., :-1]
        last = torch.cat([last, torch.ones_like(last[..., :1])], -1)
        up = torch.cat([height, height[..., :1]], -1)
        down = torch.cat([height[..., :1], height], -1)
        first = torch.zeros_like(last)
        first[..., 0] = True
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) loses no digits in either tail
        mass = logsigmoid(up).masked_fill(last, 0) + logsigmoid(-down).masked_fill(first, 0)
        inner = ~(first | last | self.impossible)
        gap = torch.where(inner, down - up, -1.0)
        return self.over_levels(mass + torch.log(-torch.expm1(gap)).masked_fill(~inner, 0))


_GROUPS: dict[str, type[_Group]] = {
    "normal": _Normal,
    "laplace": _Laplace,
    "student_t": _StudentT,
    "log_normal": _LogNormal,
    "poisson": _Poisson,
    "negative_binomial": _NegativeBinomial,
    "zero_inflated_poisson": _ZeroInflatedPoisson,
    "zero_inflated_negative_binomial": _ZeroInflatedNegativeBinomial,
    "bernoulli": _Bernoulli,
    "categorical": _Categorical,
    "ordinal": _Ordinal,
}
