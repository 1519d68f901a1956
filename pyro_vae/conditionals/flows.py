"""Posterior families given by a normalizing flow: planar, radial, inverse autoregressive, coupling, spline."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, Transform

from pyro_vae.conditionals import transforms
from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.conditionals.transforms import Autoregressive, Elementwise, MaskedNet, affine, spline
from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = [
    "CouplingFlow",
    "Flow",
    "FlowDistribution",
    "InverseAutoregressiveFlow",
    "PlanarFlow",
    "RadialFlow",
    "SplineFlow",
]


class FlowDistribution(dist.TransformedDistribution):
    """A `TransformedDistribution` over vectors that caches the log-density of its last draw.

    The log-density of that draw is free, in value and gradient; any other value needs the inverse. Unlike the caches of
    the transforms, a draw without gradients (`sample`) never gives a log-density that lacks them.
    """

    _drawn: tuple[Tensor | None, Tensor | None, bool] = (None, None, False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        x = self.base_dist.rsample(sample_shape)
        log_q = self.base_dist.log_prob(x)
        for transform in self.transforms:
            y = transform(x)
            log_q = log_q - transform.log_abs_det_jacobian(x, y)
            x = y
        self._drawn = x, log_q, torch.is_grad_enabled()
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        drawn, log_q, recorded = self._drawn
        if log_q is not None and value is drawn and (recorded or not torch.is_grad_enabled()):
            return log_q
        x, log_det = value.view_as(value), torch.zeros(())  # a new tensor, so that no transform's cache has it
        for transform in reversed(self.transforms):
            y = x
            # `transform.inv` keeps the graph alive in a cycle; a composition has no other inverse
            x = transform.inv(y) if isinstance(transform, ComposeTransform) else transform._inv_call(y)
            log_det = log_det + transform.log_abs_det_jacobian(x, y)
        return self.base_dist.log_prob(x) - log_det


class Flow(Conditional):
    r"""`z = loc + scale f(e; c)`: standard normal noise e, and a bijection f with a context c from the features.

    .. math:: q(z|h) = N(e; 0, I) \Big/ \Big|\det \frac{\partial z}{\partial e}\Big|

    Features `(*, 2 D + C)`: D locations, D log-scales (bounded by `soft_bound`), C numbers of context. The flow acts
    on the noise, before location and scale, so its inputs are of unit scale whatever the units of the posterior.
    f starts near the identity, so training starts as with `DiagonalNormal`.

    A subclass defines f in `transforms(context)`, from its own transforms or `pyro.distributions.transforms`.

    Args:
        latent_dim: D, the size of the latent.
        context_dim: C.
    """

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__(latent_dim, 2 * latent_dim + context_dim)

    def transforms(self, context: Tensor) -> list[Transform]:
        """The bijections whose composition is f, in the order of application, for a context `(*, C)`."""
        raise NotImplementedError(f"{type(self).__name__} must define transforms(context)")

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        size = self.event_shape[0]
        loc, log_scale, context = h.split((size, size, h.shape[-1] - 2 * size), -1)
        noise = dist.Normal(h.new_zeros(size), h.new_ones(size)).expand(loc.shape).to_event(1)
        to_latent = AffineTransform(loc, bounded_exp(log_scale), event_dim=1)
        return FlowDistribution(noise, [*self.transforms(context), to_latent])


class PlanarFlow(Flow):
    """`f` of `num_flows` planar steps `x + u tanh(w'x + b)`, whose u, w and b are the context.

    Zero features give the standard normal. The inverse, which Pyro's planar flow lacks, solves for a root per step.

    Args:
        latent_dim: D, the size of the latent.
        num_flows: number of steps, C = num_flows (2 D + 1).

    Reference: Rezende and Mohamed 2015, arXiv 1505.05770, eq. 10.

    >>> PlanarFlow(3, num_flows=2)(torch.zeros(8, 20)).event_shape
    torch.Size([3])
    """

    offset: Tensor

    @checked
    def __init__(self, latent_dim: int, num_flows: int = 4) -> None:
        (self.num_flows,) = as_sizes(num_flows, "num_flows", 1)
        super().__init__(latent_dim, num_flows * (2 * latent_dim + 1))
        # at w = 0 all gradients are zero
        self.register_buffer("offset", torch.randn(num_flows, latent_dim) / latent_dim**0.5)

    def transforms(self, context: Tensor) -> list[Transform]:
        size = self.event_shape[0]
        steps = context.unflatten(-1, (self.num_flows, 2 * size + 1))
        u, w, b = steps.split((size, size, 1), -1)  # (*, T, D), (*, T, D), (*, T, 1)
        u, w = soft_bound(u / 10), soft_bound(w + self.offset)
        return [transforms.Planar(u[..., i, :], w[..., i, :], b[..., i, :]) for i in range(self.num_flows)]


class RadialFlow(Flow):
    """`f` of `num_flows` radial steps `x + beta (x - x0) / (alpha + |x - x0|)`, given by the context.

    Zero features give the standard normal. The inverse, which Pyro's radial flow lacks, is in closed form.

    Args:
        latent_dim: D, the size of the latent.
        num_flows: number of steps, C = num_flows (D + 2).

    Reference: Rezende and Mohamed 2015, arXiv 1505.05770, eq. 14.

    >>> RadialFlow(3, num_flows=2)(torch.zeros(8, 16)).event_shape
    torch.Size([3])
    """

    offset: Tensor

    @checked
    def __init__(self, latent_dim: int, num_flows: int = 4) -> None:
        (self.num_flows,) = as_sizes(num_flows, "num_flows", 1)
        super().__init__(latent_dim, num_flows * (latent_dim + 2))
        # steps with the same center would stay equal
        self.register_buffer("offset", torch.randn(num_flows, latent_dim))

    def transforms(self, context: Tensor) -> list[Transform]:
        size = self.event_shape[0]
        steps = context.unflatten(-1, (self.num_flows, size + 2))
        center, alpha, total = steps.split((size, 1, 1), -1)  # (*, T, D), (*, T, 1), (*, T, 1)
        center, alpha, total = center + self.offset, soft_bound(alpha), soft_bound(total)
        return [transforms.Radial(center[..., i, :], alpha[..., i, :], total[..., i, :]) for i in range(self.num_flows)]


class _Masked(Flow):
    """Steps that are elementwise bijections, with parameters from a masked network of the other elements.

    `levels` is the number of degrees, None for one per element; `outputs` is the number of parameters per element.
    """

    def __init__(
        self,
        latent_dim: int,
        num_flows: int,
        hidden: Sequence[int],
        context_dim: int | None,
        levels: int | None,
        elementwise: Elementwise,
        outputs: int,
    ) -> None:
        (num_flows,) = as_sizes(num_flows, "num_flows", 1)
        (context_dim,) = as_sizes(latent_dim if context_dim is None else context_dim, "context_dim", 1)
        super().__init__(latent_dim, context_dim)
        self.elementwise = elementwise
        self.nets = nn.ModuleList()
        degrees = torch.empty(0)
        for i in range(num_flows):
            if i % 2 == 0:
                degrees = torch.randperm(latent_dim)
                if levels is not None:
                    degrees = degrees * levels // latent_dim
            else:  # in reverse order
                degrees = degrees.max() - degrees
            self.nets.append(MaskedNet(degrees, context_dim, as_sizes(hidden, "hidden"), outputs))

    def transforms(self, context: Tensor) -> list[Transform]:
        return [
            Autoregressive(net.condition(context), net.degrees, net.passes, self.elementwise)
            for net in self.nets
            if isinstance(net, MaskedNet)
        ]


class InverseAutoregressiveFlow(_Masked):
    """`f` of `num_flows` steps in which each element is shifted and scaled by a function of those before it.

    A draw and its density take one pass of the masked network per step. The density of another value takes D passes,
    one after the other. "stl" and "dreg" need it, since they evaluate copies of the draws; `CouplingFlow` takes two.
    Every second step reverses the order of the step before. Log-scales pass through `soft_bound`.

    Args:
        latent_dim: D, the size of the latent.
        num_flows: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: C, the features that the networks see; D if None.

    Reference: Kingma et al. 2016, arXiv 1606.04934, eq. 9 and 10.

    >>> InverseAutoregressiveFlow(3)(torch.zeros(8, 9)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(
        self,
        latent_dim: int,
        num_flows: int = 2,
        hidden: Sequence[int] = (100, 100),
        context_dim: int | None = None,
    ) -> None:
        super().__init__(latent_dim, num_flows, hidden, context_dim, None, affine, 2)


class CouplingFlow(_Masked):
    """`f` of `num_flows` steps in which one half of the elements is shifted and scaled by a function of the other.

    Draws and densities of any value are cheap. The halves are random, and change roles from one step to the next. The
    half that a step's network takes as input is transformed too, by the context alone. Log-scales pass through
    `soft_bound`.

    Args:
        latent_dim: D, the size of the latent.
        num_flows: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: C, the features that the networks see; D if None.

    Reference: Dinh et al. 2017 (RealNVP), arXiv 1605.08803, eq. 4 and 5.

    >>> CouplingFlow(3)(torch.zeros(8, 9)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(
        self,
        latent_dim: int,
        num_flows: int = 4,
        hidden: Sequence[int] = (100, 100),
        context_dim: int | None = None,
    ) -> None:
        super().__init__(latent_dim, num_flows, hidden, context_dim, 2, affine, 2)


class SplineFlow(_Masked):
    """`CouplingFlow` with a monotone rational-quadratic spline on [-4, 4] in place of shift and scale.

    Args:
        latent_dim: D, the size of the latent.
        num_flows: number of steps.
        hidden: widths of the hidden layers of each step's network.
        context_dim: C, the features that the networks see; D if None.
        bins: number of pieces of each spline, at least 2.

    Reference: Durkan et al. 2019 (neural spline flows), arXiv 1906.04032, eq. 4 to 8.

    >>> SplineFlow(3)(torch.zeros(8, 9)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(
        self,
        latent_dim: int,
        num_flows: int = 2,
        hidden: Sequence[int] = (100, 100),
        context_dim: int | None = None,
        bins: int = 8,
    ) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        super().__init__(latent_dim, num_flows, hidden, context_dim, 2, spline, 3 * bins - 1)
