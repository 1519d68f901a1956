"""Distributions over pixels that Pyro lacks, or that are not accurate enough in Pyro for decoders."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_vae.support.continuous_bernoulli import ExactContinuousBernoulli

__all__ = ["BatchOptimalNormal", "DiscretizedLogisticMixture", "ExactContinuousBernoulli", "Grid", "GridCategorical"]


class BatchOptimalNormal(dist.Normal):
    """A normal whose `log_prob` uses the best scale for the whole batch: an objective, not a density.

    `log_prob` takes as variance the mean squared error over all elements it is given, with gradients through it:
    the optimal sigma-VAE, Rybkin, Daniilidis & Levine 2021, arXiv 2006.13202. Samples use `scale`.

    Attributes:
        observe: Called with the log of each batch's scale while gradients are recorded.
    """

    observe: Callable[[Tensor], None] | None = None

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "BatchOptimalNormal":
        new = super().expand(batch_shape, _instance)
        new.observe = self.observe
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        square = (value - self.loc).square()
        variance = square.mean().clamp_min(math.exp(-14))  # the floor of `bounded_exp`, squared
        if self.observe is not None and torch.is_grad_enabled():
            self.observe(variance.detach().log() / 2)
        return -(square / variance + variance.log() + math.log(2 * math.pi)) / 2


class Grid(constraints.Constraint):
    """The values `k / (levels - 1)`, `k = 0 .. levels - 1`, up to rounding."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.levels - 1)
        nearest = level.round()
        return ((level - nearest).abs() < 0.02) & (nearest >= 0) & (nearest < self.levels)

    def __repr__(self) -> str:
        return f"multiples of 1/{self.levels - 1} in [0, 1]"


class _GridDistribution(dist.TorchDistribution):
    """A distribution over the values of a `Grid`; other values raise an error, or are rounded without validation."""

    levels: int

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Grid:
        return Grid(self.levels)

    def _level(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * (self.levels - 1)).round()


class GridCategorical(_GridDistribution):
    """A categorical distribution over the values `k / (levels - 1)`.

    Args:
        logits: unnormalized log-probabilities `(*, levels)`; the batch shape is `*`.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        self.levels = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "GridCategorical":
        new = self._get_checked_instance(GridCategorical, _instance)
        new.levels = self.levels
        new.logits = self.logits.expand(*batch_shape, -1)
        super(GridCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        values = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.exp() * values).sum(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        level = dist.Categorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
        return level.to(self.logits.dtype) / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        # not `dist.Categorical`: it normalizes in separate passes, 1.6 times the time over 256 levels on a CPU
        level, logits = torch.broadcast_tensors(self._level(value).long().unsqueeze(-1), self.logits)
        return logits.gather(-1, level[..., :1]).squeeze(-1)


class DiscretizedLogisticMixture(_GridDistribution):
    """A mixture of logistic distributions, rounded to the values `k / (levels - 1)`.

    Level k gets the mass between the midpoints to its neighbors; the first and last level get the tails, so the
    masses sum to one. Salimans et al. 2017, arXiv 1701.05517, without their autoregression over channels.

    Args:
        logits: unnormalized log-weights of the M components, `(*, M)`; the batch shape is `*`.
        loc: locations `(*, M)`, in units where the values run from -1 to 1.
        scale: scales `(*, M)`, in the same units.
        levels: number of values.
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None
    ) -> None:
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        self.levels = levels
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "DiscretizedLogisticMixture":
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        new.levels = self.levels
        for name in ("logits", "loc", "scale"):
            setattr(new, name, getattr(self, name).expand(*batch_shape, -1))
        super(DiscretizedLogisticMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The exact mean `sum_k P(x >= k / (levels - 1)) / (levels - 1)`; its cost grows with `levels`."""
        weights = self.logits.softmax(-1)
        total = torch.zeros_like(weights)
        for k in range(1, self.levels):
            edge = (2 * k - 1) / (self.levels - 1) - 1
            total = total + torch.sigmoid((self.loc - edge) / self.scale)
        return (weights * total).sum(-1) / (self.levels - 1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            index = dist.Categorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
            index = index.unsqueeze(-1)
            shape = (*index.shape[:-1], -1)
            loc = self.loc.expand(shape).gather(-1, index).squeeze(-1)
            scale = self.scale.expand(shape).gather(-1, index).squeeze(-1)
            noise = torch.rand_like(loc).clamp(torch.finfo(loc.dtype).tiny, 1 - torch.finfo(loc.dtype).eps)
            value = (loc + scale * torch.logit(noise) + 1) / 2
            return (value.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        level = self._level(value).unsqueeze(-1)  # (*, 1)
        last = self.levels - 1
        middle = (2 * level / last - 1 - self.loc) / self.scale
        half = 1 / (last * self.scale)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) loses no digits in either tail
        first, final = level <= 0, level >= last
        mass = logsigmoid(middle + half).masked_fill(final, 0) + logsigmoid(half - middle).masked_fill(first, 0)
        mass = mass + torch.log(-torch.expm1(-2 * half)).masked_fill(first | final, 0)
        return torch.logsumexp(self.logits + mass, -1) - torch.logsumexp(self.logits, -1)
