"""Densities that torch has, computed so that they are accurate and finite wherever a float can lie."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["ExactBeta", "ExactStudentT", "ExactVonMises"]


class ExactStudentT(dist.StudentT):
    """Student's t in double precision: in float32 squares overflow, and lgamma loses digits for many degrees."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        double = dist.StudentT(self.df.double(), self.loc.double(), self.scale.double(), validate_args=False)
        return double.log_prob(value.double()).to(self.loc.dtype)


class ExactBeta(dist.Beta):
    """A Beta distribution whose density at 0 and 1 is that at the nearest float within, not infinite or NaN."""

    support = constraints.unit_interval

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1.double(), self.concentration0.double()
        limits = torch.finfo(value.dtype)
        x = value.clamp(limits.tiny, 1 - limits.eps / 2).double()
        constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        return (constant + (a - 1) * x.log() + (b - 1) * torch.log1p(-x)).to(self.concentration1.dtype)


class ExactVonMises(dist.VonMises):
    r"""The von Mises distribution, `exp(k cos(x - loc)) / (2 pi I_0(k))`, for angles on `[-pi, pi]`.

    torch takes `k cos(x - loc)` minus an approximation of `log I_0(k)`: two large numbers where k is. Here it is
    `-2 k sin((x - loc) / 2)**2` minus the logarithm of the scaled Bessel function. Angles outside `[-pi, pi]` have
    density zero; they are refused, as the density repeats itself there and would integrate to more than one.
    """

    support = constraints.interval(-math.pi, math.pi)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = self.concentration
        spread = -2 * k * torch.sin((value - self.loc) / 2).square()
        return spread - math.log(2 * math.pi) - torch.special.i0e(k).log()

    @property
    def mean(self) -> Tensor:
        """The circular mean, `loc` as an angle in `[-pi, pi)`."""
        return torch.remainder(self.loc + math.pi, 2 * math.pi) - math.pi

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ExactVonMises":
        loc, concentration = self.loc.expand(batch_shape), self.concentration.expand(batch_shape)
        new = ExactVonMises(loc, concentration, validate_args=False)
        new._validate_args = self._validate_args
        return new
