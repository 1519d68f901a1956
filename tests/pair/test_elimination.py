"""Latents that the model enumerates alone, summed out."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.pair.elimination import enumerated_alone, without_enumerated
from pyro_vae.pair.tracing import trace_pair

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5])
LOCS, WEIGHTS = torch.tensor([-1.0, 1.5]), torch.tensor([0.4, 0.6])


def nothing(*args: Tensor) -> None:
    pass


def category(name: str, probs: Tensor) -> Tensor:
    value: Tensor = pyro.sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})
    return value


def hierarchical(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(LOCS[category("c", WEIGHTS)], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


WIDE = torch.logsumexp(WEIGHTS.log() + dist.Normal(LOCS, math.sqrt(2)).log_prob(X.unsqueeze(-1)), -1)


def test_only_what_the_guide_does_not_draw() -> None:
    data: Any = ((X,), {})
    assert enumerated_alone(hierarchical, guide, data)[0] == ["c"]

    def both(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(WEIGHTS))
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    assert enumerated_alone(hierarchical, both, data)[0] == []
    assert without_enumerated(hierarchical, both, data) is hierarchical


def test_the_joint_density_of_a_latent_below_a_category() -> None:
    model = without_enumerated(hierarchical, guide, ((X,), {}))
    for particles in (None, 3):
        traces = trace_pair(model, guide, (X,), num_particles=particles)
        z = traces.guide.nodes["z"]["value"]
        prior = torch.logsumexp(WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(z.unsqueeze(-1)), -1)
        found = sum(
            site["fn"].log_prob(site["value"])
            for site in traces.model.nodes.values()
            if "fn" in site and site["type"] == "sample"
        )
        assert torch.allclose(found, prior + dist.Normal(z, 1.0).log_prob(X), atol=1e-5)
    result = pv.log_marginal(hierarchical, guide, X, seed=0)
    assert bool(((result.log_prob - WIDE).abs() < 5 * result.std_error).all())
    assert "c" not in pv.posterior_samples(hierarchical, X[:1], num_samples=3, warmup_steps=3, seed=0)


def test_a_category_of_each_datum_and_one_of_each_pixel() -> None:
    x = torch.randn(4, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            c = category("c", WEIGHTS)
            with pyro.plate("pixels", 3, dim=-1):
                d = category("d", WEIGHTS)
                pyro.sample("x", dist.Normal(LOCS[c] + 0.5 * LOCS[d], 1.0), obs=x)

    pixels = dist.Normal(LOCS[:, None] + 0.5 * LOCS, 1.0).log_prob(x[:, :, None, None])
    exact = torch.logsumexp(WEIGHTS.log() + torch.logsumexp(WEIGHTS.log() + pixels, -1).sum(1), -1)
    assert torch.allclose(pv.log_marginal(model, nothing, x, num_samples=2).log_prob, exact, atol=1e-4)
    assert torch.allclose(pv.bound(model, nothing, x).elbo, exact, atol=1e-4)


def test_beside_a_latent_that_all_data_share() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + LOCS[category("c", WEIGHTS)], 1.0), obs=x)

    def shared(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 0.7))

    grid = torch.linspace(-8, 8, 4001)
    parts = WEIGHTS.log() + dist.Normal(grid[:, None, None] + LOCS, 1.0).log_prob(X[:, None])
    density = dist.Normal(0.0, 1.0).log_prob(grid) + parts.logsumexp(-1).sum(-1)
    exact = float(density.logsumexp(0)) + math.log(float(grid[1] - grid[0]))
    result = pv.log_marginal(model, shared, X, num_samples=20_000, seed=0)
    assert result.is_joint
    assert abs(float(result.log_prob) - exact) < 5 * float(result.std_error)
