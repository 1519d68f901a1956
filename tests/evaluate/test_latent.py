"""Latent health: every figure against a closed form, enumeration or quadrature; any pair; the verdict."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.latent import aggregate
from pyro_vae.evaluate.latent import report as report_module
from pyro_vae.evaluate.latent.report import latent_report
from pyro_vae.evaluate.latent.result import LatentReport
from pyro_vae.models import VAE
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain

Program = Callable[..., Any]


@pytest.fixture(autouse=True)
def _data_of_another_seed() -> None:
    torch.manual_seed(1)  # data made from seed 0 would be the very noise of the draws


def normal_pair(loc: Tensor, scale: Tensor | float) -> tuple[Program, Program]:
    """A guide q(z|x_n) = N(loc_n, scale^2), loc `(N, D)`, for a standard normal prior and observations without z.

    The data are the indices n.
    """

    def model(index: Tensor) -> None:
        with pyro.plate("data", len(index)):
            pyro.sample("code", dist.Normal(loc.new_zeros(loc.shape[1]), 1.0).to_event(1))
            pyro.sample("index", dist.Normal(0.0, 1.0), obs=index.double())

    def guide(index: Tensor) -> None:
        with pyro.plate("data", len(index)):
            pyro.sample("code", dist.Normal(loc[index], scale).to_event(1))

    return model, guide


def surgery_by_quadrature(q: Any, prior: Any, width: float = 12.0, points: int = 20_001) -> tuple[float, float]:
    """I(n; z) and KL(q(z) || p(z)) of univariate q(z|x_n), batch shape `(N,)`."""
    z = torch.linspace(-width, width, points, dtype=torch.float64)
    log_q = q.log_prob(z.unsqueeze(-1))  # (points, N)
    log_mixture = log_q.logsumexp(1) - math.log(log_q.shape[1])
    information = (log_q.exp() * (log_q - log_mixture.unsqueeze(1))).nan_to_num(0.0).mean(1)
    marginal = log_mixture.exp() * (log_mixture - prior.log_prob(z))
    return tuple(float(torch.trapezoid(value, z)) for value in (information, marginal))  # type: ignore[return-value]


def assert_surgery(report: LatentReport, information: float, marginal: float, factor: float = 4.0) -> None:
    error, marginal_error = report.mutual_information_error, report.marginal_kl_error
    assert 0 < error < 0.1 * max(information, 0.1), "the test says nothing with an error as large"
    assert report.mutual_information == pytest.approx(information, abs=factor * error)
    assert report.marginal_kl == pytest.approx(marginal, abs=factor * marginal_error)
    assert report.kl == pytest.approx(report.mutual_information + report.marginal_kl, abs=1e-9)


# KL and activity


def test_kl_of_each_dimension_is_the_closed_form() -> None:
    pair = LinearGaussian(latent_dim=3)
    x = pair.simulate(40)
    with torch.no_grad():
        q = pair.q(x)
    each = 0.5 * (q.mean.square() + q.variance - q.variance.log() - 1).detach()
    report = latent_report(pair.model, pair.guide, x, num_samples=2, seed=0)
    assert [d.name for d in report.dimensions] == ["z[0]", "z[1]", "z[2]"]
    assert [d.kl for d in report.dimensions] == pytest.approx(each.mean(0).tolist())
    assert [d.kl_error for d in report.dimensions] == pytest.approx((each.std(0) / math.sqrt(40)).tolist())
    assert report.kl == pytest.approx(float(pair.kl(x).detach().mean()))
    assert report.kl_error == pytest.approx(float(pair.kl(x).detach().std()) / math.sqrt(40))
    assert [d.activity for d in report.dimensions] == pytest.approx(q.mean.var(0).tolist())


def test_the_aggregate_posterior_has_the_moments_of_the_mixture() -> None:
    pair = LinearGaussian()
    x = pair.simulate(40)
    with torch.no_grad():
        q = pair.q(x)
    mean, scale = q.mean.mean(0), (q.variance.mean(0) + q.mean.var(0, correction=0)).sqrt()
    report = latent_report(pair.model, pair.guide, x, num_samples=2, seed=0)
    assert [d.mean for d in report.dimensions] == pytest.approx(mean.tolist())
    assert [d.scale for d in report.dimensions] == pytest.approx(scale.tolist())
    expected = 0.5 * (mean.square() + scale.square() - 2 * scale.log() - 1)
    assert [d.prior_kl for d in report.dimensions] == pytest.approx(expected.tolist())


def test_activity_without_the_noise_of_the_draws() -> None:
    """A family without a formula for its mean: of two draws per datum the variance between data is far too large."""
    x = torch.randn(4000, 1, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        stretched = dist.TransformedDistribution(dist.Normal(0.5 * x, 1.0), [transforms.AffineTransform(1.0, 2.0)])
        with pyro.plate("data", len(x)):
            pyro.sample("z", stretched.to_event(1))

    report = latent_report(model, guide, x[:1000], num_samples=2, seed=0)
    (found,) = report.dimensions
    exact = float(x[:1000].var())
    assert found.activity == pytest.approx(exact, abs=0.5)  # the draws' noise would add 4 / 2
    assert found.scale == pytest.approx(math.sqrt(4 + exact), rel=0.05)
    kl = kl_divergence(dist.Normal(1 + x[:1000, 0], 2.0), dist.Normal(0.0, 3.0)).mean()
    assert found.kl == pytest.approx(float(kl), abs=0.1)


def test_activity_of_a_site_that_depends_on_another() -> None:
    chain, x = TopDownChain(), torch.linspace(-3, 3, 300, dtype=torch.float64)
    report = latent_report(chain.model, chain.guide, x, num_samples=50, seed=0)
    activity = {d.name: d.activity for d in report.dimensions}
    assert activity["z1"] == pytest.approx(float((chain.w * x).detach().var()))
    assert activity["z2"] == pytest.approx(float((chain.u * chain.w * x).detach().var()), rel=0.1)


# ELBO surgery


def test_surgery_of_one_dimension() -> None:
    pair = LinearGaussian(latent_dim=1)
    x = pair.simulate(30)
    q = pair.q(x)
    one = dist.Normal(q.mean[:, 0].detach(), q.variance[:, 0].sqrt().detach())
    expected = surgery_by_quadrature(one, dist.Normal(0.0, 1.0))
    report = latent_report(pair.model, pair.guide, x.repeat(20, 1), num_samples=10, seed=0)
    assert_surgery(report, *expected)
    assert sum(expected) == pytest.approx(float(pair.kl(x).detach().mean()), abs=1e-6)


def test_surgery_of_two_dimensions() -> None:
    pair = LinearGaussian(latent_dim=2)
    x = pair.simulate(10)
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_q = pair.q(x).log_prob(z.unsqueeze(1))
        log_mixture = log_q.logsumexp(1) - math.log(10)
        cell = (axis[1] - axis[0]) ** 2
        information = float((log_q.exp() * (log_q - log_mixture.unsqueeze(1))).mean(1).sum() * cell)
        marginal = float((log_mixture.exp() * (log_mixture - pair.prior().log_prob(z))).sum() * cell)
    assert_surgery(
        latent_report(pair.model, pair.guide, x.repeat(20, 1), num_samples=20, seed=0), information, marginal
    )


def test_surgery_of_sites_that_depend_on_each_other() -> None:
    """q(z2|z1) is the same for all data, so the two sites together tell as much as z1."""
    chain, x = TopDownChain(), torch.linspace(-3, 3, 20, dtype=torch.float64)
    q = dist.Normal(0.5 * x, torch.full_like(x, chain.t1))
    information, _ = surgery_by_quadrature(q, dist.Normal(0.0, 1.0))
    square = (x - 0.5 * x).square() + chain.t1**2
    likelihood = -math.log(chain.r * math.sqrt(2 * math.pi)) - square / (2 * chain.r**2)
    kl = float((likelihood - chain.elbo(x)).detach().mean())
    report = latent_report(chain.model, chain.guide, x.repeat(50), num_samples=10, seed=0)
    assert report.kl == pytest.approx(kl, abs=0.06)
    assert_surgery(report, information, kl - information)
    assert "can be negative" in {s.name: s.note for s in report.sites}["z1"]


def test_surgery_of_a_discrete_site_by_enumeration() -> None:
    pair = Discrete()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    repeated = x.repeat(50, 1)  # more draws of the same mixture
    log_q = (x @ pair.encoder.T).log_softmax(-1).detach()
    log_mixture = log_q.logsumexp(0) - math.log(8)
    log_p = pair.prior_logits.log_softmax(-1).detach()
    information = float((log_q.exp() * (log_q - log_mixture)).sum(1).mean())
    marginal = float((log_mixture.exp() * (log_mixture - log_p)).sum())
    report = latent_report(pair.model, pair.guide, repeated, num_samples=20, seed=0)
    assert_surgery(report, information, marginal)
    assert report.kl == pytest.approx(information + marginal)
    (found,) = report.dimensions
    assert found.name == "c"
    assert math.isnan(found.activity)
    assert found.status == "unknown"


def test_its_error_is_calibrated() -> None:
    pair = LinearGaussian(latent_dim=1)
    x = pair.simulate(20)
    q = pair.q(x)
    one = dist.Normal(q.mean[:, 0].detach(), q.variance[:, 0].sqrt().detach())
    information, marginal = surgery_by_quadrature(one, dist.Normal(0.0, 1.0))
    scores = []
    for seed in range(60):
        r = latent_report(pair.model, pair.guide, x.repeat(10, 1), num_samples=3, seed=seed)
        scores.append(
            (
                (r.mutual_information - information) / r.mutual_information_error,
                (r.marginal_kl - marginal) / r.marginal_kl_error,
            )
        )
    for side in torch.tensor(scores).T:
        assert float(side.std()) == pytest.approx(1.0, abs=0.3)
        assert abs(float(side.mean())) < 0.45


def test_a_kl_in_closed_form_takes_noise_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = LinearGaussian(latent_dim=1)
    x = pair.simulate(30)
    with_it = latent_report(pair.model, pair.guide, x, num_samples=50, seed=0)
    monkeypatch.setattr("pyro_vae.evaluate.latent.sites.kl_sites", lambda traces: {})
    without = latent_report(pair.model, pair.guide, x, num_samples=50, seed=0)
    assert with_it.mutual_information_error < without.mutual_information_error
    assert with_it.marginal_kl_error < without.marginal_kl_error
    assert without.kl == pytest.approx(with_it.kl, abs=0.1)


def test_a_guide_that_ignores_x_tells_nothing() -> None:
    model, guide = normal_pair(torch.full((20, 2), 0.7).double(), 0.5)
    report = latent_report(model, guide, torch.arange(20), seed=0)
    assert report.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert report.marginal_kl == pytest.approx(report.kl)
    assert report.mutual_information_error == pytest.approx(0.0, abs=1e-6)


def test_posteriors_far_apart_tell_all() -> None:
    model, guide = normal_pair(100 * torch.arange(20).double().unsqueeze(1), 1.0)
    report = latent_report(model, guide, torch.arange(20), seed=0)
    assert report.mutual_information == pytest.approx(math.log(20))
    assert any("give more data" in note for note in report.notes)


# Any pair


@pytest.mark.parametrize("rows", [7, 1000])
@pytest.mark.parametrize("pairs", [1, 100, 2**15])
def test_chunks_change_nothing_but_the_noise(monkeypatch: pytest.MonkeyPatch, rows: int, pairs: int) -> None:
    monkeypatch.setattr(report_module, "DATA_ROWS", rows)
    monkeypatch.setattr(aggregate, "CPU_PAIRS", pairs)
    pair = LinearGaussian(latent_dim=1)
    x = pair.simulate(17)
    q = pair.q(x)
    one = dist.Normal(q.mean[:, 0].detach(), q.variance[:, 0].sqrt().detach())
    report = latent_report(pair.model, pair.guide, x, num_samples=40, seed=0)
    information, marginal = surgery_by_quadrature(one, dist.Normal(0.0, 1.0))
    assert report.mutual_information == pytest.approx(information, abs=4 * report.mutual_information_error)
    assert report.marginal_kl == pytest.approx(marginal, abs=4 * report.marginal_kl_error)


def test_memory_changes_nothing() -> None:
    pair = LinearGaussian()
    x = pair.simulate(17)
    reports = [latent_report(pair.model, pair.guide, x, memory=memory, seed=0) for memory in (None, 1)]
    assert reports[0].mutual_information == pytest.approx(reports[1].mutual_information)


class Flat(nn.Module):
    """A linear map that takes matrices only."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2).double()

    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 2:
            raise ValueError("a matrix, please")
        return self.map(z)


