"""Discrete pairs whose exact values are known by enumeration."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.oracles.base import Oracle
from pyro_vae.oracles.gaussian import normal_grid
from pyro_vae.pair.names import unique_name

__all__ = ["BitsAndClasses", "Discrete", "Grid"]


class Discrete(Oracle):
    r"""A categorical latent under independent Bernoulli observations.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad x_d \sim \mathrm{Bernoulli}(\theta_{c d}); \qquad
        q(c|x) = \mathrm{Cat}(\mathrm{softmax}(V x))

    Exact by enumeration over c: `log_joint`, `log_prob`, `elbo` and `iwae`, with their gradients.

    Args:
        data_dim, classes: D and the number of classes C.
        seed: Seed of the random parameters, with which q is not the posterior.
    """

    guide_parameters = ("encoder",)

    def __init__(self, data_dim: int = 3, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        normal = _normal(seed)
        self.prior_logits, self.logits = normal(classes), normal(classes, data_dim)
        self.encoder = normal(classes, data_dim)

    def model(self, x: Tensor) -> None:
        """The generative model of binary `x`, `(N, D)`."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.prior_logits))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[c]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized guide."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=x @ self.encoder.T))

    def at_posterior(self) -> Discrete:
        """A copy with the prior `pi_c ~ 1 / prod_d (1 - theta_cd)`, under which V = logit theta is the posterior."""
        pair = copy.deepcopy(self)
        with torch.no_grad():
            pair.prior_logits.copy_(nn.functional.softplus(self.logits).sum(-1))
            pair.encoder.copy_(self.logits)
        return pair

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, D)`."""
        with torch.no_grad():
            c = dist.Categorical(logits=self.prior_logits).sample((n,))
            return dist.Bernoulli(logits=self.logits[c]).sample()

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, c), `(N, C)`, nats."""
        log_likelihood = dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x.unsqueeze(-2))
        return self.prior_logits.log_softmax(-1) + log_likelihood

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.log_joint(x).logsumexp(-1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        log_q = (x @ self.encoder.T).log_softmax(-1)
        log_likelihood = self.log_joint(x) - self.prior_logits.log_softmax(-1)
        return (log_q.exp() * (log_likelihood + weight * (self.prior_logits.log_softmax(-1) - log_q))).sum(-1)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, c) - log q(c|x) and log q(c|x) of every class, `(C, N)` each."""
        log_q = (x @ self.encoder.T).log_softmax(-1)
        return (self.log_joint(x) - log_q).T, log_q.T


class BitsAndClasses(Oracle):
    r"""Independent bits and a one-hot class under Bernoulli observations.

    .. math:: b_i \sim \mathrm{Bernoulli}, \; c \sim \mathrm{OneHot}, \; z = (b, c), \quad
        x \sim \mathrm{Bernoulli}\big(\sigma(2 \tanh(z W) \textstyle\sum_j z_j + \beta)\big); \qquad
        q(b|x),\, q(c|x) \text{ with logits linear in } x

    Exact by enumeration over all `2^B C` states: `log_prob`, `elbo`, `kl` and `iwae`, with their gradients. A latent of
    size 0 is left out.

    Args:
        data_dim, bits, classes: D, the number of bits B and of classes C.
        seed: Seed of the random parameters, with which q is not the posterior.
    """

    guide_parameters = ("encoder_bits", "encoder_class")

    def __init__(self, data_dim: int = 3, bits: int = 2, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        normal = _normal(seed)
        self.bits, self.classes = bits, classes
        if bits:
            self.prior_bits, self.encoder_bits = normal(bits), normal(bits, data_dim)
        if classes:
            self.prior_class, self.encoder_class = normal(classes), normal(classes, data_dim)
        self.weight, self.bias = normal(bits + classes, data_dim), normal(data_dim)

    def likelihood(self, z: Tensor) -> Any:
        """p(x|z) as a distribution, for z = (bits, class) of shape `(*, B + C)`."""
        return dist.Bernoulli(logits=2 * torch.tanh(z @ self.weight) * z.sum(-1, keepdim=True) + self.bias).to_event(1)

    def model(self, x: Tensor) -> None:
        """The generative model of binary `x`, `(N, D)`."""
        pyro.module(unique_name(self), self)
        parts = []
        with pyro.plate("data", len(x)):
            if self.bits:
                parts.append(pyro.sample("b", dist.Bernoulli(logits=self.prior_bits).to_event(1)))
            if self.classes:
                parts.append(pyro.sample("c", dist.OneHotCategorical(logits=self.prior_class)))
            parts = [p.expand(torch.broadcast_shapes(p.shape[:-1], (len(x),)) + p.shape[-1:]) for p in parts]
            pyro.sample("x", self.likelihood(torch.cat(parts, -1)), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized guide."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            if self.bits:
                pyro.sample("b", dist.Bernoulli(logits=x @ self.encoder_bits.T).to_event(1))
            if self.classes:
                pyro.sample("c", dist.OneHotCategorical(logits=x @ self.encoder_class.T))

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, D)`."""
        with torch.no_grad():
            parts = [dist.Bernoulli(logits=self.prior_bits).sample((n,))] if self.bits else []
            if self.classes:
                parts.append(dist.OneHotCategorical(logits=self.prior_class).sample((n,)))
            return self.likelihood(torch.cat(parts, -1)).sample()

    def states(self) -> Tensor:
        """Every latent state, `(S, B + C)`."""
        bits = list(itertools.product((0.0, 1.0), repeat=self.bits))
        classes = torch.eye(self.classes).tolist() or [[]]
        return torch.tensor([[*b, *c] for b in bits for c in classes]).to(self.weight)

    def log_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z|x) of every state, `(N, S)`."""
        z, n = self.states(), len(x)
        b, c = z.split([self.bits, self.classes], -1)
        log_p, log_q = self.likelihood(z).log_prob(x.unsqueeze(1)), x.new_zeros(n, len(z))
        if self.bits:
            log_p = log_p + dist.Bernoulli(logits=self.prior_bits).to_event(1).log_prob(b)
            logits = (x @ self.encoder_bits.T).unsqueeze(1)
            log_q = log_q + dist.Bernoulli(logits=logits).to_event(1).log_prob(b)
        if self.classes:
            log_p = log_p + dist.OneHotCategorical(logits=self.prior_class).log_prob(c)
            log_q = log_q + dist.OneHotCategorical(logits=(x @ self.encoder_class.T).unsqueeze(1)).log_prob(c)
        return log_p, log_q

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.log_weights(x)[0].logsumexp(-1)

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)), `(N,)`."""
        log_p, log_q = self.log_weights(x)
        log_likelihood = self.likelihood(self.states()).log_prob(x.unsqueeze(1))
        return (log_q.exp() * (log_q - log_p + log_likelihood)).sum(-1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        log_p, log_q = self.log_weights(x)
        return (log_q.exp() * (log_p - log_q)).sum(-1) + (1 - weight) * self.kl(x)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) - log q(z|x) and log q(z|x) of every state, `(S, N)` each."""
        log_p, log_q = self.log_weights(x)
        return (log_p - log_q).T, log_q.T


