"""Model/guide pairs whose log p(x), posterior, ELBO and gradients are known exactly."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Discrete", "LinearGaussian", "TopDownChain", "ppca_log_prob"]


class LinearGaussian(nn.Module):
    r"""A linear-Gaussian model with an amortised diagonal guide.

    .. math:: z \sim N(0, I_L), \quad x \sim N(W z + b, \sigma^2 I_D); \qquad
        q(z|x) = N(V x + c, \mathrm{diag}(e^{2 s}))

    Every closed form is differentiable in the parameters, so the gradient of `elbo` is the exact gradient that an
    unbiased estimator has in expectation.

    Parameters
    ----------
    data_dim, latent_dim
        D and L.
    scale
        sigma, the observation noise.
    seed
        Of the parameters: random, and q is not the posterior.
    """

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
        pyro.module(f"linear_gaussian_{id(self)}", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The diagonal guide."""
        pyro.module(f"linear_gaussian_{id(self)}", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    def exact_guide(self, x: Tensor) -> None:
        """A guide that is the posterior: every importance weight is p(x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def wide_guide(self, x: Tensor) -> None:
        """The posterior's marginals, 1.2 times as wide: a proposal with light-tailed weights."""
        p = self.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p.mean, 1.2 * p.variance.sqrt()).to_event(1))

    def prior(self) -> Any:
        """p(z)."""
        return dist.Normal(torch.zeros_like(self.offset), 1.0).to_event(1)

    def q(self, x: Tensor) -> Any:
        """q(z|x), batch shape `(N,)`."""
        return dist.Normal(x @ self.encoder.T + self.offset, self.log_scale.exp()).to_event(1)

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, D)`."""
        with torch.no_grad():
            z = self.prior().sample((n,))
            return dist.Normal(z @ self.weight.T + self.bias, self.scale).sample()

    def posterior(self, x: Tensor) -> Any:
        """p(z|x), batch shape `(N,)`."""
        precision = torch.eye(len(self.offset), dtype=x.dtype) + self.weight.T @ self.weight / self.scale**2
        covariance = precision.inverse()
        return dist.MultivariateNormal((x - self.bias) @ self.weight @ covariance / self.scale**2, covariance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        noise = self.scale**2 * torch.eye(len(self.bias), dtype=x.dtype)
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


class Discrete(nn.Module):
    r"""A categorical latent under independent Bernoulli observations; everything by enumeration.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad x_d \sim \mathrm{Bernoulli}(\theta_{c d}); \qquad
        q(c|x) = \mathrm{Cat}(\mathrm{softmax}(V x))
    """

    def __init__(self, data_dim: int = 3, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.prior_logits, self.logits, self.encoder = (
            normal(classes),
            normal(classes, data_dim),
            normal(classes, data_dim),
        )

    def model(self, x: Tensor) -> None:
        """The generative model of binary `x`, `(N, D)`."""
        pyro.module(f"discrete_{id(self)}", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.prior_logits))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[c]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortised guide."""
        pyro.module(f"discrete_{id(self)}", self)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=x @ self.encoder.T))

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, c), `(N, C)`."""
        given = dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x.unsqueeze(-2))
        return self.prior_logits.log_softmax(-1) + given

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.log_joint(x).logsumexp(-1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        log_q = (x @ self.encoder.T).log_softmax(-1)
        given = self.log_joint(x) - self.prior_logits.log_softmax(-1)
        return (log_q.exp() * (given + weight * (self.prior_logits.log_softmax(-1) - log_q))).sum(-1)


class TopDownChain:
    r"""A two-layer model with a guide in the opposite order.

    .. math:: z_2 \sim N(0, 1), \; z_1 \sim N(a z_2, s^2), \; x \sim N(z_1, r^2); \qquad
        q(z_1|x) = N(w x, t_1^2), \; q(z_2|z_1) = N(u z_1, t_2^2)

    An analytic KL of z1 given a drawn z2 would take z1 and z2 for independent under q, which they are not.
    """

    a, s, r = 1.3, 0.6, 0.8
    w, t1, u, t2 = 0.5, 0.7, 0.9, 0.5

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N,)`: z2, then z1."""
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.a * z2, self.s))
            pyro.sample("x", dist.Normal(z1, self.r), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide: z1, then z2."""
        w = pyro.param("w", torch.tensor(self.w, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(w * x, self.t1))
            pyro.sample("z2", dist.Normal(self.u * z1, self.t2))

    def elbo(self, x: Tensor) -> Tensor:
        """The ELBO, `(N,)`."""

        def normal(mean_square: Tensor | float, scale: float) -> Any:  # E[log N] of a centred variable
            return -math.log(scale * math.sqrt(2 * math.pi)) - mean_square / (2 * scale**2)

        z1_square = (self.w * x).square() + self.t1**2
        p_z2 = normal(self.u**2 * z1_square + self.t2**2, 1.0)
        p_z1 = normal((1 - self.a * self.u) ** 2 * z1_square + self.a**2 * self.t2**2, self.s)
        p_x = normal((x - self.w * x).square() + self.t1**2, self.r)
        return p_z2 + p_z1 + p_x - normal(self.t1**2, self.t1) - normal(self.t2**2, self.t2)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return dist.Normal(torch.zeros_like(x), math.sqrt(self.a**2 + self.s**2 + self.r**2)).log_prob(x)


def ppca_log_prob(x: Tensor, latent_dim: int, scale: float) -> float:
    """The greatest mean log p(x) that a linear-Gaussian model with noise `scale` reaches on `x`, `(N, D)`.

    It is also the greatest mean ELBO: with orthogonal columns of W the posterior is diagonal.

    Reference: Tipping and Bishop 1999, probabilistic principal component analysis.
    """
    found = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)  # decreasing
    kept = found.clamp_min(scale**2)
    kept[latent_dim:] = scale**2
    return float(-0.5 * (math.log(2 * math.pi) + kept.log() + found / kept).sum())