def layered(net: Program) -> tuple[Program, Program]:
    """Two latent sites of two dimensions, the second drawn given the first through `net`; counts; an extra argument."""

    def model(counts: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(counts)):
            low = pyro.sample("low", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            high = pyro.sample("high", dist.Normal(low, 0.5).to_event(1))
            pyro.sample("counts", dist.Poisson(exposure * high.sum(-1).exp()), obs=counts)

    def guide(counts: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(counts)):
            loc = torch.stack([(counts / exposure + 0.1).log(), 0 * counts], -1)
            low = pyro.sample("low", dist.Normal(loc / 2, 0.6).to_event(1))
            pyro.sample("high", dist.Normal(net(low), 0.5).to_event(1))

    return model, guide


@pytest.mark.filterwarnings("ignore:the pair does not give the same densities")
def test_networks_that_take_no_leading_dimension() -> None:
    flat = Flat()
    counts, exposure = torch.arange(8).double(), torch.linspace(1, 2, 8).double()
    slow = latent_report(*layered(flat), counts, exposure, num_samples=3, seed=0)
    fast = latent_report(*layered(flat.map), counts, exposure, num_samples=3, seed=0)
    assert [d.kl for d in slow.dimensions] == pytest.approx([d.kl for d in fast.dimensions])
    assert slow.mutual_information_error == pytest.approx(fast.mutual_information_error)
    assert slow.mutual_information == pytest.approx(fast.mutual_information)
    assert [d.name for d in slow.dimensions] == ["low[0]", "low[1]", "high[0]", "high[1]"]


def test_they_are_warned_of() -> None:
    counts, exposure = torch.arange(3).double(), torch.ones(3).double()
    with pytest.warns(UserWarning, match="one at a time"):
        latent_report(*layered(Flat()), counts, exposure, num_samples=2, seed=0)


def test_a_decoder_without_a_leading_dimension_is_no_matter() -> None:
    """Only the guide runs on many draws at once."""
    pair, flat = LinearGaussian(data_dim=2), Flat()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(flat(z), 1.0).to_event(1), obs=x)

    report = latent_report(model, pair.guide, torch.randn(9, 2).double(), seed=0)
    assert report.kl > 0


