"""Objectives on the aggregate posterior: total correlation and covariance against exact values."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo import DIP, BetaTC, MeanField
from pyro_vae.oracles import LinearGaussian, TopDownChain
from tests.helpers.counts_pair import counts_guide, counts_model

LOC = torch.tensor([[-1.5, -1.0], [0.0, 0.4], [1.2, 1.0], [0.3, -0.8], [2.0, 2.2]], dtype=torch.float64)
SCALE = torch.tensor([[0.5, 0.7], [0.9, 0.4], [0.6, 0.6], [0.3, 1.0], [0.8, 0.5]], dtype=torch.float64)


class Table(nn.Module):
    """A pair whose posteriors are the rows of a table; datum n is the number n."""

    def __init__(self, full: bool = False) -> None:
        super().__init__()
        self.loc, self.log_scale, self.full = nn.Parameter(LOC.clone()), nn.Parameter(SCALE.log()), full

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("table", self)
        loc, scale = self.loc[x.long()], self.log_scale[x.long()].exp()
        with pyro.plate("data", len(x)):
            if self.full:
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale.diag_embed()))
            else:
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class TwoSites(Table):
    """The same latents as two sites, one of them of no event dimension."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            zero = torch.zeros((), dtype=torch.float64)
            a = pyro.sample("a", dist.Normal(zero, 1.0))
            b = pyro.sample("b", dist.Normal(zero.expand(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b.squeeze(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("table", self)
        loc, scale = self.loc[x.long()], self.log_scale[x.long()].exp()
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(loc[:, 0], scale[:, 0]))
            pyro.sample("b", dist.Normal(loc[:, 1:], scale[:, 1:]).to_event(1))


X = torch.arange(5, dtype=torch.float64)


def exact_total_correlation() -> float:
    """KL(q(z) || q(z_1) q(z_2)) of the mixture by quadrature."""
    axis = torch.linspace(-6, 7, 801, dtype=torch.float64)
    each = dist.Normal(LOC, SCALE).log_prob(axis.reshape(-1, 1, 1)).permute(2, 0, 1)  # (2, G, N)
    marginal = each.logsumexp(-1) - torch.tensor(5.0).log()
    joint = (each[0].unsqueeze(1) + each[1].unsqueeze(0)).logsumexp(-1) - torch.tensor(5.0).log()
    ratio = joint - marginal[0].unsqueeze(1) - marginal[1].unsqueeze(0)
    return float((joint.exp() * ratio).sum() * (axis[1] - axis[0]) ** 2)


def penalty(elbo: Any, pair: Any, x: Tensor = X) -> float:
    """What an objective takes off the ELBO, nats per datum; the draws are those of the ELBO."""
    torch.manual_seed(0)
    value = elbo.loss(pair.model, pair.guide, x)
    torch.manual_seed(0)
    plain = MeanField(num_particles=elbo.num_particles, vectorize_particles=True).loss(pair.model, pair.guide, x)
    return float((value - plain) / len(x))


@pytest.mark.parametrize("kind", [Table, TwoSites])
def test_total_correlation_is_exact_with_all_data_in_the_batch(kind: type[Table]) -> None:
    elbo = BetaTC(num_particles=20_000, beta=3.0, sampling="stratified", vectorize_particles=True)
    exact = exact_total_correlation()
    assert exact > 0.2
    assert penalty(elbo, kind()) == pytest.approx(2 * exact, rel=0.02)


def test_beta_one_is_the_elbo() -> None:
    assert penalty(BetaTC(beta=1.0, num_particles=2, vectorize_particles=True), Table()) == 0.0


def test_stratified_sampling_is_unbiased_for_the_aggregate_posterior() -> None:
    """Over all batches of 3 of the 5 data that hold datum 0, exp of the estimated log q(z_0) has mean q(z_0)."""
    z = torch.tensor([0.3, -0.2], dtype=torch.float64)
    density = dist.Normal(LOC, SCALE).to_event(1).log_prob(z).exp()
    weight = BetaTC(num_data=5, sampling="stratified")._log_weights(3, 5, LOC).exp()
    others = torch.combinations(torch.arange(1, 5), 2)
    found = torch.stack([(weight[0] * density[torch.cat([torch.tensor([0]), pick])]).sum() for pick in others])
    assert float(found.mean()) == pytest.approx(float(density.mean()), rel=1e-10)
    assert float(found.std()) > 0


def test_weighted_sampling_has_the_papers_value_and_a_gradient_without_n() -> None:
    pair, results = Table(), []
    for num_data in (5, 1000):
        elbo = BetaTC(beta=3.0, num_data=num_data)
        pair.zero_grad()
        torch.manual_seed(1)
        value = elbo.loss_and_grads(pair.model, pair.guide, X)
        grad = pair.loc.grad
        assert grad is not None
        results.append((float(value), grad.clone()))
    torch.testing.assert_close(results[0][1], results[1][1])
    # log(NM) enters once for the joint and once for each of two dimensions, for each of 5 data, times beta - 1
    assert results[1][0] - results[0][0] == pytest.approx(5 * 2 * torch.log(torch.tensor(200.0)).item(), rel=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_dip_is_the_covariance_of_the_aggregate_posterior(full: bool) -> None:
    means = torch.cov(LOC.T, correction=0)
    whole = means + SCALE.square().mean(0).diag()
    for kind, c in (("I", means), ("II", whole)):
        expected = 3 * 2 * float(c[0, 1] ** 2) + 5 * float((c.diagonal() - 1).square().sum())
        elbo: Any = DIP(off_diagonal=3.0, diagonal=5.0, kind=kind)  # type: ignore[arg-type]
        assert penalty(elbo, Table(full)) == pytest.approx(expected, rel=1e-9)


def test_dip_with_correlations_in_the_posterior() -> None:
    """A site with correlated elements beside one without: C by sampling."""
    lower = torch.tensor([[1.0, 0.0], [0.8, 0.4]], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
            pyro.sample("b", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.MultivariateNormal(x, scale_tril=lower))
            pyro.sample("b", dist.Normal(2 * x, 0.5).to_event(1))

    class Pair:
        pass

    pair: Any = Pair()
    pair.model, pair.guide = model, guide
    x = LOC
    draws = torch.cat([x + torch.randn(40_000, 5, 2).double() @ lower.T, 2 * x + torch.randn(40_000, 5, 2) / 2], -1)
    c = torch.cov(draws.flatten(0, 1).T, correction=0)
    expected = float(c.square().sum() - c.diagonal().square().sum() + (c.diagonal() - 1).square().sum())
    assert penalty(DIP(off_diagonal=1.0, diagonal=1.0), pair, x) == pytest.approx(expected, rel=0.02)


def test_particles_one_by_one_and_together_mean_the_same() -> None:
    for make in (lambda v: DIP(2, vectorize_particles=v), lambda v: BetaTC(2, num_data=9, vectorize_particles=v)):
        values = [
            torch.stack([make(v).loss(Table().model, Table().guide, X) for _ in range(80)]) for v in (True, False)
        ]
        error = float((values[0].var() + values[1].var()).div(80).sqrt())
        assert float(values[0].mean() - values[1].mean()) == pytest.approx(0, abs=4 * error)


def test_training_lowers_what_is_penalised() -> None:
    """From dependent dimensions to independent ones, where the ELBO alone keeps them."""

    def after(elbo: Any) -> float:
        pyro.clear_param_store()
        pair = Table()
        svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.Adam(p, 0.02), elbo)
        for _ in range(150):
            svi.step(X)
        found = penalty(BetaTC(2000, beta=2.0, sampling="stratified", vectorize_particles=True), pair)
        return found

    plain = after(MeanField(10))
    assert after(BetaTC(10, beta=30.0, sampling="stratified")) < 0.5 * plain
    assert after(DIP(10, off_diagonal=50.0, diagonal=1.0)) < 0.7 * plain


@pytest.mark.parametrize("elbo", [BetaTC, DIP])
def test_what_it_cannot_take(elbo: type[Any]) -> None:
    chain = TopDownChain()
    with pytest.raises(ValueError, match=r"site 'z2' has another posterior mean at other draws of \['z1', 'z2'\]"):
        elbo().loss(chain.model, chain.guide, chain.simulate(4))
    x, exposure = torch.ones(3), torch.ones(3)
    with pytest.raises(ValueError, match=r"site '(rate|mood)'"):
        elbo().loss(counts_model, counts_guide, x, exposure)
    flow = pv.VAE(4, 2, hidden=(4,), posterior="iaf")
    with pytest.raises(ValueError, match=f"site 'z' is drawn from .* and {elbo.__name__} needs Gaussian posteriors"):
        elbo().loss(flow.model, flow.guide, torch.ones(3, 4))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_data is 3, less than the batch of 5 data"):
        BetaTC(num_data=3).loss(Table().model, Table().guide, X)
    with pytest.raises(ValueError, match="correlated elements"):
        BetaTC().loss(Table(full=True).model, Table(full=True).guide, X)
    for make in (
        lambda: BetaTC(beta=-1.0),
        lambda: BetaTC(sampling="strat"),  # type: ignore[arg-type]
        lambda: DIP(kind="III"),  # type: ignore[arg-type]
        lambda: DIP(diagonal=-1.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


@pytest.mark.parametrize("name", ["beta_tc", "dip"])
def test_by_name_through_fit_with_a_warm_up(name: str) -> None:
    oracle = LinearGaussian()
    x = oracle.simulate(30)
    options: Any = {"elbo": name, "kl_weight": pv.elbo.Warmup(1), "epochs": 2, "batch_size": 10, "progress": False}
    history = pv.fit(oracle.model, oracle.guide, x, **options)
    assert history.elbo == name
    assert all(torch.isfinite(torch.tensor(history.loss)))
