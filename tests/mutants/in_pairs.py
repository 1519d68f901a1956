"""Faults in right pairs, as they are made by hand: each beside the pair that it should have been."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import elbo as elbos

__all__ = ["PAIR_MUTANTS", "Made", "PairMutant"]

N, D, Z, CLASSES = 512, 6, 2, 3
WEIGHT = torch.tensor([[1.0, 0.6, -0.4, 0.2, 0.0, 0.5], [0.3, -0.8, 0.5, 0.4, 0.9, -0.2]])  # (Z, D), not orthogonal
NOISE = 0.7
COVARIANCE = (torch.eye(Z) + WEIGHT @ WEIGHT.T / NOISE**2).inverse()


@dataclass
class Made:
    """A pair, its data, and how it is trained."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    x: Tensor
    elbo: Any = "trace"

    def objective(self) -> Any:
        return elbos.make(self.elbo)

    def outcome(self) -> Any:
        """The loss of ten data under one seed, with the size of each gradient; or the error."""
        pyro.clear_param_store()
        torch.manual_seed(0)
        x = self.x[:10].clone()
        try:
            loss = self.objective().loss_and_grads(self.model, self.guide, x)
        except Exception as error:
            return str(error)
        store = pyro.get_param_store()
        slopes = {name: None if p.grad is None else float(p.grad.norm()) for name, p in store.named_parameters()}
        pyro.clear_param_store()
        return float(loss), slopes


@dataclass(frozen=True)
class PairMutant:
    """One fault: how the right and the wrong pair are made."""

    name: str
    right: Callable[[], Made]
    wrong: Callable[[], Made]


def standard(x: Tensor) -> Any:
    return dist.Normal(x.new_zeros(Z), 1.0).to_event(1)


def simulated() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(N, Z, generator=generator)
    return z @ WEIGHT + NOISE * torch.randn(N, D, generator=generator)


def normal(h: Tensor) -> Any:
    return dist.Normal(h, NOISE).to_event(1)


def full(h: Tensor) -> Any:
    """A Gaussian of any covariance, which has the posterior among them."""
    scale = torch.diag_embed(h[..., Z : 2 * Z].exp())
    lower = torch.zeros_like(scale)
    lower[..., 1, 0] = h[..., 2 * Z]
    return dist.MultivariateNormal(h[..., :Z], scale_tril=scale + lower)


def gaussian(
    *,
    learned: bool = False,
    prior: Callable[[Tensor], Any] = standard,
    likelihood: Callable[[Tensor], Any] = normal,
    posterior: Callable[[Tensor], Any] = full,
    encode: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x),
    around: Callable[[], Any] = nullcontext,
    around_x: Callable[[], Any] = nullcontext,
    observed: Callable[[Tensor], Tensor | None] = lambda x: x,
    plates: tuple[Any, Any] = (None, None),
    names: tuple[str, str] = ("encode", "decode"),
    register: bool = True,
    more: tuple[Any, Any] = (None, None),
    x: Tensor | None = None,
) -> Made:
    """A linear model of data, known or learned, with an encoder; of each part a fault may stand in the place."""
    torch.manual_seed(2)
    encoder, decoder = nn.Linear(D, 2 * Z + 1), nn.Linear(Z, D)
    if not learned:
        decoder = nn.Linear(Z, D).requires_grad_(False)
        decoder.weight.copy_(WEIGHT.T)
        decoder.bias.zero_()
    of_model, of_guide = (p or (lambda x: pyro.plate("data", len(x))) for p in plates)

    def model(x: Tensor) -> None:
        if learned and register:
            pyro.module(names[1], decoder)
        with of_model(x):
            with around():
                z = pyro.sample("z", prior(x))
            if more[0]:
                more[0](x, z)
            with around_x():
                pyro.sample("x", likelihood(decoder(z)), obs=observed(x))

    def guide(x: Tensor) -> None:
        pyro.module(names[0], encoder)
        with of_guide(x):
            with around():
                z = pyro.sample("z", posterior(encode(encoder, x)))
            if more[1]:
                more[1](x, z)

    return Made(model, guide, simulated() if x is None else x)