def test_the_sites_kls_are_those_of_the_bound() -> None:
    counts, exposure = torch.arange(200).double() % 7, torch.linspace(1, 2, 200).double()
    model, guide = layered(nn.Linear(2, 2).double())
    report = latent_report(model, guide, counts, exposure, num_samples=50, seed=0)
    expected = bound(model, guide, counts, exposure, num_samples=50, seed=1)
    for site in report.sites:
        assert site.kl == pytest.approx(float(expected.kl_sites[site.name].mean()), rel=0.03)
    assert sum(site.kl for site in report.sites) == pytest.approx(report.kl)


@pytest.mark.parametrize("inner", [1, 3])
def test_data_at_another_dimension_with_a_plate_inside(inner: int) -> None:
    """The elements of an inner plate are dimensions like those of an event."""
    loc = torch.randn(12, inner, 2, dtype=torch.float64)

    def model(index: Tensor) -> None:
        with pyro.plate("people", len(index), dim=-2):
            pyro.sample("mood", dist.Normal(torch.zeros(1).double(), 1.0))
            with pyro.plate("answers", inner, dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    def guide(index: Tensor) -> None:
        with pyro.plate("people", len(index), dim=-2):
            pyro.sample("mood", dist.Normal(torch.zeros(1).double(), 0.9))
            with pyro.plate("answers", inner, dim=-1):
                pyro.sample("z", dist.Normal(loc[index], 0.5).to_event(1))

    report = latent_report(model, guide, torch.arange(12), num_samples=30, seed=0)
    names = [f"z[{i}, {j}]" for i in range(inner) for j in range(2)] if inner > 1 else ["z[0]", "z[1]"]
    assert [d.name for d in report.dimensions] == ["mood", *names]
    assert [d.activity for d in report.dimensions[1:]] == pytest.approx(loc.var(0).flatten().tolist())
    # the same pair with all dimensions in one event
    flat = torch.cat([torch.zeros(12, 1).double(), loc.flatten(1)], 1)
    scales = torch.tensor([0.9] + [0.5] * (2 * inner)).double()
    expected = latent_report(*normal_pair(flat, scales), torch.arange(12), num_samples=30, seed=1)
    assert report.kl == pytest.approx(expected.kl)
    error = math.hypot(report.mutual_information_error, expected.mutual_information_error)
    assert report.mutual_information == pytest.approx(expected.mutual_information, abs=4 * error)


def full_covariance(x: Tensor) -> Any:
    lower = torch.tensor([[0.8, 0.0], [0.4, 0.6]], dtype=x.dtype)
    return dist.MultivariateNormal(x, scale_tril=lower)


def test_a_full_covariance_has_a_kl_only_as_a_whole() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())

    def model(index: Tensor) -> None:
        with pyro.plate("data", len(index)):
            pyro.sample("code", prior)

    def guide(index: Tensor) -> None:
        with pyro.plate("data", len(index)):
            pyro.sample("code", full_covariance(x[index]))

    report = latent_report(model, guide, torch.arange(50), seed=0)
    exact = kl_divergence(full_covariance(x), prior)
    assert report.kl == pytest.approx(float(exact.mean()))
    assert all(math.isnan(d.kl) for d in report.dimensions)
    assert [d.activity for d in report.dimensions] == pytest.approx(x.var(0).tolist())
    assert [d.status for d in report.dimensions] == ["active", "active"]
    assert "only the whole site has a KL" in report.sites[0].note
    assert "note: code: its dimensions depend on each other" in repr(report)
    assert report.to_dicts()[0]["kl"] is None


