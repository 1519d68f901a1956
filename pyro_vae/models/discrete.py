"""The VAE with discrete latents: one-hot variables or bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, Likelihood
from pyro_vae.models.parts import NetworkFactory
from pyro_vae.models.vae import VAE
from pyro_vae.nets import as_sizes
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked

__all__ = ["DiscreteVAE"]

Latents = Literal["categorical", "bernoulli"]


class DiscreteVAE(VAE):
    r"""A `VAE` whose latents are one-hot variables or bits, independent given x, with a learned prior.

    .. math:: z_i \sim \mathrm{OneHot}(\pi_i) \;\text{or}\; \mathrm{Bernoulli}(\pi_i), \quad
        x \sim p(x \mid \mathrm{decoder}(z)); \qquad
        q(z_i \mid x) = \mathrm{OneHot} \;\text{or}\; \mathrm{Bernoulli}(\mathrm{encoder}(x)_i)

    The gradient estimator is chosen by the objective: "gumbel" (the relaxation; with
    `pv.elbo.Relaxed(straight_through=True)` straight-through), "reinforce" and "vimco" (score function), "rebar",
    "disarm" (bits). A single one-hot variable, `latent_dim=(C,)`, is summed over exactly by "enum". The bound and
    log p(x) are those of the discrete latents, whichever trained them.

    Args:
        data_shape: Shape of one datum.
        latent_dim: Shape of z. Categorical: (G, C), G one-hot variables of C classes, or (C,), a single one. Bernoulli:
            the number of bits, or a shape of bits.
        latents: "categorical" or "bernoulli".
        hidden, activation, likelihood, encoder, decoder: As for `VAE`; the published networks are linear,
            `hidden=()`.

    Raises:
        ValueError: As `VAE` does; for an unknown kind of latents, or fewer than two classes.

    Reference: Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv 1611.00712.

    Example:
        >>> vae = DiscreteVAE(784, latent_dim=(20, 10))
        >>> vae.encode(torch.zeros(3, 784)).event_shape
        torch.Size([20, 10])
        >>> DiscreteVAE(784, 200, latents="bernoulli").encode(torch.zeros(3, 784)).event_shape
        torch.Size([200])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int | Sequence[int] = (20, 10),
        latents: Latents = "categorical",
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        encoder: nn.Module | NetworkFactory | None = None,
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        shape = as_sizes(latent_dim, "latent_dim")
        if latents not in ("categorical", "bernoulli"):
            raise ValueError(f"latents must be 'categorical' or 'bernoulli', got {latents!r}")
        if latents == "categorical" and shape[-1] < 2:
            raise ValueError(
                f"a one-hot variable needs two or more classes, and latent_dim={tuple(shape)} ends in their number: "
                "write (20, 10) for 20 variables of 10 classes"
            )
        super().__init__(
            data_shape,
            shape,
            hidden,
            activation,
            likelihood,
            posterior=_Posterior(shape, latents),
            prior=_Prior(shape, latents),
            encoder=encoder,
            decoder=decoder,
        )
        self.latent_dim = latent_dim
        # "enum" sums over one variable; over several it would have to sum over all their combinations
        self._enumerate = latents == "categorical" and len(shape) == 1

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x), infer={"enumerate": "parallel"} if self._enumerate else None)


class _Posterior(Conditional):
    """Independent one-hot variables or bits by their logits, `(*, *shape)`."""

    def __init__(self, shape: torch.Size, latents: Latents) -> None:
        super().__init__(shape, shape)
        self.latents = latents

    def distribution(self, h: Tensor) -> Any:
        return _discrete(h, self.latents, len(self.event_shape))


class _Prior(Prior):
    """The same with learned logits `shape`, uniform at first."""

    def __init__(self, shape: torch.Size, latents: Latents) -> None:
        super().__init__(shape)
        self.latents = latents
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Any:
        return _discrete(self.logits, self.latents, len(self.event_shape))


def _discrete(logits: Tensor, latents: Latents, rank: int) -> Any:
    if latents == "bernoulli":
        return dist.Bernoulli(logits=logits).to_event(rank)
    one_hot = dist.OneHotCategorical(logits=logits)
    return one_hot.to_event(rank - 1) if rank > 1 else one_hot
