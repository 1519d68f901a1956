"""Likelihoods p(x|z): from decoder features to a distribution over the data."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals.base import Conditional, bounded_exp
from pyro_vae.conditionals.distributions import (
    BatchOptimalNormal,
    DiscretizedLogisticMixture,
    ExactContinuousBernoulli,
    Grid,
    GridCategorical,
)
from pyro_vae.nets import as_sizes, check_shape
from pyro_vae.support.arguments import checked

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Laplace",
    "Likelihood",
    "Normal",
]


class Likelihood(Conditional):
    """A distribution over data with independent elements, `(*, m C, ...) -> (*, C, ...)`.

    The m parameters of an element lie along the first event axis: features `[p * C + c]` are parameter p of
    channel c, so that a convolutional decoder emits m C channels. A subclass defines `elements(h)`, the
    distribution of the elements, and `features_at(mean)`, features at which it has a given mean.

    Attributes:
        discrete: whether p is a mass function, so that bits/dim need no correction for the size of a level.
        support: the constraint that each element of the data meets.

    Args:
        shape: shape of one datum, an int or `(C, H, W)`.
        parameters: m, the number of parameters per element.
    """

    discrete: ClassVar[bool] = False
    support: constraints.Constraint

    def __init__(self, shape: int | Sequence[int], parameters: int = 1) -> None:
        sizes = as_sizes(shape, "shape")
        super().__init__(sizes, (parameters * sizes[0], *sizes[1:]))

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return self.elements(h).to_event(len(self.event_shape))

    def elements(self, h: Tensor) -> Any:
        """The distribution with batch shape `(*, *event_shape)` and no event dimension."""
        raise NotImplementedError(f"{type(self).__name__} must define elements(h)")

    def split(self, h: Tensor) -> Tensor:
        """Features `(*, m C, ...)` with the m parameters last: `(*, C, ..., m)`."""
        rank = len(self.event_shape)
        return h.unflatten(-rank, (-1, self.event_shape[0])).movedim(-rank - 1, -1)

    def join(self, parameters: Tensor) -> Tensor:
        """The inverse of `split`."""
        rank = len(self.event_shape)
        return parameters.movedim(-1, -rank - 1).flatten(-rank - 1, -rank)

    def init_features(self, data_mean: Tensor) -> Tensor | None:
        """Features, of shape `param_shape`, whose distribution has mean `data_mean`: initial values of the output bias.

        Means on the edge of the support are moved inside. None where a likelihood has no such features.

        Args:
            data_mean: mean of the training data, of shape `event_shape`.

        Raises:
            ValueError: for a mean of another shape.
        """
        check_shape(data_mean, self.event_shape, f"{type(self).__name__}.init_features")
        with torch.no_grad():
            return self.features_at(data_mean)

    def features_at(self, mean: Tensor) -> Tensor | None:
        """`init_features` for a checked mean."""
        return None

    def _solve(self, features: Callable[[Tensor], Tensor], mean: Tensor) -> Tensor:
        """`features(t)` for the t in [-50, 50], found by bisection, at which the mean, increasing in t, is `mean`.

        Means are clipped to [0.05, 0.95]: a density on [0, 1] with a mean nearer to the edge is so steep that a rare
        bright pixel costs hundreds of nats, a bad start of training.
        """
        target = mean.cpu().double().clamp(0.05, 0.95)
        low, high = torch.full_like(target, -50.0), torch.full_like(target, 50.0)
        for _ in range(50):
            middle = (low + high) / 2
            below = self.elements(features(middle)).mean < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return features(low).to(mean)


class Bernoulli(Likelihood):
    """`p(x = 1) = sigmoid(h)` for binary data. With validation on, gray pixels raise an error.

    Args:
        shape: shape of one datum.

    >>> Bernoulli((1, 28, 28))(torch.zeros(8, 1, 28, 28)).log_prob(torch.ones(8, 1, 28, 28)).shape
    torch.Size([8])
    """

    discrete = True
    support = constraints.boolean

    @checked
    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=h)

    def features_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=0.001)  # clipped as in Burda et al. 2016, arXiv 1509.00519


class ContinuousBernoulli(Likelihood):
    """`p(x) = h exp(h x) / (exp(h) - 1)` for data in [0, 1]: a density, which a Bernoulli is not for gray pixels.

    Args:
        shape: shape of one datum.

    Reference: Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845.
    """

    support = constraints.unit_interval

    @checked
    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        return ExactContinuousBernoulli(logits=h)

    def features_at(self, mean: Tensor) -> Tensor:
        return self._solve(lambda logits: logits, mean)


class _LocationScale(Likelihood):
    """A family with a location from the network and a scale that is fixed, learned or from the network too."""

    support = constraints.real
    family: ClassVar[Any]
    choices: ClassVar[tuple[str, ...]] = ("shared", "pixel")
    log_scale: Tensor

    def __init__(self, shape: int | Sequence[int], scale: float | str) -> None:
        if isinstance(scale, str):
            if scale not in self.choices:
                raise ValueError(f"scale must be a positive number or one of {self.choices}, got {scale!r}")
        elif not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        super().__init__(shape, 2 if scale == "pixel" else 1)
        self.scale = scale
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros(()))

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        if self.scale == "pixel":
            loc, log_scale = self.split(h).unbind(-1)
            return self.family(loc, bounded_exp(log_scale))
        if self.scale == "shared":
            return self.family(h, bounded_exp(self.log_scale))
        return self.family(h, h.new_full((), float(self.scale)))

    def features_at(self, mean: Tensor) -> Tensor:
        return self.join(torch.stack([mean, torch.zeros_like(mean)], -1)) if self.scale == "pixel" else mean.clone()


class Normal(_LocationScale):
    """`p(x) = Normal(h, scale)` for real data.

    With `scale="optimal"` training mode uses the best variance for the batch: the mean squared error over data,
    particles and elements, with gradients through it (masked data count too). That is a valid objective, but not a
    density of one datum, since it depends on the batch. Call `eval()` before evaluating; then the scale is a running
    average from training, or 1 before training. The average is updated only while gradients are recorded.

    Args:
        shape: shape of one datum.
        scale: a positive number; "shared", one learned scale (sigma-VAE, Rybkin et al. 2021, arXiv 2006.13202);
            "pixel", one per element from the network, m = 2; "optimal", see above.

    >>> Normal((3, 8, 8), "pixel").param_shape
    torch.Size([6, 8, 8])
    """

    family = dist.Normal
    choices = ("shared", "pixel", "optimal")
    updates: Tensor

    @checked
    def __init__(
        self, shape: int | Sequence[int], scale: float | Literal["shared", "pixel", "optimal"] = "shared"
    ) -> None:
        super().__init__(shape, scale)
        if scale == "optimal":
            self.register_buffer("log_scale", torch.zeros(()))
            self.register_buffer("updates", torch.zeros(()))

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        if self.scale != "optimal":
            return super().elements(h)
        scale = self.log_scale.exp()
        if not self.training:
            return dist.Normal(h, scale)
        normal = BatchOptimalNormal(h, scale)
        normal.observe = self._observe
        return normal

    def _observe(self, log_scale: Tensor) -> None:
        with torch.no_grad():
            self.updates.add_(1)
            # a plain average of the first hundred batches, so that the initial value has no effect
            self.log_scale.lerp_(log_scale.to(self.log_scale.dtype), self.updates.reciprocal().clamp_min(0.01))


class Laplace(_LocationScale):
    """`p(x) = Laplace(h, scale)` for real data: an absolute error where `Normal` has a squared one.

    Args:
        shape: shape of one datum.
        scale: a positive number; "shared", one learned scale; "pixel", one per element from the network, m = 2.
    """

    family = dist.Laplace

    @checked
    def __init__(self, shape: int | Sequence[int], scale: float | Literal["shared", "pixel"] = "shared") -> None:
        super().__init__(shape, scale)


class _Levels(Likelihood):
    """A mass function over the values `k / (levels - 1)`."""

    discrete = True

    def __init__(self, shape: int | Sequence[int], parameters: int, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        super().__init__(shape, parameters)
        self.levels = levels
        self.support = Grid(levels)


class Categorical(_Levels):
    """An unrestricted mass function per element, `p(x = k / (levels - 1)) = softmax(h)[k]`, m = levels.

    Data are floats in [0, 1] on the levels; with validation on, others raise an error, without it they are rounded.

    Args:
        shape: shape of one datum.
        levels: number of values, 256 for bytes.
    """

    @checked
    def __init__(self, shape: int | Sequence[int], levels: int = 256) -> None:
        super().__init__(shape, levels, levels)

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        return GridCategorical(self.split(h))

    def features_at(self, mean: Tensor) -> Tensor:
        def tilted(slope: Tensor) -> Tensor:  # the mass function of greatest entropy with this mean
            return self.join(slope.unsqueeze(-1) * torch.linspace(0, 1, self.levels, dtype=slope.dtype))

        return self._solve(tilted, mean)


class DiscretizedLogistic(_Levels):
    """A mixture of logistics rounded to the levels, m = 3 mixtures: log-weights, locations, log-scales.

    Salimans et al. 2017 (PixelCNN++), arXiv 1701.05517, without the autoregression over channels. Locations and
    scales are in units where the values run from -1 to 1. Data are floats in [0, 1] on the levels; with validation
    on, others raise an error, without it they are rounded.

    Args:
        shape: shape of one datum.
        mixtures: number of components per element.
        levels: number of values, 256 for bytes.
    """

    @checked
    def __init__(self, shape: int | Sequence[int], mixtures: int = 5, levels: int = 256) -> None:
        if mixtures < 1:
            raise ValueError(f"mixtures must be at least 1, got {mixtures}")
        super().__init__(shape, 3 * mixtures, levels)
        self.mixtures = mixtures

    def elements(self, h: Tensor) -> TorchDistributionMixin:
        logits, loc, log_scale = self.split(h).chunk(3, -1)
        return DiscretizedLogisticMixture(logits, loc, bounded_exp(log_scale), self.levels)

    def features_at(self, mean: Tensor) -> Tensor:
        def shifted(shift: Tensor) -> Tensor:
            # narrow components at different locations: equal ones would stay equal
            spread = (
                torch.linspace(-0.5, 0.5, self.mixtures, dtype=shift.dtype) if self.mixtures > 1 else shift[..., :0]
            )
            loc = shift.unsqueeze(-1) + spread
            return self.join(torch.cat([torch.zeros_like(loc), loc, torch.full_like(loc, -1.5)], -1))

        return self._solve(shifted, mean)