def binary() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(CLASSES, 12, generator=generator)
    c = torch.randint(CLASSES, (N,), generator=generator)
    return (torch.rand(N, 12, generator=generator) < probs[c]).float().reshape(N, 3, 4)


def bernoulli(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits).to_event(2)


def mixture(
    *,
    likelihood: Callable[[Tensor], Any] = bernoulli,
    classes: Callable[[Tensor], Any] = lambda h: dist.Categorical(logits=h),
    observed: Callable[[Tensor], Tensor] = lambda x: x,
    elbo: Any = None,
) -> Made:
    """A mixture of independent bits, images of 3 x 4, whose posterior is of the guide's family."""
    torch.manual_seed(4)
    encoder, decoder = nn.Linear(12, CLASSES), nn.Embedding(CLASSES, 12)
    weights = nn.Parameter(torch.zeros(CLASSES))

    def model(x: Tensor) -> None:
        pyro.module("decode", decoder)
        shares = pyro.param("shares", weights)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=shares))
            pyro.sample("x", likelihood(decoder(c).unflatten(-1, (3, 4))), obs=observed(x))

    def guide(x: Tensor) -> None:
        pyro.module("encode", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("c", classes(encoder(x.flatten(1))))

    return Made(model, guide, binary(), {"c": "enum"} if elbo is None else elbo)


def shared(total: int | None) -> Made:
    """A mean that all data share, in minibatches: `total` data, or as many as the batch has."""
    x = 1.5 + torch.randn(N, generator=torch.Generator().manual_seed(5))

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", total or len(x), subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = pyro.param("loc", torch.zeros(())), pyro.param("log_scale", torch.tensor(-1.0))
        pyro.sample("mean", dist.Normal(loc, scale.exp()))

    return Made(model, guide, x)


def by_a_variance() -> Made:
    made = gaussian()
    decoder = nn.Linear(Z, D).requires_grad_(False)
    decoder.weight.copy_(WEIGHT.T)
    decoder.bias.zero_()
    log_var = 2 * torch.tensor(NOISE).log()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), log_var.exp()).to_event(1), obs=x)

    made.model = model
    return made


def new_network_each_time() -> Made:
    made, guide = gaussian(learned=True), gaussian().guide

    def model(x: Tensor) -> None:
        net = nn.Linear(Z, D)
        pyro.module("decode", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(x))
            pyro.sample("x", normal(net(z)), obs=x)

    made.model, made.guide = model, guide
    return made


def keeps_its_graph() -> Made:
    state = {"mean": torch.zeros(())}

    def encode(net: nn.Module, x: Tensor) -> Tensor:
        h = net(x)
        state["mean"] = 0.9 * state["mean"] + 0.1 * h.mean()
        return h - state["mean"]

    return gaussian(encode=encode)


def swapped() -> Made:
    made = gaussian()
    made.model, made.guide = made.guide, made.model
    return made


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    x -= x.mean()
    result: Tensor = net(x)
    return result


def spoiled() -> Tensor:
    x = simulated()
    x[3, 2] = torch.nan
    return x


def counted(how: float) -> Callable[[], Any]:
    return lambda: poutine.scale(scale=how)


def another(name: str) -> Callable[[Tensor, Tensor], None]:
    def draw(x: Tensor, z: Tensor) -> None:
        pyro.sample(name, dist.Normal(0.0, 1.0))

    return draw


def kl_again(x: Tensor, z: Tensor) -> None:
    pyro.factor("kl", -z.square().sum(-1) / 2, has_rsample=True)


known, learned, bits = gaussian, partial(gaussian, learned=True), mixture


def of(name: str, right: Callable[[], Made], /, **fault: Any) -> PairMutant:
    return PairMutant(name, right, partial(right, **fault))


def plate_of(size: int | None = None, **options: Any) -> Callable[[Tensor], Any]:
    return lambda x: pyro.plate("data", size or len(x), **options)


