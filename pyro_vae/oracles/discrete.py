"""Discrete pairs whose exact values are known by enumeration."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.oracles.base import Oracle, Side, Weighting, normal_parameters
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked_from

__all__ = ["BitsAndClasses", "Discrete"]


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

    @checked_from(data_dim=1, classes=1)
    def __init__(self, data_dim: int = 3, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        normal = normal_parameters(seed)
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
        seed: Of the parameters: random, and q is not the posterior.
        weighting: Scales of the sites "b", "c" and "x", and masks, by the datum's first element. With any, the
            objective is what `Weighting` says, and log p(x) bounds nothing.
    """

    guide_parameters = ("encoder_bits", "encoder_class")

    @checked_from(data_dim=1, bits=0, classes=0)
    def __init__(
        self, data_dim: int = 3, bits: int = 2, classes: int = 3, seed: int = 0, weighting: Weighting | None = None
    ) -> None:
        super().__init__()
        normal = normal_parameters(seed)
        self.weighting = weighting or Weighting()
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
                with self.weighting.context("model", "b", x[..., 0]):
                    parts.append(pyro.sample("b", dist.Bernoulli(logits=self.prior_bits).to_event(1)))
            if self.classes:
                with self.weighting.context("model", "c", x[..., 0]):
                    parts.append(pyro.sample("c", dist.OneHotCategorical(logits=self.prior_class)))
            parts = [p.expand(torch.broadcast_shapes(p.shape[:-1], (len(x),)) + p.shape[-1:]) for p in parts]
            with self.weighting.context("model", "x", x[..., 0]):
                pyro.sample("x", self.likelihood(torch.cat(parts, -1)), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized guide."""
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x)):
            if self.bits:
                with self.weighting.context("guide", "b", x[..., 0]):
                    pyro.sample("b", dist.Bernoulli(logits=x @ self.encoder_bits.T).to_event(1))
            if self.classes:
                with self.weighting.context("guide", "c", x[..., 0]):
                    pyro.sample("c", dist.OneHotCategorical(logits=x @ self.encoder_class.T))

    @property
    def is_bound(self) -> bool:
        """Whether nothing is scaled or masked."""
        return not self.weighting

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

    def log_densities(self, x: Tensor) -> dict[tuple[Side, str], Tensor]:
        """The log-density of each site in each state, `(N, S)` or `(S,)`."""
        z = self.states()
        b, c = z.split([self.bits, self.classes], -1)
        result: dict[tuple[Side, str], Tensor] = {("model", "x"): self.likelihood(z).log_prob(x.unsqueeze(1))}
        if self.bits:
            result["model", "b"] = dist.Bernoulli(logits=self.prior_bits).to_event(1).log_prob(b)
            logits = (x @ self.encoder_bits.T).unsqueeze(1)
            result["guide", "b"] = dist.Bernoulli(logits=logits).to_event(1).log_prob(b)
        if self.classes:
            result["model", "c"] = dist.OneHotCategorical(logits=self.prior_class).log_prob(c)
            logits = (x @ self.encoder_class.T).unsqueeze(1)
            result["guide", "c"] = dist.OneHotCategorical(logits=logits).log_prob(c)
        return result

    def log_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z|x) of every state, `(N, S)`."""
        found = self.log_densities(x)
        log_p, log_q = (sum(v for key, v in found.items() if key[0] == side) for side in ("model", "guide"))
        return torch.as_tensor(log_p), torch.as_tensor(log_q)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`."""
        return self.log_weights(x)[0].logsumexp(-1)

    def weighted(self, x: Tensor, kl_weight: float = 1.0) -> Tensor:
        """log w of every state, `(N, S)`, with scales, masks and a weight on the latents."""
        result = x.new_zeros(())
        for (side, site), value in self.log_densities(x).items():
            factor = self.weighting.factor(side, site, x[..., :1]) * (1.0 if site == "x" else kl_weight)
            result = result + (factor if side == "model" else -factor) * value
        return result

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)), `(N,)`."""
        return self.elbo(x, 0.0) - self.elbo(x)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        return (self.log_weights(x)[1].exp() * self.weighted(x, weight)).sum(-1)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of every state."""
        return self.weighted(x).T, self.log_weights(x)[1].T