def flow_pair(*flow: Any) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(0.5 * x, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, list(flow)) if flow else base)

    return model, guide


def test_a_flow_tells_as_much_as_its_base() -> None:
    x = torch.randn(30, 2)
    flow = transforms.affine_autoregressive(2)
    base, report = (latent_report(*flow_pair(*f), x, num_samples=30, seed=0) for f in ((), (flow,)))
    error = math.hypot(base.mutual_information_error, report.mutual_information_error)
    assert report.mutual_information == pytest.approx(base.mutual_information, abs=4 * error)
    assert report.marginal_kl == pytest.approx(report.kl - report.mutual_information)
    assert all(math.isnan(d.kl) for d in report.dimensions)


def test_a_flow_without_an_inverse_has_no_mutual_information() -> None:
    x = torch.randn(30, 2, dtype=torch.float64)
    report = latent_report(*flow_pair(transforms.planar(2).double()), x, seed=0)
    assert math.isnan(report.mutual_information)
    assert math.isfinite(report.kl)
    assert report.count("active") == 2
    assert any("no mutual information" in note for note in report.notes)
    assert report.to_dict()["mutual_information"] is None


def test_posteriors_with_supports_of_their_own() -> None:
    """Uniforms on [n, n + 1.5]: two thirds of each overlap with a neighbor by a third of its width."""
    low = torch.arange(20, dtype=torch.float64).repeat(10)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(-1.0, 40.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x, x + 1.5))

    report = latent_report(model, guide, low, num_samples=20, seed=0)
    # of each datum's width a third is shared with each neighbor; the first and the last have one neighbor
    shared = (18 * 2 + 2) / (20 * 3)
    information = math.log(20) - shared * math.log(2)
    assert_surgery(report, information, math.log(41 / 1.5) - information)