COUNTED = [
    of("a KL for each entry of a mask", learned, around=counted(float(D))),
    of("a likelihood that is a mean over pixels", learned, around_x=counted(1 / D)),
    of("the batch scaled up twice", known, around_x=counted(4.0)),
    of("a KL as a factor of the guide, beside its own", known, more=(None, kl_again)),
    of("a log-likelihood that counts nothing", known, around_x=lambda: poutine.mask(mask=False)),
    PairMutant("a plate of the batch's size around minibatches", partial(shared, N), partial(shared, None)),
]
SCALES = [
    PairMutant("a variance taken for a deviation, by its name", known, by_a_variance),
    of(
        "a variance taken for a deviation, under no name",
        known,
        likelihood=lambda h: dist.Normal(h, NOISE**2).to_event(1),
    ),
    of(
        "a log-scale given as the scale",
        known,
        posterior=lambda h: dist.Normal(h[..., :Z], h[..., Z : 2 * Z]).to_event(1),
    ),
    of("a prior too narrow", known, prior=lambda x: dist.Normal(x.new_zeros(Z), 0.5).to_event(1)),
    of("a prior in another place", known, prior=lambda x: dist.Normal(x.new_full((Z,), 1.0), 1.0).to_event(1)),
    of("logits given as probabilities", bits, likelihood=lambda h: dist.Bernoulli(h).to_event(2)),
    of("probabilities given as logits", bits, likelihood=lambda h: dist.Bernoulli(logits=h.sigmoid()).to_event(2)),
    of("bytes under a unit scale", known, x=(simulated() * 40 + 128).round().clamp(0, 255)),
    of("a value that is no number", known, x=spoiled()),
    of(
        "a prior on the positive numbers alone",
        known,
        prior=lambda x: dist.HalfNormal(x.new_ones(Z)).to_event(1),
    ),
]
SITES = [
    of("no to_event at the latent", known, prior=lambda x: dist.Normal(x.new_zeros(Z), 1.0)),
    of("no to_event at the observation", known, likelihood=lambda h: dist.Normal(h, NOISE)),
    of("a latent that the guide does not draw", known, more=(another("u"), None)),
    of("a latent that the model does not draw", known, more=(None, another("u"))),
    of("the data not passed", known, observed=lambda x: None),
    of("the plate in another dimension", known, plates=(plate_of(dim=-2), None)),
    of("no plate in the guide", known, plates=(None, lambda x: nullcontext())),
    of("a plate of fixed size", known, plates=(plate_of(8), plate_of(8))),
    of("images that are transposed", bits, observed=lambda x: x.transpose(-1, -2)),
    PairMutant("model and guide swapped", known, swapped),
    of(
        "a relaxed guide of a discrete latent",
        bits,
        classes=lambda h: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=h),
        elbo="trace",
    ),
]
NETWORKS = [
    of("a guide that sees a detached encoder", known, encode=lambda net, x: net(x).detach()),
    of("a decoder that is not registered", learned, register=False),
    of("two networks of one name", learned, names=("net", "net")),
    of(
        "weights tied by mistake: one output for mean and log-scale",
        known,
        encode=lambda net, x: net(x)[..., [0, 1, 0, 1, 4]],
    ),
    of("a guide that does not see the data", known, encode=lambda net, x: net(torch.zeros_like(x))),
    of("the encoder's mean over the batch", known, encode=lambda net, x: net(x).mean(0).expand(len(x), -1)),
    of("the rows of other data", known, encode=lambda net, x: net(x.roll(1, 0))),
    of("dropout at evaluation", known, encode=lambda net, x: net(nn.functional.dropout(x, 0.5, training=True))),
    of(
        "a scale with a floor that is too high",
        known,
        posterior=lambda h: dist.Normal(h[..., :Z], h[..., Z : 2 * Z].exp().clamp(min=1.0)).to_event(1),
    ),
    of("a softmax over the batch", bits, classes=lambda h: dist.Categorical(probs=h.softmax(0))),
    of("data changed in place", known, encode=in_place),
    of("an output that is always off", known, encode=lambda net, x: (net(x) - 100).relu()),
    PairMutant("a network that each run makes anew", learned, new_network_each_time),
    PairMutant("a graph that is kept from step to step", known, keeps_its_graph),
]
PAIR_MUTANTS = [*COUNTED, *SCALES, *SITES, *NETWORKS]
