"""Likelihoods of counts: Poisson, negative binomial, zero-inflated, multinomial."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditionals.base import bounded_exp, soft_bound
from pyro_vae.conditionals.count_distributions import AnyTotalMultinomial, MeanNegativeBinomial, ZeroInflated
from pyro_vae.conditionals.likelihoods import Likelihood
from pyro_vae.conditionals.positive import check_positive, positive_of
from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["Multinomial", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson"]


def _positive(h: Tensor) -> Tensor:
    """A rate or mean from a feature; the small term keeps every count possible."""
    return softplus(h) + 1e-6


def _feature_of(mean: Tensor) -> Tensor:
    """The inverse of `_positive`."""
    rate = (mean - 1e-6).clamp_min(0.001)
    return rate + torch.log(-torch.expm1(-rate))


class Poisson(Likelihood):
    """`p(x) = Poisson(softplus(h) + 1e-6)` for counts. The small rate keeps every count possible.

    Args:
        shape: shape of one datum.
    """

    discrete = True
    support = constraints.nonnegative_integer

    @checked
    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(_positive(h))

    def features_at(self, mean: Tensor) -> Tensor:
        return _feature_of(mean)


class NegativeBinomial(Likelihood):
    r"""Counts that vary more than Poisson ones: variance `m + a m**2` at mean m, with a dispersion a > 0.

    .. math:: p(x) = \frac{\Gamma(x + r)}{\Gamma(r) \, x!} (1 - p)^r p^x, \qquad r = 1 / a, \quad p = \frac{m}{m + r}

    Args:
        shape: shape of one datum.
        dispersion: a positive number; "shared", one learned dispersion for each element of the datum (as each gene has
            one in scVI, Lopez et al. 2018, doi 10.1038/s41592-018-0229-2); "pixel", one per element and datum from the
            network, m = 2.
        by: what the network gives. "mean": `m = softplus(h) + 1e-6`. "logits": `log(p / (1 - p)) = log(a m)`, kept
            within (-7, 7), as in Pyro's `NegativeBinomial(total_count=1 / a, logits=h)`.

    >>> NegativeBinomial(3, dispersion=0.5)(torch.zeros(3)).log_prob(torch.zeros(3))
    tensor(-1.7854)
    """

    discrete = True
    support = constraints.nonnegative_integer
    log_dispersion: Tensor

    @checked
    def __init__(
        self,
        shape: int | Sequence[int],
        dispersion: float | Literal["shared", "pixel"] = "shared",
        by: Literal["mean", "logits"] = "mean",
    ) -> None:
        self._setup(shape, 1, dispersion, by)

    def _setup(self, shape: int | Sequence[int], others: int, dispersion: float | str, by: str) -> None:
        check_positive("dispersion", dispersion)
        if by not in ("mean", "logits"):
            raise ValueError(f"by must be 'mean' or 'logits', got {by!r}")
        Likelihood.__init__(self, shape, others + (dispersion == "pixel"))
        self.dispersion, self.by = dispersion, by
        if dispersion == "shared":
            self.log_dispersion = nn.Parameter(torch.zeros(self.event_shape))

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        mean, *log_dispersion = self.split(h).unbind(-1)
        return self._counted(mean, log_dispersion)

    def _counted(self, h: Tensor, log_dispersion: Sequence[Tensor]) -> MeanNegativeBinomial:
        learned = self.log_dispersion if self.dispersion == "shared" else None
        dispersion = positive_of(self.dispersion, log_dispersion, learned, h)
        mean = _positive(h) if self.by == "mean" else bounded_exp(h) / dispersion
        return MeanNegativeBinomial(mean, dispersion)

    def features_at(self, mean: Tensor) -> Tensor:
        return self.join(torch.stack(self._features(mean), -1))

    def _features(self, mean: Tensor) -> list[Tensor]:
        """A feature with this mean, then one with a dispersion of 1 where the network gives it."""
        if self.by == "mean":
            first = _feature_of(mean)
        else:
            a: Any = self.log_dispersion.exp() if self.dispersion == "shared" else 1.0
            a = a if isinstance(self.dispersion, str) else float(self.dispersion)
            first = (a * mean).clamp(math.exp(-3), math.exp(3)).log()  # where `soft_bound` is the identity
        return [first, *[torch.zeros_like(mean)] * (self.dispersion == "pixel")]


class _ZeroInflated:
    """What zero-inflated likelihoods share: the last feature is the log-odds of an extra zero."""

    @staticmethod
    def start(mean: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the counts, and the log-odds, that give the mean with a tenth of extra zeros."""
        return mean / 0.9, torch.full_like(mean, math.log(0.1 / 0.9))


