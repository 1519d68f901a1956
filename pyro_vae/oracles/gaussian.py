"""Gaussian pairs whose exact values are known: a linear model, and a chain of two latents."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.oracles.base import Oracle, Weighting
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked, checked_from

__all__ = ["LinearGaussian", "TopDownChain", "ppca_log_prob"]


class LinearGaussian(Oracle):
    r"""A linear-Gaussian model with an amortized diagonal guide.

    .. math:: z \sim N(0, I_L), \quad x \sim N(W z + b, \sigma^2 I_D); \qquad
        q(z|x) = N(V x + c, \mathrm{diag}(e^{2 s}))

    Exact in closed form: `log_prob`, `posterior`, `elbo`, `log_likelihood` and `kl`, and by `torch.autograd` the
    gradient of each in W (`weight`), b (`bias`), V (`encoder`), c (`offset`) and s (`log_scale`). `iwae` is exact by
    quadrature, for L <= 2.

    >>> pair = LinearGaussian()
    >>> x = pair.simulate(10)
    >>> exact = torch.autograd.grad(pair.elbo(x).sum(), list(pair.parameters()))

    Args:
        data_dim, latent_dim: D and L.
        scale: sigma, the observation noise.
        seed: Seed of the random parameters, with which q is not the posterior.
    """

    guide_parameters = ("encoder", "offset", "log_scale")
    reparameterized = True

    @checked_from(data_dim=1, latent_dim=1)
    def __init__(self, data_dim: int = 4, latent_dim: int = 2, scale: float = 0.7, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) / 2)

        self.weight, self.bias = normal(data_dim, latent_dim), normal(data_dim)
        self.encoder, self.offset, self.log_scale = normal(latent_dim, data_dim), normal(latent_dim), normal(latent_dim)
        self.scale = scale

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N, D)`."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The diagonal guide."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    def exact_guide(self, x: Tensor) -> None:
        """A guide that is the posterior: every importance weight is p(x). It has no parameters of its own."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def wide_guide(self, x: Tensor) -> None:
        """The posterior's marginals, 1.2 times as wide: a proposal with light-tailed weights."""
        p = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p.mean, 1.2 * p.variance.sqrt()).to_event(1))

    def at_posterior(self) -> LinearGaussian:
        """A copy with orthogonal columns of W, so that the posterior is diagonal, and with V, c, s of that posterior.

        The guide keeps its parameters, to take gradients of: here an estimator that sticks the landing has no variance.
        """
        pair = copy.deepcopy(self)
        with torch.no_grad():
            q, r = torch.linalg.qr(self.weight)
            pair.weight.copy_(q * r.diagonal())
            variance = 1 / (1 + pair.weight.square().sum(0) / self.scale**2)  # (L,)
            pair.encoder.copy_(variance.unsqueeze(-1) * pair.weight.T / self.scale**2)
            pair.offset.copy_(-pair.encoder @ pair.bias)
            pair.log_scale.copy_(variance.log() / 2)
        return pair

    def prior(self) -> Any:
        """p(z)."""
        return dist.Normal(torch.zeros_like(self.offset), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> Any:
        """p(x|z) for `z`, `(*, L)`."""
        return dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)

    def q(self, x: Tensor) -> Any:
        """The approximate posterior of z given x, batch shape `(N,)`."""
        return dist.Normal(x @ self.encoder.T + self.offset, self.log_scale.exp()).to_event(1)

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, D)`."""
        with torch.no_grad():
            return self.likelihood(self.prior().sample((n,))).sample()

    def posterior(self, x: Tensor) -> Any:
        """p(z|x), batch shape `(N,)`."""
        precision = torch.eye(len(self.offset)).to(x) + self.weight.T @ self.weight / self.scale**2
        covariance = precision.inverse()
        return dist.MultivariateNormal((x - self.bias) @ self.weight @ covariance / self.scale**2, covariance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        noise = self.scale**2 * torch.eye(len(self.bias)).to(x)
        return dist.MultivariateNormal(self.bias, self.weight @ self.weight.T + noise).log_prob(x)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """E_q[log p(x|z)], `(N,)`."""
        q = self.q(x)
        error = (x - self.bias - q.mean @ self.weight.T).square().sum(-1) + q.variance @ self.weight.square().sum(0)
        return -len(self.bias) * math.log(self.scale * math.sqrt(2 * math.pi)) - error / (2 * self.scale**2)

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)), `(N,)`."""
        q = self.q(x)
        return 0.5 * (q.mean.square() + q.variance - q.variance.log() - 1).sum(-1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        return self.log_likelihood(x) - weight * self.kl(x)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """On a grid over z of 48 points per dimension, 8 standard deviations of q to each side.

        Raises:
            ValueError: For more than two latent dimensions.
        """
        if len(self.offset) > 2:
            raise ValueError(f"the grid over z has 48^L points: latent_dim must be at most 2, got {len(self.offset)}")
        noise, log_mass = normal_grid(len(self.offset), x)
        q = self.q(x)
        z = q.mean + noise.unsqueeze(1) * q.stddev  # (M, N, L)
        log_w = self.prior().log_prob(z) + self.likelihood(z).log_prob(x) - q.log_prob(z)
        return log_w, log_mass.unsqueeze(-1)


class TopDownChain(Oracle):
    r"""A two-layer model with a guide in the opposite order.

    .. math:: z_2 \sim N(0, 1), \; z_1 \sim N(a z_2, s^2), \; x \sim N(z_1, r^2); \qquad
        q(z_1|x) = N(w x, t_1^2), \; q(z_2|z_1) = N(u z_1, t_2^2)

    An analytic KL of z1 given a drawn z2 would take z1 and z2 for independent under q, which they are not. `elbo` and
    `log_prob` are exact in closed form, `iwae` by quadrature.

    Args:
        weighting: Scales and masks of sites. With any, the objective is what `Weighting` says, and log p(x) bounds
            nothing.
    """

    guide_parameters = ("w", "u")
    reparameterized = True
    s, r, t1, t2 = 0.6, 0.8, 0.7, 0.5

    @checked
    def __init__(self, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting or Weighting()
        self.a, self.w, self.u = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.3, 0.5, 0.9))

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N,)`: z2, then z1."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            with self.weighting.context("model", "z2", x):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            with self.weighting.context("model", "z1", x):
                z1 = pyro.sample("z1", dist.Normal(self.a * z2, self.s))
            with self.weighting.context("model", "x", x):
                pyro.sample("x", dist.Normal(z1, self.r), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide: z1, then z2."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            with self.weighting.context("guide", "z1", x):
                z1 = pyro.sample("z1", dist.Normal(self.w * x, self.t1))
            with self.weighting.context("guide", "z2", x):
                pyro.sample("z2", dist.Normal(self.u * z1, self.t2))

    @property
    def is_bound(self) -> bool:
        """Whether nothing is scaled or masked."""
        return not self.weighting

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n,)`."""
        with torch.no_grad():
            return self.marginal().sample((n,))

    def marginal(self) -> Any:
        """p(x)."""
        return dist.Normal(torch.zeros_like(self.a), (self.a**2 + self.s**2 + self.r**2).sqrt())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.marginal().log_prob(x)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""

        def normal(mean_square: Tensor | float, scale: float) -> Any:  # E[log N] of a centered variable
            return -math.log(scale * math.sqrt(2 * math.pi)) - mean_square / (2 * scale**2)

        z1_square = (self.w * x).square() + self.t1**2
        p_z2 = normal(self.u**2 * z1_square + self.t2**2, 1.0)
        p_z1 = normal((1 - self.a * self.u) ** 2 * z1_square + self.a**2 * self.t2**2, self.s)
        p_x = normal((x - self.w * x).square() + self.t1**2, self.r)
        q_z1, q_z2 = normal(self.t1**2, self.t1), normal(self.t2**2, self.t2)
        factor = partial(self.weighting.factor, x=x)
        latents = factor("model", "z2") * p_z2 + factor("model", "z1") * p_z1
        latents = latents - factor("guide", "z1") * q_z1 - factor("guide", "z2") * q_z2
        return factor("model", "x") * p_x + weight * latents

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """On a grid over z1 and z2."""
        noise, log_mass = normal_grid(2, x)
        q1 = dist.Normal(self.w * x, self.t1)
        z1 = q1.mean + self.t1 * noise[:, :1]  # (M, N)
        q2 = dist.Normal(self.u * z1, self.t2)
        z2 = q2.mean + self.t2 * noise[:, 1:]
        factor = partial(self.weighting.factor, x=x)
        log_p = factor("model", "z2") * dist.Normal(torch.zeros_like(z2), 1.0).log_prob(z2)
        log_p = log_p + factor("model", "z1") * dist.Normal(self.a * z2, self.s).log_prob(z1)
        log_p = log_p + factor("model", "x") * dist.Normal(z1, self.r).log_prob(x)
        log_q = factor("guide", "z1") * q1.log_prob(z1) + factor("guide", "z2") * q2.log_prob(z2)
        return log_p - log_q, log_mass.unsqueeze(-1)


def normal_grid(dims: int, like: Tensor, points: int = 48) -> tuple[Tensor, Tensor]:
    """`(M, dims)` of an even grid of `points` a dimension, and their standard normal log-probabilities `(M,)`."""
    axis = torch.linspace(-8.0, 8.0, points).to(like)
    grid = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    return grid, (-grid.square().sum(-1) / 2).log_softmax(0)


@checked_from(latent_dim=1)
def ppca_log_prob(x: Tensor, latent_dim: int, scale: float) -> float:
    """The greatest mean log p(x) that a linear-Gaussian model with noise `scale` reaches on `x`, `(N, D)`.

    In nats per datum. It is also the greatest mean ELBO: with orthogonal columns of W the posterior is diagonal.

    Reference: Tipping and Bishop 1999, JRSS B 61, probabilistic principal component analysis, eq. 7 and 8.
    """
    data_variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)  # decreasing
    variances = data_variances.clamp_min(scale**2)
    variances[latent_dim:] = scale**2
    return float(-0.5 * (math.log(2 * math.pi) + variances.log() + data_variances / variances).sum())
