"""The true ELBO of any pair."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.evaluate import Importance, log_marginal
from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.generate import reconstruct, sample
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain
from pyro_vae.pair.networks import modules_of


def test_kl_is_exact_per_datum() -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    result = bound(pair.model, pair.guide, x)
    torch.testing.assert_close(result.kl, pair.kl(x).detach())
    torch.testing.assert_close(result.kl_sites, {"z": result.kl})


def test_log_likelihood_is_unbiased_per_datum() -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    draws = torch.stack([bound(pair.model, pair.guide, x).log_likelihood for _ in range(300)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert float(((draws.mean(0) - pair.log_likelihood(x).detach()) / error).abs().max()) < 4


def test_particles_shrink_the_noise() -> None:
    pair = LinearGaussian()
    x = pair.simulate(200)
    exact = pair.elbo(x).detach()
    few, many = ((bound(pair.model, pair.guide, x, num_samples=k).elbo - exact).std() for k in (1, 25))
    assert float(few / many) == pytest.approx(5.0, rel=0.2)


def test_the_terms_add_up() -> None:
    pair = LinearGaussian()
    result = bound(pair.model, pair.guide, pair.simulate(7))
    torch.testing.assert_close(result.elbo, result.log_likelihood - result.kl, rtol=0, atol=0)
    assert result.to_dict()["elbo"] == result.mean == pytest.approx(float(result.elbo.mean()))


def test_a_discrete_latent() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    draws = torch.cat([bound(pair.model, pair.guide, x).elbo for _ in range(500)])
    error = float(draws.std()) / math.sqrt(len(draws))
    assert float(draws.mean()) == pytest.approx(pair.elbo(x).item(), abs=4 * error)


def test_a_guide_ordered_unlike_the_model() -> None:
    chain, x = TopDownChain(), torch.tensor([1.5], dtype=torch.float64).repeat(5000)
    result = bound(chain.model, chain.guide, x, memory=2**30)
    error = result.to_dict()["elbo_sampling_error"]
    assert result.mean == pytest.approx(chain.elbo(x[:1]).item(), abs=4 * error)
    assert list(result.kl_sites) == ["z1", "z2"]


def test_chunks_of_any_size_cover_the_data() -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    runs = []

    def model(x: Tensor) -> None:
        runs.append(len(x))
        pair.model(x)

    for memory in (1, 1000, 2000, 10**6):
        torch.testing.assert_close(bound(model, pair.guide, x, memory=memory).kl, pair.kl(x).detach())
    assert {1, 7} < set(runs)


def test_rows_of_other_arguments_go_with_their_data() -> None:
    def model(x: Tensor, loc: Tensor, *, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x: Tensor, loc: Tensor, *, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x, loc, scale = torch.zeros(5), torch.arange(5.0), torch.full((5,), 2.0)
    result = bound(model, guide, x, loc, scale=scale, memory=1)
    torch.testing.assert_close(result.kl, 0.5 * loc.square())


def test_a_seed_repeats_the_noise_and_leaves_the_generator() -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    state = torch.get_rng_state()
    assert torch.equal(bound(pair.model, pair.guide, x, seed=3).elbo, bound(pair.model, pair.guide, x, seed=3).elbo)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradients_are_kept() -> None:
    pair = LinearGaussian()
    assert not bound(pair.model, pair.guide, pair.simulate(3)).elbo.requires_grad


def test_global_latents_have_one_bound_for_all_data() -> None:
    def model(x: Tensor, observe: bool = True) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if observe:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    result = bound(model, lambda x: model(x, observe=False), torch.zeros(3), num_samples=4000, seed=0)
    assert result.is_joint
    assert result.elbo.shape == (1,)
    exact = -3 * (0.5 * math.log(2 * math.pi) + 0.5)  # E[log p(x|mu)] under the prior, and no KL
    assert abs(float(result.elbo) - exact) < 0.15


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (torch.zeros(3, 4), {"num_samples": 0}, ValueError, "must be at least 1, got 0"),
        (torch.zeros(3, 4), {"memory": 0}, ValueError, "memory must be a positive number of bytes, got 0"),
        (torch.zeros(0, 4), {}, ValueError, r"at least one row, got shape \(0, 4\)"),
        (torch.tensor(1.0), {}, ValueError, r"at least one row, got shape \(\)"),
        (torch.zeros(3, 4), {"num_sample": 2}, TypeError, "keyword 'num_sample'.*did you mean 'num_samples'"),
        ([1.0], {}, TypeError, r"must be the tensor of data, \(N, ...\), got list"),
    ],
)
def test_bad_arguments(x: object, options: dict[str, int], error: type[Exception], message: str) -> None:
    pair = LinearGaussian()
    with pytest.raises(error, match=message):
        bound(pair.model, pair.guide, x, **options)


# The networks behind a pair


def test_networks_of_one_name_are_both_found() -> None:
    def make(net: nn.Module) -> object:
        return lambda x: net(x)

    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert list(modules_of(make(a), make(b)).values()) == [a, b]  # type: ignore[arg-type]


def test_networks_are_found_through_methods_partials_and_containers() -> None:
    class Holder:
        def __init__(self) -> None:
            self.nets = {"first": [nn.Linear(1, 1)]}

        def program(self, x: Tensor) -> None:
            self.nets["first"][0](x)

    holder = Holder()
    wrapped = pyro.poutine.scale(holder.program, scale=2.0)
    assert list(modules_of(wrapped).values()) == holder.nets["first"]


# Generation


def test_reconstruct_gives_the_mean_at_a_draw() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    torch.manual_seed(1)
    again = reconstruct(pair.model, pair.guide, x)
    torch.manual_seed(1)
    z = pair.q(x).rsample()
    torch.testing.assert_close(again, (z @ pair.weight.T + pair.bias).detach())


def test_sample_has_the_moments_of_the_model() -> None:
    pair = LinearGaussian()
    x = sample(pair.model, 20_000)
    expected = (pair.weight @ pair.weight.T).detach() + pair.scale**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0.1, atol=0.03)
    torch.testing.assert_close(x.mean(0), pair.bias.detach(), rtol=0, atol=0.03)


def test_deterministic_sites_are_not_what_is_generated() -> None:
    pair = LinearGaussian()

    def noting(x: Tensor) -> None:
        with pyro.plate("note", len(x)):
            pyro.deterministic("a", torch.zeros(len(x)))
        pair.model(x)

    x = pair.simulate(5)
    assert sample(noting, x).shape == reconstruct(noting, pair.guide, x).shape == x.shape


def test_an_unknown_site_to_generate() -> None:
    pair = LinearGaussian()
    with pytest.raises(ValueError, match="site 'y' is not observed by the model; observed are x"):
        reconstruct(pair.model, pair.guide, pair.simulate(2), site="y")


def test_pyros_own_continuous_bernoulli_at_any_logit() -> None:
    """Against integrals: of the latent's KL to the uniform prior, of the log-density, and of p(x) over z."""
    logits = torch.tensor([0.01, -30.0, -100.0], dtype=torch.float64)
    x = torch.tensor([[0.0, 0.0], [0.01, 0.2], [0.001, 0.0]], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ContinuousBernoulli(logits=x.new_zeros(())))
            h = 60 * (z.unsqueeze(-1) - 1).expand(*z.shape, 2)
            pyro.sample("x", dist.ContinuousBernoulli(logits=h).to_event(1).mask(True), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.ContinuousBernoulli(logits=logits))

    def log_density(h: Tensor, x: Tensor) -> Tensor:  # h exp(h x) / (exp(h) - 1), for any sign of h
        small = h.abs() < 1e-9
        safe = torch.where(small, 1.0, h)
        norm = torch.log(safe.abs()) - torch.log(-torch.expm1(-safe.abs()))
        return torch.where(small, 0.0, norm + h * x - h.clamp_min(0))

    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64).unsqueeze(-1)
    q = log_density(logits, grid)
    of_x = sum((log_density(60 * (grid - 1), x[:, i]) for i in range(2)), start=torch.zeros(()))
    found = bound(model, guide, x, num_samples=2000, seed=0)
    torch.testing.assert_close(found.kl, torch.trapezoid(q.exp() * q, grid, dim=0), rtol=1e-5, atol=1e-8)
    exact = torch.trapezoid(q.exp() * of_x, grid, dim=0)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=0.1)
    log_p = torch.trapezoid(of_x.exp(), grid, dim=0).log()
    result = log_marginal(model, None, x, method="prior", num_samples=20_000, seed=0)
    assert bool(((result.log_prob - log_p).abs() < 4.5 * result.std_error).all())
    wide = log_marginal(model, guide, x, method=Importance(defensive=0.5), num_samples=20_000, seed=0)
    assert bool(((wide.log_prob - log_p).abs() < 4.5 * wide.std_error).all())
