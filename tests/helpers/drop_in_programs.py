"""Programs as users of Pyro write them: a VAE, a semi-supervised one with enumeration, and a deep Markov model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn
from torch.distributions import constraints


class Script(NamedTuple):
    """A pair, and the arguments of each of its steps."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    steps: list[tuple[Any, ...]]


def vae(steps: int = 10) -> Script:
    """Normal latents, pixels, and a parameter outside the networks; the encoder does not know the prior's scale."""
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 6))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("prior_scale", torch.tensor(1.2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x = (torch.rand(5, 6) < 0.5).float()
    return Script(model, guide, [(x,)] * steps)


def joined(*parts: Tensor) -> Tensor:
    """The last dimensions side by side, the others broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class SemiSupervised(nn.Module):
    """The class is given for some batches and a latent for the others; every network is registered by both programs."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.encoder = nn.Linear(4, 3), nn.Linear(7, 4)
        self.decoder = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 4))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("semi_supervised", self)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.decoder(joined(label, z))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("semi_supervised", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            loc, log_scale = self.encoder(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def semi_supervised(steps: int = 10) -> Script:
    """Batches without and with classes in turn, with the class enumerated in the guide."""
    pair = SemiSupervised()
    x, y = (torch.rand(5, 4) < 0.5).float(), torch.eye(3)[torch.tensor([0, 1, 2, 1, 0])]
    batches: list[tuple[Any, ...]] = [(x,), (x, y)]
    return Script(pair.model, config_enumerate(pair.guide, "parallel"), (batches * steps)[:steps])


def mixture(steps: int = 10) -> Script:
    """A mixture whose components are summed out in the model."""

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("components", 3):
            pyro.sample("loc", dist.Normal(locs, 0.1))

    return Script(model, guide, [(torch.linspace(-4, 4, 7),)] * steps)


class DeepMarkov(nn.Module):
    """Latents that follow each other, a recurrent encoder, sequences of several lengths and an annealed KL."""

    def __init__(self) -> None:
        super().__init__()
        self.transition, self.emission = nn.Linear(2, 4), nn.Linear(2, 3)
        self.reader, self.combiner = nn.GRU(3, 4, batch_first=True), nn.Linear(6, 4)
        self.first = nn.Parameter(torch.zeros(2))

    def model(self, x: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
        pyro.module("deep_markov", self)
        z = self.first.expand(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                loc, log_scale = self.transition(z).chunk(2, -1)
                with pyro.poutine.scale(scale=annealing):
                    prior = dist.Normal(loc, log_scale.exp()).mask(mask[:, t, None]).to_event(1)
                    z = pyro.sample(f"z{t}", prior)
                emission = dist.Bernoulli(logits=self.emission(z)).mask(mask[:, t, None]).to_event(1)
                pyro.sample(f"x{t}", emission, obs=x[:, t])

    def guide(self, x: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
        pyro.module("deep_markov", self)
        states, _ = self.reader(x.flip(1))
        states, z = states.flip(1), x.new_zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                loc, log_scale = self.combiner(torch.cat([states[:, t], z], -1)).chunk(2, -1)
                with pyro.poutine.scale(scale=annealing):
                    posterior = dist.Normal(loc, log_scale.exp()).mask(mask[:, t, None]).to_event(1)
                    z = pyro.sample(f"z{t}", posterior)


def deep_markov(steps: int = 10) -> Script:
    """Two lengths in one batch."""
    pair = DeepMarkov()
    x = (torch.rand(4, 3, 3) < 0.5).float()
    mask = torch.tensor([[True, True, True], [True, True, False]]).repeat(2, 1)
    return Script(pair.model, pair.guide, [(x, mask, 0.7)] * steps)
