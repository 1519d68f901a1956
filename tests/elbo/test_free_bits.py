"""Free bits and capacity annealing against the closed-form KL of a linear-Gaussian pair."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae import fit
from pyro_vae.elbo import MeanField, Warmup, WeightedKL
from pyro_vae.elbo.objectives.free_bits import Capacity, FreeBits
from pyro_vae.oracles import LinearGaussian, TopDownChain
from tests.helpers.linear_gaussian import LAYOUTS as PLAIN_LAYOUTS
from tests.helpers.linear_gaussian import check_mean, exact_gradient, gradient

LAYOUTS: dict[str, dict[str, Any]] = dict(PLAIN_LAYOUTS)


def kl_per_dimension(pair: LinearGaussian, x: Tensor) -> Tensor:
    """KL of each latent dimension, `(N, L)`."""
    q = pair.q(x)
    return 0.5 * (q.mean.square() + q.variance - q.variance.log() - 1)


def exact(pair: LinearGaussian, x: Tensor, objective: Any) -> Tensor:
    """The negative objective, summed over the data."""
    kl = kl_per_dimension(pair, x).mean(0)
    if isinstance(objective, Capacity):
        penalty = objective.gamma * (kl.sum() - objective.capacity).abs()
    else:
        penalty = (kl if objective.per == "dimension" else kl.sum()).clamp_min(objective.bits).sum()
    return len(x) * penalty - pair.log_likelihood(x).sum()


OBJECTIVES = {
    "floor above one dimension": lambda **k: FreeBits(bits=1.1, **k),
    "site": lambda **k: FreeBits(bits=0.5, per="site", **k),
    "floor above the site": lambda **k: FreeBits(bits=50.0, per="site", **k),
    "capacity above": lambda **k: Capacity(capacity=5.0, gamma=2.0, **k),
    "capacity below": lambda **k: Capacity(capacity=0.1, gamma=2.0, **k),
}


def test_the_cases_are_the_interesting_ones() -> None:
    pair = LinearGaussian()
    kl = kl_per_dimension(pair, pair.simulate(6)).detach().mean(0)
    assert kl.min() < 1.1 < kl.max()
    assert 0.5 < kl.sum() < 5.0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", OBJECTIVES)
def test_value_and_gradient_have_the_exact_expectation(case: str, layout: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(6)
    objective = OBJECTIVES[case](**LAYOUTS[layout])
    draws = torch.stack([gradient(objective, pair, x) for _ in range(200)])
    check_mean(draws, exact_gradient(exact(pair, x, objective), pair))


def test_the_mean_is_taken_before_the_maximum() -> None:
    pair = LinearGaussian(latent_dim=1)
    x = pair.simulate(6)
    kl = kl_per_dimension(pair, x).detach()
    bits = float(kl.mean()) - 1e-3
    assert kl.min() < bits  # so that the maximum for each datum would differ
    torch.manual_seed(1)
    free = FreeBits(bits=bits).loss(pair.model, pair.guide, x)
    torch.manual_seed(1)
    assert float(free) == pytest.approx(float(MeanField().loss(pair.model, pair.guide, x)))


def test_without_a_floor_it_is_the_elbo_and_with_one_a_lower_bound_on_it() -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    values = []
    for objective in (MeanField(num_particles=2), FreeBits(2, bits=0.0), FreeBits(2, bits=1.0)):
        torch.manual_seed(1)
        values.append(float(objective.loss(pair.model, pair.guide, x)))
    assert values[1] == pytest.approx(values[0])
    assert values[2] > values[0]


def test_loss_and_grads_agree_with_loss() -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    for objective in (FreeBits(3), Capacity(3, capacity=1.0)):
        torch.manual_seed(1)
        loss = objective.loss(pair.model, pair.guide, x)
        torch.manual_seed(1)
        assert objective.loss_and_grads(pair.model, pair.guide, x) == loss
        assert pair.encoder.grad is not None


class Nested:
    """Six latents per datum in a plate of their own, of which a run may see a subsample, for data in a subsample."""

    loc = torch.tensor([0.0, 0.2, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)

    def __init__(self, full: int, inner: int | None = None) -> None:
        self.full, self.inner = full, inner

    def run(self, x: Tensor, guide: bool) -> None:
        data = pyro.plate("data", self.full, subsample=torch.arange(len(x)), dim=-2)
        scale = 0.5 * (1.0 + x.unsqueeze(-1))
        # the last `inner` of the six
        chosen = None if self.inner is None else torch.arange(6 - self.inner, 6)
        latent: Any = pyro.plate("latent", 6, subsample=chosen, dim=-1)
        with data, latent as index:
            loc = self.loc[index] if guide else torch.zeros(len(index), dtype=torch.float64)
            pyro.sample("z", dist.Normal(loc, scale if guide else torch.ones_like(scale)))
        if not guide:
            with data:
                pyro.sample("x", dist.Normal(torch.zeros(len(x), 1, dtype=torch.float64), 1.0), obs=x.unsqueeze(-1))

    def model(self, x: Tensor) -> None:
        self.run(x, guide=False)

    def guide(self, x: Tensor) -> None:
        self.run(x, guide=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inner", [None, 3])
def test_subsampled_and_nested_plates(inner: int | None, layout: str) -> None:
    pair, x = Nested(full=10, inner=inner), torch.tensor([0.1, 0.3], dtype=torch.float64)
    used = pair.loc if inner is None else pair.loc[-inner:]
    scale = (0.5 * (1 + x)).unsqueeze(-1)
    kl = (0.5 * (used**2 + scale**2 - 1) - scale.log()).mean(0)  # (latent,)
    repeat = 6 / len(kl)
    likelihood = 5.0 * dist.Normal(0.0, 1.0).log_prob(x).sum()
    cases = [
        (FreeBits(bits=0.6, **LAYOUTS[layout]), repeat * kl.clamp_min(0.6).sum()),
        (FreeBits(bits=9.0, per="site", **LAYOUTS[layout]), (repeat * kl.sum()).clamp_min(9.0)),
        (Capacity(capacity=2.0, gamma=3.0, **LAYOUTS[layout]), 3 * (repeat * kl.sum() - 2).abs()),
    ]
    for objective, penalty in cases:
        loss = objective.loss(pair.model, pair.guide, x)
        assert float(loss) == pytest.approx(float(10 * penalty - likelihood)), objective


def test_a_mask_takes_its_data_out() -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    mask: Any = torch.tensor([True, True, False, True])
    kl = kl_per_dimension(pair, x).detach()
    masked_kl = torch.where(mask.unsqueeze(-1), kl, 0.0).mean(0)

    def model(x: Tensor) -> None:
        with pyro.poutine.mask(mask=mask):
            pair.model(x)

    def guide(x: Tensor) -> None:
        with pyro.poutine.mask(mask=mask):
            pair.guide(x)

    torch.manual_seed(1)
    plain = MeanField().loss(model, guide, x)
    torch.manual_seed(1)
    free = FreeBits(bits=0.3).loss(model, guide, x)
    assert float(free - plain) == pytest.approx(4 * float((masked_kl.clamp_min(0.3) - masked_kl).sum()))


def test_latents_in_several_sites_and_event_dimensions() -> None:
    loc = torch.tensor([[0.0, 1.0, 0.3], [0.1, 0.2, 2.0]], dtype=torch.float64)

    def program(x: Tensor, guide: bool) -> None:
        with pyro.plate("data", len(x)):
            where = loc if guide else torch.zeros_like(loc)
            pyro.sample("a", dist.Normal(where, 1.0).to_event(2).expand([len(x)]))
            pyro.sample("b", dist.Normal(x if guide else torch.zeros_like(x), 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.tensor([0.4, 1.2], dtype=torch.float64)
    expected = (0.5 * loc**2).clamp_min(0.1).sum() + (0.5 * x**2).mean().clamp_min(0.1)
    loss = FreeBits(bits=0.1).loss(lambda x: program(x, False), lambda x: program(x, True), x)
    assert float(loss) == pytest.approx(float(2 * expected - dist.Normal(0.0, 1.0).log_prob(x).sum()))


# What is refused


@pytest.mark.parametrize("objective", [FreeBits(), Capacity()])
def test_a_site_without_a_closed_form_is_named(objective: Any) -> None:
    chain = TopDownChain()
    with pytest.raises(ValueError, match=r"site 'z1' .* no KL in closed form"):
        objective.loss(chain.model, chain.guide, torch.zeros(3))


def test_dependent_dimensions_have_no_floor_each() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), torch.eye(2, dtype=x.dtype)))
            pyro.sample("x", dist.Normal(z @ pair.weight.T, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"site 'z' .*per='site'"):
        FreeBits().loss(model, pair.exact_guide, x)
    p = dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), torch.eye(2, dtype=x.dtype))
    kl = torch.distributions.kl_divergence(pair.posterior(x), p)
    torch.manual_seed(1)
    plain = MeanField().loss(model, pair.exact_guide, x)
    torch.manual_seed(1)
    site = FreeBits(bits=30.0, per="site").loss(model, pair.exact_guide, x)
    assert float(site - plain) == pytest.approx(float(3 * (30.0 - kl.detach().mean())))


@pytest.mark.parametrize("objective", [FreeBits(), Capacity()])
def test_a_weight_around_or_inside_is_refused(objective: Any) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    with pytest.raises(ValueError, match="site 'z' has a weight"):
        WeightedKL(objective, 0.5).loss(pair.model, pair.guide, x)
    with pytest.raises(ValueError, match="site 'z' has a weight"):
        fit(pair.model, pair.guide, x, batch_size=3, elbo=objective, kl_weight=0.5, epochs=1, preflight=False)

    def scaled(x: Tensor) -> None:
        with pyro.poutine.scale(scale=0.5):
            pair.model(x)

    with pytest.raises(ValueError, match="site 'z' has a weight"):
        objective.loss(scaled, pair.guide, x)


def test_a_latent_outside_the_plate_is_refused() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"'z' .* not inside a plate"):
        FreeBits().loss(model, guide, torch.zeros(3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FreeBits(bits=-1.0), "nats >= 0"),
        (lambda: FreeBits(per="datum"), "'dimension' or 'site'"),  # type: ignore[arg-type]
        (lambda: Capacity(gamma=-1.0), "gamma"),
        (lambda: Capacity(capacity=float("nan")), "must be a finite number"),
        (lambda: FreeBits(num_particles=0), "at least 1"),
    ],
)
def test_bad_options(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# In training


def test_the_capacity_follows_a_schedule_and_the_kl_follows_the_capacity() -> None:
    torch.manual_seed(0)
    pair = LinearGaussian()
    x = pair.simulate(100)
    objective = Capacity(gamma=20.0)
    history = fit(
        pair.model,
        pair.guide,
        x,
        elbo=objective,
        epochs=150,
        batch_size=100,
        lr=0.03,
        callbacks=[objective.follow(Warmup(50, end=4.0))],
        seed=0,
    )
    assert objective.capacity == 4.0
    assert float(pair.kl(x).detach().mean()) == pytest.approx(4.0, abs=0.2)
    assert history[-1].kl == pytest.approx(4.0, abs=0.2)


def test_free_bits_keep_a_useless_dimension_alive() -> None:
    kept = {}
    options: Any = {"epochs": 150, "seed": 0, "preflight": False}
    options["optim"] = lambda params: torch.optim.SGD(params, lr=0.05)  # no momentum to run through the floor
    for bits in (0.0, 0.5):
        pair = LinearGaussian()
        x = pair.simulate(100)
        weight = pair.weight.detach()[:, :1]

        def model(x: Tensor, pair: LinearGaussian = pair, weight: Tensor = weight) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(pair.offset), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z[..., :1] @ weight.T, pair.scale).to_event(1), obs=x)

        fit(model, pair.guide, x, elbo=FreeBits(bits=bits), **options)
        kept[bits] = float(kl_per_dimension(pair, x).detach()[:, 1].mean())
    assert kept[0.0] < 0.1
    assert kept[0.5] > 0.4