def test_a_positive_latent_with_its_own_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full_like(x, 2.0), 0.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x + 2.0, 1.5))

    x = torch.arange(10, dtype=torch.float64)
    report = latent_report(model, guide, x.repeat(50), num_samples=10, seed=0)
    (rate,) = report.dimensions
    q, p = dist.Gamma(x + 2, 1.5), dist.Gamma(2.0, 0.5)
    assert rate.kl == pytest.approx(float(kl_divergence(q, p).mean()))
    assert rate.activity == pytest.approx(float(q.mean.repeat(50).var()))
    assert math.isnan(rate.prior_kl)
    z = torch.linspace(1e-4, 60, 200_001, dtype=torch.float64)
    log_q = q.log_prob(z.unsqueeze(1))
    log_mixture = log_q.logsumexp(1) - math.log(10)
    information = torch.trapezoid((log_q.exp() * (log_q - log_mixture.unsqueeze(1))).mean(1), z)
    assert_surgery(report, float(information), rate.kl - float(information))


def test_an_autoguide_of_each_datum() -> None:
    """Parameters for each datum, an auxiliary site, and a latent computed from it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.arange(9, dtype=torch.float64).repeat(50)
    guide = AutoNormal(model, init_scale=0.5)
    guide(x)
    with torch.no_grad():
        guide.locs.rate.copy_((x + 1).log())
    report = latent_report(model, guide, x, num_samples=10, seed=0)
    q = dist.Normal((x + 1).log(), torch.full_like(x, 0.5))
    exact = kl_divergence(q, dist.Normal(0.0, 1.0))
    assert report.kl == pytest.approx(float(exact.mean()), abs=0.1)
    assert_surgery(report, *surgery_by_quadrature(q, dist.Normal(0.0, 1.0)))
    assert {d.name: d.status for d in report.dimensions} == {"rate_unconstrained": "auxiliary", "rate": "active"}
    assert all(site.note for site in report.sites)


def test_a_prior_of_each_datum_is_noted() -> None:
    x, shift = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)

    def model(x: Tensor, *, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, *, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift, 1.0))

    report = latent_report(model, guide, x, shift=shift, seed=0)
    assert report.kl == pytest.approx(0.0)
    assert report.mutual_information > 0.1
    assert any("prior differs" in note for note in report.notes)
    assert math.isnan(report.dimensions[0].prior_kl)
    same = latent_report(model, guide, x, shift=torch.zeros(9).double(), seed=0)
    assert same.notes == []


# The verdict


def health(loc: Tensor, scale: Tensor | float = 1.0) -> LatentReport:
    return latent_report(*normal_pair(loc.double(), scale), torch.arange(len(loc)), seed=0)


def test_a_healthy_space_has_no_warning() -> None:
    report = health(torch.randn(40, 4), 0.5)
    assert report.count("active") == 4
    assert report.warning == ""
    assert "WARNING" not in repr(report)


def test_collapse_of_all_dimensions() -> None:
    report = health(torch.zeros(20, 5))
    assert [d.status for d in report.dimensions] == ["collapsed"] * 5
    assert report.warning.startswith("posterior collapse")
    for remedy in ("Warmup", "FreeBits", "iwae"):
        assert remedy in report.warning
    assert "WARNING: posterior collapse" in repr(report)


def test_collapse_but_for_a_trace() -> None:
    """One dimension moves enough to be active, with next to no KL: that is collapse, too, not pruning."""
    loc = torch.zeros(40, 10)
    loc[:, 0] = 0.2 * torch.randn(40)
    report = health(loc)
    assert report.count("active") == 1
    assert 0.01 < report.kl < 0.05
    assert report.warning.startswith("posterior collapse")


def test_pruning_of_most_dimensions_is_another_thing() -> None:
    loc = torch.zeros(40, 20)
    loc[:, 3] = torch.randn(40)
    report = health(loc)
    assert report.warning.startswith("over-pruning: 1 of 20 latent dimensions in use")
    assert report.ordered[0].name == "code[3]"
    loc[:, :3] = torch.randn(40, 3)
    assert health(loc).warning == ""


def test_a_kl_that_says_nothing_about_x() -> None:
    """What free bits can lead to: each dimension pays its floor with a posterior that is the same for every datum."""
    report = health(torch.full((20, 3), 0.7))
    assert [d.status for d in report.dimensions] == ["idle"] * 3
    assert report.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert "is wasted" in report.warning


def test_a_discrete_site_can_collapse() -> None:
    def program(x: Tensor, observe: bool) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3).double()))
            if observe:
                pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x)

    report = latent_report(lambda x: program(x, True), lambda x: program(x, False), torch.randn(9).double(), seed=0)
    assert [d.status for d in report.dimensions] == ["collapsed"]


# The result


def test_it_prints_saves_and_draws(tmp_path: Path) -> None:
    loc = torch.zeros(30, 25)
    loc[:, :4] = torch.randn(30, 4)
    report = health(loc)
    text = repr(report)
    assert "latent space of 30 data, 4 draws each" in text
    assert "25 latent dimensions: 4 active, 21 collapsed" in text
    assert "... and 5 more with a KL of 0.000 in all" in text
    assert max(map(len, text.splitlines())) <= 100
    rows = list(csv.DictReader(report.save(tmp_path / "latent.csv").read_text().splitlines()))
    assert [float(row["kl"]) for row in rows] == [d.kl for d in report.dimensions]
    saved = json.loads(report.save(tmp_path / "latent.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert (saved["active"], saved["collapsed"], saved["num_data"]) == (4, 21, 30)
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html, got '\.txt'"):
        report.save(tmp_path / "latent.txt")
    figure = report.plot()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "latent.png")
    kl, activity, *histograms = figure.axes
    assert sorted((bar.get_height() for c in kl.containers for bar in c), reverse=True) == pytest.approx(
        [d.kl for d in report.ordered]
    )
    assert len(activity.collections) == 2
    assert len(histograms) == 4


@pytest.mark.parametrize("pair", [Discrete(), TopDownChain()], ids=["discrete", "chain"])
def test_pictures_of_few_dimensions(pair: Any, tmp_path: Path) -> None:
    x = torch.ones(5, 3).double() if isinstance(pair, Discrete) else torch.randn(5).double()
    latent_report(pair.model, pair.guide, x, seed=0).plot().savefig(tmp_path / "latent.png")


def test_a_vae() -> None:
    vae = VAE(6, latent_dim=3, hidden=(8,))
    x = (torch.rand(20, 6) < 0.5).float()
    report = latent_report(vae.model, vae.guide, x, seed=0)
    assert report.kl == pytest.approx(float(bound(vae.model, vae.guide, x).kl.mean()), rel=1e-5)
    assert 0 <= report.mutual_information <= math.log(20)


def test_a_seed_repeats_the_noise_and_leaves_the_generator() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    state = torch.get_rng_state()
    first, second = (latent_report(pair.model, pair.guide, x, seed=3) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert latent_report(pair.model, pair.guide, x, seed=4).to_dict() != first.to_dict()


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [({"x": torch.zeros(1, 4).double()}, "got one datum"), ({"num_samples": 1}, "at least 2, to estimate the noise")],
)
def test_too_little(change: dict[str, Any], message: str) -> None:
    pair = LinearGaussian()
    options = {"x": pair.simulate(5), "num_samples": 4, **change}
    with pytest.raises(ValueError, match=message):
        latent_report(pair.model, pair.guide, options.pop("x"), **options)


def test_a_pair_without_latents() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="no latent site"):
        latent_report(model, lambda x: None, torch.zeros(3), seed=0)


def test_a_latent_shared_by_all_data() -> None:
    def program(x: Tensor, observe: bool) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'z' of the model is not inside a plate"):
        latent_report(lambda x: program(x, True), lambda x: program(x, False), torch.zeros(3), seed=0)


def test_nan_is_located() -> None:
    loc = torch.zeros(20, 2)
    loc[13] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"datum 13 .*x\[13:14\]"):
        health(loc)