class Grid(Oracle):
    r"""Bits of event shape (1, 2), in a second plate of size 2 and under a mask, that depend on a Gaussian.

    .. math:: z \sim N(0, 1), \; b_{pi} \sim \mathrm{Bernoulli}, \quad
        x_0 \sim N\big(z + \textstyle\prod_p \sum_i b_{pi} w_i, 1\big); \qquad
        q(z|x) = N(s x_0, 0.7^2), \; q(b_p|z) \text{ with logits } (z + p/2) h

    for the parts p = 0, 1. A datum is the observation `x_0` and a switch `x_1`: unless the switch is positive, the
    datum's bits and observation are masked. Exact by enumeration of the bits on a fine grid over z, for data that are
    not masked: `log_prob`, `elbo` and `iwae`, with their gradients.

    Args:
        name: Name of the site of the bits.
        full_size: Size of the data of which `x` is a minibatch; None if `x` is all data.
    """

    guide_parameters = ("slope", "shift")

    def __init__(self, name: str = "bits", full_size: int | None = None) -> None:
        super().__init__()
        normal = _normal(1)
        self.slope, self.shift, self.prior, self.weight = normal(1), normal(2), normal(2), normal(2)
        self.name, self.full_size = name, full_size

    def plate(self, x: Tensor) -> Any:
        """The plate over the data, of `full_size` if that is given."""
        if self.full_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x), device=x.device), dim=-1)

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N, 2)`."""
        pyro.module(unique_name(self), self)
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                b = pyro.sample(self.name, dist.Bernoulli(logits=self.prior).expand([1, 2]).to_event(2))
            with poutine.mask(mask=keep):
                pyro.sample("x", dist.Normal(z + self.signal(b, -2, keepdim=True), 1.0), obs=x[..., 0])

    def guide(self, x: Tensor) -> None:
        """The guide: z, then the bits."""
        pyro.module(unique_name(self), self)
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.slope * x[..., 0], 0.7))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                logits = self.logits(z, torch.arange(2.0, device=x.device).reshape(2, 1))
                pyro.sample(self.name, dist.Bernoulli(logits=logits.unsqueeze(-2)).to_event(2))

    def logits(self, z: Tensor, part: Tensor) -> Tensor:
        """The logits of q(b|z), `(*, 2)`."""
        return (z + 0.5 * part).unsqueeze(-1) * self.shift

    def signal(self, b: Tensor, part_dim: int, keepdim: bool = False) -> Tensor:
        """The contribution of the bits, `(*, 1, 2)`, to the observation's mean: a product over the parts."""
        return (b.sum(-2) @ self.weight).prod(part_dim, keepdim=keepdim)

    def states(self) -> Tensor:
        """Every state of the bits, `(16, 2, 1, 1, 2)`: parts, then a datum's dimension, then the event's."""
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).to(self.weight).reshape(16, 2, 1, 1, 2)

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, 2)`, none of them masked."""
        with torch.no_grad():
            b = dist.Bernoulli(logits=self.prior).sample((n, 2, 1))  # (n, parts, 1, 2)
            mean = self.signal(b, -1)
            return torch.stack([mean + 2**0.5 * torch.randn_like(mean), torch.ones_like(mean)], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`: a mixture of Gaussians over the states of the bits."""
        b = self.states()
        log_p = dist.Bernoulli(logits=self.prior).log_prob(b).sum((-4, -2, -1))  # (16, 1)
        return (log_p + dist.Normal(self.signal(b, 1), 2**0.5).log_prob(x[..., 0])).logsumexp(0)

    def log_weight_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z, b), log p(z, b) - log q(z, b|x), and log q, of points `(M, 16, N)` or `(M, 16, 1)`."""
        noise, log_mass = normal_grid(1, x)
        q_z, b = dist.Normal(self.slope * x[..., 0], 0.7), self.states()
        z = q_z.mean + 0.7 * noise  # (M, N)
        logits = self.logits(z.unsqueeze(1), torch.arange(2.0).to(x).reshape(2, 1)).unsqueeze(1)  # (M, 1, 2, N, 2)
        log_q = dist.Bernoulli(logits=logits).log_prob(b.squeeze(-2)).sum((-1, -3))  # (M, 16, N)
        log_p = dist.Bernoulli(logits=self.prior).log_prob(b).sum((-4, -2, -1))
        log_likelihood = dist.Normal(z.unsqueeze(1) + self.signal(b, 1), 1.0).log_prob(x[..., 0])
        log_z = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) - q_z.log_prob(z)
        return log_likelihood, log_p - log_q + log_z.unsqueeze(1), log_q + log_mass.reshape(-1, 1, 1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        log_likelihood, log_ratio, log_q = self.log_weight_parts(x)
        return (log_q.exp() * (log_likelihood + weight * log_ratio)).sum((0, 1))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As for `Oracle`, for every state of the bits on a grid over z."""
        log_likelihood, log_ratio, log_q = self.log_weight_parts(x)
        return (log_likelihood + log_ratio).flatten(0, 1), log_q.flatten(0, 1)


def _normal(seed: int) -> Any:
    """A function that draws float64 parameters of a given shape."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
