"""The variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, Likelihood
from pyro_vae.models.parts import NetworkFactory, System, as_likelihood, as_network, as_posterior, as_prior
from pyro_vae.nets import as_sizes
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked

__all__ = ["VAE"]


class VAE(System):
    r"""Variational autoencoder: a latent per datum, an amortized posterior, any likelihood and prior.

    .. math:: z \sim p(z), \quad x \sim p(x \mid \mathrm{decoder}(z)); \qquad
        q(z \mid x) = \mathrm{posterior}(\mathrm{encoder}(x))

    `model` and `guide` are the pair: pass them to `pv.fit`, `pyro.infer.SVI` or any evaluation of this library. The
    networks are registered with Pyro under `name`, which is unique to the instance.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        latent_dim: Size of z: an int, or a shape if prior, posterior and networks are for latents of that shape.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihood: p(x|z): a name in `pv.conditionals.LIKELIHOODS`, or a `Likelihood` with event shape `data_shape`.
        posterior: q(z|x): a name in `pv.conditionals.POSTERIORS`, or a `Conditional` with event shape `(latent_dim,)`.
            Those in `pv.conditionals.SHARE_POSTERIORS` have latents that are shares that sum to one.
        prior: p(z): a name in `pv.priors.PRIORS`, or a `Prior` with event shape `(latent_dim,)`. Shares have their own
            priors, `pv.priors.SHARE_PRIORS`.
        encoder: A network `(*, *data_shape) -> (*, *posterior.param_shape)` in place of the default MLP; or a class or
            function that makes one from these two shapes, such as `pv.nets.ConvEncoder`.
        decoder: The same for `(*, latent_dim) -> (*, *likelihood.param_shape)`, such as `pv.nets.ConvDecoder`.

    Raises:
        ValueError: For unknown names, sizes below 1, or parts whose shapes do not fit.

    Reference: Kingma and Welling 2014, arXiv 1312.6114, section 3; Rezende et al. 2014, arXiv 1401.4082.

    Example:
        >>> vae = VAE(784, latent_dim=50)
        >>> vae.encode(torch.zeros(3, 784)).event_shape
        torch.Size([50])
        >>> vae.sample(2).shape
        torch.Size([2, 784])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int | Sequence[int] = 20,
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
        encoder: nn.Module | NetworkFactory | None = None,
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        shape, latent = as_sizes(data_shape, "data_shape"), as_sizes(latent_dim, "latent_dim")
        super().__init__(shape)
        self.latent_dim = latent_dim
        self.likelihood = as_likelihood(likelihood, shape)
        self.posterior = as_posterior(posterior, latent, shares=None)
        self.prior = as_prior(prior, latent, shape, shares=self.posterior.shares)
        down = tuple(reversed(hidden))
        self.encoder = as_network(encoder, shape, self.posterior.param_shape, hidden, activation)
        self.decoder = as_network(decoder, latent, self.likelihood.param_shape, down, activation)

    def model(self, x: Tensor) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("prior", "decoder", "likelihood")
        if self.prior.uses_encoder:
            self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior_distribution())
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x))

    def prior_distribution(self) -> Any:
        """p(z) as a distribution: batch shape `()`, event shape `(latent_dim,)`."""
        return self.prior(self.encode) if self.prior.uses_encoder else self.prior()

    def encode(self, x: Tensor) -> Any:
        """q(z|x) as a distribution: batch shape `*`, event shape `(latent_dim,)`, for x of shape `(*, *data_shape)`."""
        self._check(x)
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Any:
        """p(x|z) as a distribution: batch shape `*`, event shape `data_shape`, for z of shape `(*, latent_dim)`."""
        return self.likelihood(self.decoder(z))

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False) -> Tensor:
        """`(n, *data_shape)` drawn from the prior, or the means of p(x|z) with `mean=True`."""
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        p = self.decode(self.prior_distribution().sample((n,)))
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = True) -> Tensor:
        """`(N, *data_shape)`: the mean of p(x|z) at one draw z from q(z|x), or a draw from it with `mean=False`."""
        p = self.decode(self.encode(x.to(next(self.parameters()).device)).sample())
        return p.mean if mean else p.sample()
