"""Likelihoods of real, positive, bounded and circular data: Student-t, log-normal, Beta, von Mises."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals.base import bounded_exp, soft_bound
from pyro_vae.conditionals.density_distributions import ExactBeta, ExactStudentT, ExactVonMises
from pyro_vae.conditionals.likelihoods import Likelihood, _LocationScale
from pyro_vae.conditionals.positive import check_positive, positive_of
from pyro_vae.support.arguments import checked

__all__ = ["Beta", "LogNormal", "StudentT", "VonMises"]


class StudentT(_LocationScale):
    """`p(x) = StudentT(df, h, scale)` for real data with outliers: its tails fall like a power of the distance.

    Args:
        shape: shape of one datum.
        scale: a positive number; "shared", one learned scale; "pixel", one per element from the network, m = 2.
        df: the degrees of freedom: a number above 1, so that there is a mean (above 2 for a variance); or "shared", one
            learned number above 2 that starts at 4.

    Reference: Takahashi et al. 2018, doi 10.24963/ijcai.2018/374.

    >>> StudentT(2, scale=1.0, df=3.0)(torch.zeros(2)).log_prob(torch.zeros(2))
    tensor(-2.0018)
    """

    log_df: Tensor

    @checked
    def __init__(
        self,
        shape: int | Sequence[int],
        scale: float | Literal["shared", "pixel"] = "shared",
        df: float | Literal["shared"] = "shared",
    ) -> None:
        if isinstance(df, str):
            if df != "shared":
                raise ValueError(f"df must be a number above 1 or 'shared', got {df!r}")
        elif not 1 < df < math.inf:
            raise ValueError(f"df must be above 1, so that there is a mean, and finite, got {df!r}; or 'shared'")
        super().__init__(shape, scale)
        self.df = df
        if df == "shared":
            self.log_df = nn.Parameter(torch.full((), math.log(2.0)))

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        df = 2 + bounded_exp(self.log_df) if self.df == "shared" else loc.new_full((), float(self.df))
        return ExactStudentT(df, loc, scale)


class LogNormal(_LocationScale):
    """`log x ~ Normal(h, scale)` for positive data whose errors are relative.

    The location of log x stays within (-35, 35), unchanged within 15 of zero, and a learned scale below 8, so that the
    mean is a finite float: divide data by their typical size first.

    Args:
        shape: shape of one datum.
        scale: a positive number; "shared", one learned scale of log x; "pixel", one per element from the network,
            m = 2.

    >>> LogNormal(1, scale=0.5)(torch.tensor([1.0])).mean
    tensor([3.0802])
    """

    support: Any = constraints.positive

    @checked
    def __init__(self, shape: int | Sequence[int], scale: float | Literal["shared", "pixel"] = "shared") -> None:
        super().__init__(shape, scale)

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        return dist.LogNormal(5 * soft_bound(loc / 5), self._bounded(scale))

    def _bounded(self, scale: Tensor) -> Tensor:
        return scale / (1 + scale / 8) if isinstance(self.scale, str) else scale

    def features_at(self, mean: Tensor) -> Tensor:
        if self.scale == "shared":
            scale = self._bounded(bounded_exp(self.log_scale)).to(mean)
        else:
            scale = self._bounded(mean.new_ones(()) if self.scale == "pixel" else mean.new_full((), float(self.scale)))
        return super().features_at(mean.clamp_min(1e-6).log() - scale.square() / 2)


class Beta(Likelihood):
    r"""`p(x) = Beta(m k, (1 - m) k)` for shares in (0, 1), with mean `m = sigmoid(h)` and concentration k.

    The log-odds of m stay within (-7, 7). Values of exactly 0 or 1, where a Beta density is 0 or infinite, are read as
    the nearest float inside.

    Args:
        shape: shape of one datum.
        concentration: k: a positive number; "shared", one learned number; "pixel", one per element from the network,
            m = 2. The variance is `m (1 - m) / (k + 1)`.

    Reference: Ferrari and Cribari-Neto 2004, doi 10.1080/0266476042000214501.

    >>> Beta(1, concentration=2.0)(torch.zeros(1)).log_prob(torch.tensor([0.3]))  # the uniform distribution
    tensor(0.)
    """

    support = constraints.unit_interval

    @checked
    def __init__(
        self, shape: int | Sequence[int], concentration: float | Literal["shared", "pixel"] = "shared"
    ) -> None:
        check_positive("concentration", concentration)
        super().__init__(shape, 2 if concentration == "pixel" else 1)
        self.concentration = concentration
        if concentration == "shared":
            self.log_concentration = nn.Parameter(torch.full((), math.log(2.0)))

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        logit, *log_concentration = self.split(h).unbind(-1)
        m, other = torch.sigmoid(soft_bound(logit)), torch.sigmoid(-soft_bound(logit))
        learned = self.log_concentration if self.concentration == "shared" else None
        k = positive_of(self.concentration, log_concentration, learned, m)
        return ExactBeta(m * k, other * k)

    def features_at(self, mean: Tensor) -> Tensor:
        # within these bounds `soft_bound` is the identity
        features = [torch.logit(mean.clamp(0.05, 0.95))]
        if self.concentration == "pixel":
            features.append(torch.full_like(mean, math.log(2.0)))
        return self.join(torch.stack(features, -1))


class VonMises(Likelihood):
    r"""`p(x) = exp(k cos(x - h)) / (2 pi I_0(k))` for angles in `[-pi, pi]`, whose two ends are one point.

    The location h is any real number, read as an angle; the mean of the distribution is the circular one.

    Args:
        shape: shape of one datum.
        concentration: k: a positive number; "shared", one learned number; "pixel", one per element from the network,
            m = 2. For large k the distribution is a normal one of variance `1 / k`.

    >>> VonMises(1, concentration=1e-3)(torch.zeros(1)).log_prob(torch.ones(1)).exp()  # nearly 1 / (2 pi)
    tensor(0.1592)
    """

    support = constraints.interval(-math.pi, math.pi)

    @checked
    def __init__(
        self, shape: int | Sequence[int], concentration: float | Literal["shared", "pixel"] = "shared"
    ) -> None:
        check_positive("concentration", concentration)
        super().__init__(shape, 2 if concentration == "pixel" else 1)
        self.concentration = concentration
        if concentration == "shared":
            self.log_concentration = nn.Parameter(torch.zeros(()))

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        loc, *log_concentration = self.split(h).unbind(-1)
        learned = self.log_concentration if self.concentration == "shared" else None
        return ExactVonMises(loc, positive_of(self.concentration, log_concentration, learned, h))

    def features_at(self, mean: Tensor) -> Tensor:
        return self.join(torch.stack([mean, *[torch.zeros_like(mean)] * (self.concentration == "pixel")], -1))
