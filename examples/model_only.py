"""From a model to log p(x) without writing a guide: eight models of Pyro's tutorials and of textbooks.

Each model below is a plain Pyro program. `pv.AmortizedGuide` makes its guide, `pv.fit` trains both, and `pv.bound` and
`pv.log_marginal` say what the data's log-probability is: per datum, or of all data together where they share a latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv

from common import make_parser

Made = tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any]]


def mixture() -> Made:
    """A Gaussian mixture whose means are learned; which component a datum comes from is the latent."""
    means = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    x = means[torch.randint(3, (600,))] + torch.randn(600, 2)

    def model(x: Tensor) -> None:
        loc = pyro.param("mixture_loc", means + torch.randn(3, 2))
        with pyro.plate("data", len(x)):
            y = pyro.sample("component", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(loc[y], 1.0).to_event(1), obs=x)

    return model, (x,), {"elbo": "enum"}


def eight_schools() -> Made:
    """Rubin 1981: effects of coaching in eight schools, with their standard errors; the mean and spread are shared."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(effects: Tensor, errors: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        spread = pyro.sample("spread", dist.HalfCauchy(10.0))
        with pyro.plate("data", 8):
            school = pyro.sample("school", dist.Normal(0.0, 1.0))
            pyro.sample("effect", dist.Normal(mean + spread * school, errors), obs=effects)

    return model, (effects, errors), {"num_particles": 10, "epochs": 1500, "lr": 0.01}


def topics() -> Made:
    """Latent Dirichlet allocation with its words summed out: the topics of a document, given its counts of words."""
    words = dist.Dirichlet(0.1 * torch.ones(4, 30)).sample()
    shares = dist.Dirichlet(0.3 * torch.ones(4)).sample((500,))
    x = torch.stack([dist.Multinomial(60, row).sample() for row in shares @ words])

    def model(x: Tensor) -> None:
        logits = pyro.param("topic_logits", torch.randn(4, 30))
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.Dirichlet(0.3 * torch.ones(4)))
            pyro.sample("words", dist.Multinomial(60, shares @ logits.softmax(-1)), obs=x)

    return model, (x,), {"elbo": "trace", "epochs": 150}


def regression() -> Made:
    """A hierarchical regression: an intercept for each of 85 groups of ten, a slope that they share."""
    t = torch.randn(85, 10)
    y = 1.0 + 0.7 * torch.randn(85, 1) - 0.6 * t + 0.5 * torch.randn(85, 10)

    def model(y: Tensor, t: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfNormal(2.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        noise = pyro.sample("noise", dist.HalfNormal(2.0))
        with pyro.plate("data", 85, subsample_size=len(y), dim=-2):
            intercept = pyro.sample("intercept", dist.Normal(mean, spread))
            with pyro.plate("members", 10, dim=-1):
                pyro.sample("y", dist.Normal(intercept + slope * t, noise), obs=y)

    return model, (y, t), {"num_particles": 4, "epochs": 2000, "lr": 0.01}


def vae() -> Made:
    """A variational autoencoder of the digits of scikit-learn: only the decoder is written."""
    x = pv.data.load("digits", binarize="static", flatten=True).train.x
    decoder = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 64))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return model, (x,), {"elbo": "mean_field", "epochs": 60}


def deep_markov() -> Made:
    """A deep Markov model of six steps: a network moves the state on, another one emits what is seen."""
    z, seen = torch.zeros(600, 2), []
    for _ in range(6):
        z = z @ torch.tensor([[0.9, 0.4], [-0.4, 0.9]]) + 0.5 * torch.randn(600, 2)
        seen.append(torch.tanh(z) + 0.2 * torch.randn(600, 2))
    x = torch.stack(seen, 1)
    move, emit = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2))

    def model(x: Tensor) -> None:
        pyro.module("move", move)
        pyro.module("emit", emit)
        with pyro.plate("data", len(x)):
            z = torch.zeros(2)
            for t in range(6):
                z = pyro.sample(f"z_{t}", dist.Normal(move(z), 0.5).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(emit(z), 0.2).to_event(1), obs=x[:, t])

    return model, (x,), {"elbo": "mean_field", "epochs": 60}


def counts() -> Made:
    """Counts with an exposure of their own: gamma rates, whose mean and shape are learned."""
    exposure = 0.5 + 3 * torch.rand(800)
    x = dist.Poisson(dist.Gamma(2.0, 0.5).sample((800,)) * exposure).sample()

    def model(x: Tensor, exposure: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(1.0), constraint=dist.constraints.positive)
        rate = pyro.param("rate", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            mean = pyro.sample("mean", dist.Gamma(shape, rate))
            pyro.sample("x", dist.Poisson(mean * exposure), obs=x)

    return model, (x, exposure), {"elbo": "trace", "family": "spline", "epochs": 60}


def missing_columns() -> Made:
    """Factor analysis of a table in which a third of the entries is missing; nothing is imputed."""
    loading = torch.randn(2, 6)
    x = torch.randn(800, 2) @ loading + 0.4 * torch.randn(800, 6)
    seen = torch.rand(800, 6) < 2 / 3

    def model(x: Tensor, seen: Tensor) -> None:
        weights = pyro.param("loading", torch.randn(2, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.4).mask(seen).to_event(1), obs=x)

    return model, (torch.where(seen, x, 0.0), seen), {"elbo": "trace", "family": "full_normal", "epochs": 100}


MODELS = (mixture, eight_schools, topics, regression, vae, deep_markov, counts, missing_columns)


def main() -> None:
    """Make, train and measure a guide for each model."""
    parser = make_parser(__doc__, epochs=0, num_samples=1000)
    names = [made.__name__ for made in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="which of them")
    options = parser.parse_args()
    for made in MODELS:
        if made.__name__ not in options.models:
            continue
        pyro.clear_param_store()
        torch.manual_seed(options.seed)
        model, data, training = made()
        family = training.pop("family", "diagonal_normal")
        guide = pv.AmortizedGuide(model, *data, family=family, seed=options.seed)
        print(f"\n{made.__name__}: {str(made.__doc__).splitlines()[0]}\n{guide}")
        training = {"elbo": "trace", "lr": 5e-3, "lr_schedule": "cosine", **training}
        training["epochs"] = options.epochs or training["epochs"] if "epochs" in training else options.epochs or 40
        pv.fit(model, guide, data, batch_size=min(100, len(data[0])), seed=options.seed, progress=False, **training)
        report(model, guide, data, options)
        print(f"  {pv.plots.save(guide.plot(), options.pictures / f'{made.__name__}.png')}")


def report(model: Callable[..., Any], guide: Any, data: tuple[Tensor, ...], options: Any) -> None:
    """Print the bound and log p(x); of all data together if they share a latent."""
    bound = pv.bound(model, guide, *data, num_samples=100, seed=0)
    found = pv.log_marginal(model, guide, *data, num_samples=options.num_samples, seed=0)
    unit = f"nats for all {len(data[0])} data" if found.is_joint else "nats per datum"
    print(f"  ELBO {bound.mean:.3f}, log p(x) {found.mean:.3f} ± {found.mean_error:.3f} {unit}")
    if found.khat is not None:
        unsure = float((found.khat > 0.7).double().mean())
        print(f"  lost by the guide: {found.mean - bound.mean:.3f}; k-hat above 0.7: {unsure:.0%}")


if __name__ == "__main__":
    main()
