"""Distributions over counts: negative binomial by its mean, zero-inflated ones, multinomial of any total."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["AnyTotalMultinomial", "MeanNegativeBinomial", "ZeroInflated"]

LEAST_DISPERSION = (
    1e-8  # below it the distribution is a Poisson one to all digits, and lgamma(1 / dispersion) loses some
)


class MeanNegativeBinomial(dist.TorchDistribution):
    r"""The negative binomial with mean m and dispersion a, whose variance is `m + a m**2`.

    .. math:: p(x) = \frac{\Gamma(x + r)}{\Gamma(r) \, x!}
        \Big(\frac{r}{r + m}\Big)^r \Big(\frac{m}{r + m}\Big)^x, \qquad r = 1 / a

    In Pyro's parameters, `total_count = r` and `logits = log(m / r)`. The log-probability is computed in double
    precision: in float32 `dist.NegativeBinomial` is off by whole nats where r is large, since it subtracts two values
    of lgamma(r).

    Args:
        mean: m > 0, `(*)`.
        dispersion: a > 0, `(*)`; the distribution tends to the Poisson as a goes to 0.
    """

    arg_constraints = {"mean": constraints.positive, "dispersion": constraints.positive}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, mean: Tensor, dispersion: Tensor, validate_args: bool | None = None) -> None:
        self._mean, self.dispersion = torch.broadcast_tensors(mean, dispersion)
        super().__init__(self._mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "MeanNegativeBinomial":
        new = self._get_checked_instance(MeanNegativeBinomial, _instance)
        new._mean, new.dispersion = self.mean.expand(batch_shape), self.dispersion.expand(batch_shape)
        super(MeanNegativeBinomial, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self.mean + self.dispersion * self.mean.square()

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            r = self.dispersion.clamp_min(LEAST_DISPERSION).double().reciprocal()
            # the sampler of the gamma distribution has no draws below the smallest float
            rate = torch._standard_gamma(r.expand(shape)) * (self.mean / r)
            return torch.poisson(rate).to(self.mean.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, m = value.double(), self.mean.double()
        a = self.dispersion.double().clamp_min(LEAST_DISPERSION)
        r = a.reciprocal()
        ways = torch.lgamma(x + r) - torch.lgamma(r) + x * a.log() - torch.lgamma(x + 1)
        return (ways + torch.xlogy(x, m) - (x + r) * torch.log1p(a * m)).to(self.mean.dtype)


class ZeroInflated(dist.ZeroInflatedDistribution):
    r"""A mixture of the count 0 and a distribution over counts, `p(x) = g [x = 0] + (1 - g) p_0(x)`.

    As Pyro's, which adds and subtracts `gate_logits`, so that the digits of `p_0` are lost where the gate is surely
    closed, and which cannot be expanded after a draw.
    """

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "ZeroInflated":
        new = ZeroInflated(
            self.base_dist.expand(batch_shape), gate_logits=self.gate_logits.expand(batch_shape), validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        gate = self.gate_logits
        counted = self.base_dist.log_prob(value) - softplus(gate)
        return torch.where(value == 0, torch.logaddexp(-softplus(-gate), counted), counted)


class AnyTotalMultinomial(dist.TorchDistribution):
    r"""Counts x of V kinds given their own total n: `log n! - sum log x_v! + sum x_v log p_v`.

    For each n it is a mass function over the counts of that total; nothing is said of n itself. Pyro's multinomial has
    one total for all data, and refuses or misjudges others.

    Args:
        logits: unnormalized log-probabilities, `(*, *event_shape)`, normalized over the event.
        total: the number of counts in a draw and in `mean`.
        event_dim: the number of trailing dimensions over which the V kinds lie.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012

    def __init__(self, logits: Tensor, total: int, event_dim: int = 1, validate_args: bool | None = None) -> None:
        split = logits.dim() - event_dim
        self.total = total
        self.logits = logits.flatten(split).log_softmax(-1).view(logits.shape)
        super().__init__(logits.shape[:split], logits.shape[split:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "AnyTotalMultinomial":
        new = self._get_checked_instance(AnyTotalMultinomial, _instance)
        new.total, new.logits = self.total, self.logits.expand(*batch_shape, *self.event_shape)
        super(AnyTotalMultinomial, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.total * self.logits.exp()

    @property
    def variance(self) -> Tensor:
        p = self.logits.exp()
        return self.total * p * (1 - p)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            kinds = self.event_shape.numel()
            probs = self.logits.expand(shape).reshape(-1, kinds).exp()
            drawn = torch.multinomial(probs, self.total, replacement=True)  # (draws, total)
            counts = probs.new_zeros(probs.shape).scatter_add_(1, drawn, probs.new_ones(()).expand_as(drawn))
            return counts.view(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dims = tuple(range(-len(self.event_shape), 0))
        x = value.double()  # the factorials are large, and what is left of them is not
        ways = torch.lgamma(x.sum(dims) + 1) - torch.lgamma(x + 1).sum(dims)
        return (ways + (x * self.logits).sum(dims)).to(self.logits.dtype)