class ZeroInflatedPoisson(Likelihood, _ZeroInflated):
    """`p(x) = g [x = 0] + (1 - g) Poisson(x)` for counts with more zeros than a Poisson distribution has.

    m = 2 parameters per element: that of the rate `softplus(h) + 1e-6`, and the log-odds of g, an extra zero.

    Args:
        shape: shape of one datum.

    Reference: Lambert 1992, doi 10.2307/1269547.

    >>> ZeroInflatedPoisson(5).param_shape
    torch.Size([10])
    """

    discrete = True
    support = constraints.nonnegative_integer

    @checked
    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape, 2)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        rate, gate = self.split(h).unbind(-1)
        return ZeroInflated(dist.Poisson(_positive(rate)), gate_logits=soft_bound(gate))

    def features_at(self, mean: Tensor) -> Tensor:
        mean, gate = self.start(mean)
        return self.join(torch.stack([_feature_of(mean), gate], -1))


class ZeroInflatedNegativeBinomial(NegativeBinomial, _ZeroInflated):
    """`p(x) = g [x = 0] + (1 - g) NegativeBinomial(x)`: counts with a long tail and many zeros.

    The last parameter of an element is the log-odds of g, an extra zero; those before it are as for
    `NegativeBinomial`.

    Args:
        shape: shape of one datum.
        dispersion, by: as for `NegativeBinomial`.

    Reference: Lopez et al. 2018 (scVI), doi 10.1038/s41592-018-0229-2.

    >>> ZeroInflatedNegativeBinomial(5, dispersion="pixel").param_shape
    torch.Size([15])
    """

    @checked
    def __init__(
        self,
        shape: int | Sequence[int],
        dispersion: float | Literal["shared", "pixel"] = "shared",
        by: Literal["mean", "logits"] = "mean",
    ) -> None:
        self._setup(shape, 2, dispersion, by)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        mean, *log_dispersion, gate = self.split(h).unbind(-1)
        return ZeroInflated(self._counted(mean, log_dispersion), gate_logits=soft_bound(gate))

    def features_at(self, mean: Tensor) -> Tensor:
        mean, gate = self.start(mean)
        return self.join(torch.stack([*self._features(mean), gate], -1))


class Multinomial(Likelihood):
    r"""The counts of a document's words given their number: `softmax(h)` is the share of each of the V words.

    .. math:: \log p(x \mid n) = \log n! - \sum_v \log x_v! + \sum_v x_v \log p_v, \qquad n = \sum_v x_v

    Each datum is judged by its own total n, which is not modeled. The factorials make this the probability of the
    counts, in whatever order the words came; without them it is that of one order, which is what the literature on
    topic models calls the log-likelihood and turns into a perplexity per word. Elements are not independent, so no
    single one can be missing.

    Args:
        shape: shape of one datum; the softmax is over all of it.
        total: the number of words in a draw and in the mean, which have no document to take it from.

    >>> Multinomial(3)(torch.zeros(3)).log_prob(torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 1.0]])).exp()
    tensor([0.3333, 0.1481])
    """

    discrete = True
    support = constraints.nonnegative_integer

    @checked
    def __init__(self, shape: int | Sequence[int], total: int = 100) -> None:
        (self.total,) = as_sizes(total, "total", 1)
        super().__init__(shape)

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return AnyTotalMultinomial(h, self.total, len(self.event_shape))

    def features_at(self, mean: Tensor) -> Tensor:
        return mean.clamp_min(1e-4 * max(float(mean.mean()), 1e-4)).log()
