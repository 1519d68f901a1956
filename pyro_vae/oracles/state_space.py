"""A linear-Gaussian state-space model: the Kalman filter, and exact bounds of a guide."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.oracles.base import Oracle, normal_parameters
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked_from

__all__ = ["Filtered", "LinearStateSpace"]


class Filtered(NamedTuple):
    """What the Kalman filter finds in series `(N, T, D)`.

    Attributes:
        log_prob: log p(x), `(N,)`, nats.
        mean: E[z_T|x], `(N, L)`, of the last state.
        covariance: Its covariance, `(L, L)`.
    """

    log_prob: Tensor
    mean: Tensor
    covariance: Tensor


class LinearStateSpace(Oracle):
    r"""A linear-Gaussian state-space model with a guide that reads the present observation.

    .. math:: z_1 \sim N(m, S), \quad z_t \sim N(A z_{t-1} + b, \mathrm{diag}(s^2)), \quad x_t \sim N(C z_t + d, r^2 I);
        \qquad q(z_t \mid z_{t-1}, x_t) = N(F z_{t-1} + G x_t + g, \mathrm{diag}(u^2))

    with S = diag(s_1^2). `log_prob`, `filter` and `forecast` are by the Kalman filter; `elbo` is in closed form, from
    the joint Gaussians of all states. Data are series `(N, T, D)`.

    >>> pair = LinearStateSpace()
    >>> x = pair.simulate(3)
    >>> bool((pair.elbo(x) < pair.log_prob(x)).all())
    True

    Args:
        data_dim, latent_dim: D and L.
        length: T of the series that `simulate` draws.
        seed: Seed of the random parameters, with which q is not the posterior.

    Reference: Kalman 1960, Journal of Basic Engineering 82; Särkkä 2013, Bayesian filtering and smoothing, section 4.3.
    """

    guide_parameters = ("forward_weight", "encoder", "offset", "log_noise")
    reparameterized = True

    @checked_from(data_dim=1, latent_dim=1, length=1)
    def __init__(self, data_dim: int = 3, latent_dim: int = 2, length: int = 6, seed: int = 0) -> None:
        super().__init__()
        draw = normal_parameters(seed)
        self.length, self.scale = length, 0.5
        self.initial_loc, self.initial_log_scale = draw(latent_dim), nn.Parameter(draw(latent_dim).detach() / 4)
        self.transition = nn.Parameter(0.9 * torch.linalg.qr(draw(latent_dim, latent_dim).detach())[0])
        self.drift, self.log_scale = (nn.Parameter(draw(latent_dim).detach() / 4) for _ in range(2))
        self.weight, self.bias = draw(data_dim, latent_dim), draw(data_dim)
        # near the best guide of this kind, and not there
        posterior = (self.weight.T @ self.weight / self.scale**2 + torch.eye(latent_dim).double()).detach().inverse()
        self.encoder = nn.Parameter(posterior @ self.weight.T.detach() / self.scale**2)
        self.forward_weight = nn.Parameter(posterior @ self.transition.detach())
        self.offset = nn.Parameter(-self.encoder.detach() @ self.bias.detach())
        self.log_noise = nn.Parameter(posterior.diagonal().log() / 2 + 0.1)

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N, T, D)`."""
        pyro.module(unique_name(self), self)
        states: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc = states[-1] @ self.transition.T + self.drift if t else self.initial_loc
                scale = (self.log_scale if t else self.initial_log_scale).exp()
                states.append(pyro.sample(f"z_{t + 1}", dist.Normal(loc, scale).to_event(1)))
            loc = torch.stack(states, -2) @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide of the states."""
        pyro.module(unique_name(self), self)
        z = None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc = x[:, t] @ self.encoder.T + self.offset
                loc = loc if z is None else loc + z @ self.forward_weight.T
                z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, self.log_noise.exp()).to_event(1))

    def simulate(self, n: int) -> Tensor:
        """`n` series, `(n, length, D)`."""
        with torch.no_grad():
            z = self.states(self.length).sample((n,)).unflatten(-1, (self.length, -1))
            return dist.Normal(z @ self.weight.T + self.bias, self.scale).sample()

    def filter(self, x: Tensor) -> Filtered:
        """The Kalman filter.

        Raises:
            ValueError: For another shape than `(N, T, D)`.
        """
        self._check(x)
        mean, covariance = self.initial_loc.expand(len(x), -1), self._square(self.initial_log_scale)
        noise = self.scale**2 * torch.eye(len(self.bias)).to(x)
        log_prob = torch.zeros(len(x)).to(x)
        for t in range(x.shape[1]):
            if t:
                mean, covariance = self._predict(mean, covariance)
            innovation = self.weight @ covariance @ self.weight.T + noise
            expected = dist.MultivariateNormal(mean @ self.weight.T + self.bias, innovation)
            log_prob = log_prob + expected.log_prob(x[:, t])
            gain = torch.linalg.solve(innovation, self.weight @ covariance).T
            mean = mean + (x[:, t] - expected.mean) @ gain.T
            covariance = covariance - gain @ self.weight @ covariance
        return Filtered(log_prob, mean, covariance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.filter(x).log_prob

    def forecast(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Means `(N, steps, D)` and variances `(steps, D)` of what follows the series.

        Raises:
            ValueError: For another shape than `(N, T, D)`, or less than one step.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        _, mean, covariance = self.filter(x)
        means, variances = [], []
        for _ in range(steps):
            mean, covariance = self._predict(mean, covariance)
            means.append(mean @ self.weight.T + self.bias)
            variances.append((self.weight @ covariance @ self.weight.T).diagonal() + self.scale**2)
        return torch.stack(means, 1), torch.stack(variances)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        self._check(x)
        length = x.shape[1]
        q = self._chain(x @ self.encoder.T + self.offset, self.forward_weight, self.log_noise.expand(length, -1))
        mean = q.mean.unflatten(-1, (length, -1)) @ self.weight.T + self.bias
        loading = torch.block_diag(*[self.weight] * length)
        spread = (loading @ q.covariance_matrix @ loading.T).diagonal(dim1=-2, dim2=-1).sum(-1)
        error = (x - mean).square().sum((1, 2)) + spread
        constant = -x[0].numel() * math.log(self.scale * math.sqrt(2 * math.pi))
        return constant - error / (2 * self.scale**2) - weight * kl_divergence(q, self.states(length))

    def states(self, length: int) -> Any:
        """p(z) of all states as one Gaussian of size length * L."""
        offsets = torch.stack([self.initial_loc, *[self.drift] * (length - 1)])
        log_scales = torch.stack([self.initial_log_scale, *[self.log_scale] * (length - 1)])
        return self._chain(offsets, self.transition, log_scales)

    def _chain(self, offsets: Tensor, transition: Tensor, log_scales: Tensor) -> Any:
        """The joint Gaussian of z_t = transition z_{t-1} + offset_t + scale_t e_t, for offsets `(*, T, L)`."""
        length, size = log_scales.shape
        before = torch.diag(torch.ones(length - 1), -1).to(log_scales)
        step = torch.eye(length * size).to(log_scales) - torch.kron(before, transition.contiguous())
        scale_tril = torch.linalg.solve_triangular(step, log_scales.flatten().exp().diag(), upper=False)
        mean = torch.linalg.solve_triangular(step, offsets.flatten(-2).unsqueeze(-1), upper=False).squeeze(-1)
        return dist.MultivariateNormal(mean, scale_tril=scale_tril)

    def _check(self, x: Tensor) -> None:
        size = len(self.bias)
        if x.dim() != 3 or x.shape[2] != size or not x.shape[1]:
            raise ValueError(f"expected series of shape (N, T, {size}), T at least 1, got {tuple(x.shape)}")

    def _predict(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        noise = self._square(self.log_scale)
        return mean @ self.transition.T + self.drift, self.transition @ covariance @ self.transition.T + noise

    def _square(self, log_scale: Tensor) -> Tensor:
        return (2 * log_scale).exp().diag()
