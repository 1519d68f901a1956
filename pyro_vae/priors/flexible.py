"""Flexible priors: a normalizing flow, and an autoregressive one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals import bounded_exp, posterior
from pyro_vae.conditionals.transforms import MaskedNet
from pyro_vae.nets import as_sizes
from pyro_vae.priors.base import Prior
from pyro_vae.support.arguments import checked

__all__ = ["AutoregressivePrior", "FlowPrior"]


class FlowPrior(Prior):
    """`z = f(e)`, `e ~ N(0, I)`, with a learned bijection f: a flow of `pv.conditionals` at learned features.

    It starts near the standard normal. The density of a z needs the inverse, which is cheap for "spline", "coupling"
    and "radial"; "iaf" takes as many passes as there are elements. Splines are the default because they cannot diverge;
    the scales of "coupling" can at a high learning rate.

    Args:
        latent_dim: size of the latent.
        family: name of the family in `pv.conditionals.POSTERIORS`.
        **options: its further arguments, `num_flows` and `hidden` for example.

    Reference: Chen et al. 2017, arXiv 1611.02731, section 3.2; Durkan et al. 2019, arXiv 1906.04032 (splines).

    >>> FlowPrior(3, num_flows=2)().sample((5,)).shape
    torch.Size([5, 3])
    """

    @checked
    def __init__(self, latent_dim: int, family: str = "spline", **options: Any) -> None:
        super().__init__(latent_dim)
        self.flow = posterior(family, latent_dim, **options)
        features = torch.zeros(self.flow.param_shape)
        features[2 * latent_dim :].normal_()  # with a context of zero, the weights after it would have no gradient
        self.features = nn.Parameter(features)

    def forward(self) -> TorchDistributionMixin:
        return self.flow(self.features)


class AutoregressivePrior(Prior):
    r"""`p(z) = \prod_d p(z_d | z_{<d})`, each factor a mixture of M Gaussians given by one masked network.

    A density takes one pass of the network, a draw D of them.

    Args:
        latent_dim: D, size of the latent.
        components: M, Gaussians for each element.
        hidden: widths of the hidden layers.

    Reference: Uria et al. 2013 (RNADE), arXiv 1306.0186, eq. 5; Germain et al. 2015 (MADE), arXiv 1502.03509.

    >>> AutoregressivePrior(3)().sample((5,)).shape
    torch.Size([5, 3])
    """

    context: Tensor

    @checked
    def __init__(self, latent_dim: int, components: int = 5, hidden: Sequence[int] = (100, 100)) -> None:
        super().__init__(latent_dim)
        (components,) = as_sizes(components, "components", 1)
        self.net = MaskedNet(torch.arange(latent_dim), 1, as_sizes(hidden, "hidden"), 3 * components)
        self.register_buffer("context", torch.ones(1), persistent=False)
        with torch.no_grad():  # equal components would stay equal
            bias = self.net.final.bias.view(latent_dim, 3, components)
            bias[:, 1] = torch.linspace(-1, 1, components) if components > 1 else 0.0

    def forward(self) -> TorchDistributionMixin:
        return MaskedMixture(self.net, self.context)


class MaskedMixture(dist.TorchDistribution):
    """Vectors whose elements are mixtures of Gaussians, with parameters from a masked network of earlier elements."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, net: MaskedNet, context: Tensor, batch_shape: Sequence[int] = ()) -> None:
        self.net, self.context = net, context
        super().__init__(torch.Size(batch_shape), net.degrees.shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MaskedMixture:
        return MaskedMixture(self.net, self.context, batch_shape)

    def elements(self, z: Tensor) -> Any:
        """The distribution of each element given those before it in z, batch shape `(*, D)`."""
        logits, loc, log_scale = self.net.condition(self.context)(z).chunk(3, -1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, bounded_exp(log_scale)))

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = self.elements(value).log_prob(value).sum(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        z = self.context.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        for degree in range(self.net.passes):
            z = torch.where(self.net.degrees == degree, self.elements(z).sample(), z)
        return z
