"""Missing data: the bound speaks of what is observed, and imputation is the exact conditional's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluate.imputation import Imputation
from pyro_vae.oracles import LinearGaussian
from tests.helpers.counts_pair import counts_guide, counts_model


@pytest.fixture
def oracle() -> LinearGaussian:
    return LinearGaussian(seed=1)


def incomplete(oracle: LinearGaussian, n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Complete data, the same with NaN, and the mask: each datum has something known and something missing."""
    x = oracle.simulate(n)
    mask = torch.rand(n, 4) < 0.5
    mask[:, 0], mask[:, 3] = True, False
    return x, x.masked_fill(~mask, torch.nan), mask


def joint(oracle: LinearGaussian) -> tuple[Tensor, Tensor]:
    covariance = oracle.weight @ oracle.weight.T + oracle.scale**2 * torch.eye(4).double()
    return oracle.bias.detach(), covariance.detach()


def conditional(oracle: LinearGaussian, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_o), and mean and covariance of x_m given x_o, for one datum."""
    mean, s = joint(oracle)
    o, m = known.nonzero().squeeze(1), (~known).nonzero().squeeze(1)
    gain = s[m][:, o] @ s[o][:, o].inverse()
    log_prob = dist.MultivariateNormal(mean[o], s[o][:, o]).log_prob(x[o])
    return log_prob, mean[m] + gain @ (x[o] - mean[o]), s[m][:, m] - gain @ s[o][:, m]


def wide(oracle: LinearGaussian) -> Any:
    """A guide wide enough for importance sampling, whatever is missing."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2).double(), 1.5).to_event(1))

    return guide


def test_missing_angles_have_a_circular_mean() -> None:
    """Of two angles about pi, where -3.1 and 3.1 are near each other, against quadrature."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = torch.stack([0.5 * z, torch.pi + z], -1)
            pyro.sample("x", dist.VonMises(loc, torch.tensor([20.0, 5.0])).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    known = torch.tensor([-0.2, 0.1])
    x = torch.stack([known, torch.full((2,), torch.nan)], -1)
    found = pv.impute(model, guide, x, num_samples=40_000, seed=0)
    z = torch.linspace(-6, 6, 2001).double()
    weight = (dist.VonMises(0.5 * z, 20.0).log_prob(known.double().unsqueeze(1)) - z**2 / 2).softmax(-1)
    length = torch.special.i1(torch.tensor(5.0)) / torch.special.i0(torch.tensor(5.0))
    direction = length * (weight * torch.exp(1j * (torch.pi + z))).sum(-1)
    assert found.mean is not None
    assert found.scale is not None
    away = torch.exp(1j * found.mean[:, 1]) * direction.conj() / direction.abs()
    assert (away.angle().abs() < 0.03).all()
    assert torch.allclose(found.scale[:, 1].double(), (-2 * direction.abs().log()).sqrt(), rtol=0.02)
    assert torch.equal(found.mean[:, 0], known)


def test_the_likelihood_is_that_of_the_known_values(oracle: LinearGaussian) -> None:
    x, holed, mask = incomplete(oracle)
    model, guide = pv.elbo.with_missing(oracle.model, wide(oracle))
    found = pv.log_marginal(model, guide, holed, mask, num_samples=4000, seed=0)
    exact = torch.stack([conditional(oracle, row, known)[0] for row, known in zip(x, mask, strict=True)])
    assert ((found.log_prob - exact).abs() < 4 * found.std_error).all()
    assert float(found.std_error.max()) < 0.05


def test_imputations_are_those_of_the_exact_conditional(oracle: LinearGaussian) -> None:
    x, holed, mask = incomplete(oracle)
    found = pv.impute(oracle.model, wide(oracle), holed, num_samples=4000, num_imputations=500, seed=0, memory=2**24)
    assert found.mean is not None
    assert found.scale is not None
    assert torch.equal(found.mask, mask)
    for i, known in enumerate(mask):
        _, mean, covariance = conditional(oracle, x[i], known)
        torch.testing.assert_close(found.mean[i, ~known], mean, atol=0.06, rtol=0)
        torch.testing.assert_close(found.scale[i, ~known], covariance.diagonal().sqrt(), atol=0.05, rtol=0)
        assert torch.equal(found.mean[i, known], x[i, known])
        assert not found.scale[i, known].any()
        drawn = found.draws[:, i]
        assert torch.equal(drawn[:, known], x[i, known].expand(500, -1))
        torch.testing.assert_close(drawn[:, ~known].mean(0), mean, atol=0.15, rtol=0)
        spread = torch.cov(drawn[:, ~known].T).reshape(covariance.shape)
        torch.testing.assert_close(spread, covariance, atol=0.2, rtol=0)

    # better than the marginal mean, by what the known values tell
    def error(filled: Tensor) -> float:
        return float((filled - x)[~mask].square().mean())

    assert error(found.mean) < error(oracle.bias.detach().expand_as(x))


def test_with_nothing_missing_it_is_the_pair(oracle: LinearGaussian) -> None:
    x = oracle.simulate(5)
    model, guide = pv.elbo.with_missing(oracle.model, oracle.guide)
    plain = pv.bound(oracle.model, oracle.guide, x, seed=0)
    masked = pv.bound(model, guide, x, torch.ones_like(x, dtype=torch.bool), seed=0)
    torch.testing.assert_close(masked.elbo, plain.elbo)


def test_what_a_missing_value_holds_does_not_matter(oracle: LinearGaussian) -> None:
    x, holed, mask = incomplete(oracle)
    model, guide = pv.elbo.with_missing(oracle.model, oracle.guide)
    one, two = (pv.bound(model, guide, data, mask, seed=0).elbo for data in (x, holed))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("likelihood", "elbo"),
    [("normal", "iwae"), ("bernoulli", "dreg"), ("continuous_bernoulli", "iwae"), ("poisson", "mean_field")],
)
def test_it_trains_through_fit(likelihood: str, elbo: str) -> None:
    torch.manual_seed(0)
    x = (torch.rand(40, 6) < torch.tensor([0.1, 0.9, 0.1, 0.9, 0.1, 0.9])).float()
    mask = torch.rand(40, 6) < 0.7
    vae = pv.VAE(6, latent_dim=2, hidden=(8,), likelihood=likelihood)
    model, guide = pv.elbo.with_missing(vae.model, vae.guide)
    before = pv.bound(model, guide, x, mask, seed=0).mean
    data = (x.masked_fill(~mask, 0), mask)
    history = pv.fit(model, guide, data, elbo=elbo, num_particles=3, epochs=20, batch_size=20, lr=0.02, progress=False)
    assert history[-1].train_elbo > before + 0.5
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())


def test_pairs_unlike_the_librarys(oracle: LinearGaussian) -> None:
    """Counts with an extra argument, two latents and scalar data: the missing ones follow the prior."""
    x, exposure = torch.tensor([3.0, torch.nan, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    found = pv.impute(counts_model, counts_guide, x, exposure, num_samples=20_000, num_imputations=5, seed=0)
    assert found.mean is not None
    # E[rate] exposure = exp(1/8 + 1/2) * 2 where nothing is known
    assert float(found.mean[1]) == pytest.approx(2 * 1.868, rel=0.1)
    assert found.draws.shape == (5, 3)
    assert torch.equal(found.draws[:, 1], found.draws[:, 1].round())


class Stubborn(nn.Module):
    """A pair whose network takes no leading dimension, on two plates and data of a positive support."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 3)

    def model(self, y: Tensor) -> None:
        pyro.module("stubborn", self)
        with pyro.plate("rows", len(y), dim=-2):
            z = pyro.sample("level", dist.Normal(torch.zeros(len(y), 1), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                loc = self.net(z.reshape(len(y), 1))
                pyro.sample("y", dist.LogNormal(loc, 1.0), obs=y)

    def guide(self, y: Tensor) -> None:
        with pyro.plate("rows", len(y), dim=-2):
            pyro.sample("level", dist.Normal(torch.zeros(len(y), 1), 1.0))


def test_a_pair_without_leading_dimensions_and_values_of_positive_support() -> None:
    pair = Stubborn()
    y = torch.rand(4, 3) + 0.5
    y[:, 1] = torch.nan
    with pytest.warns(UserWarning, match="particles run one at a time"):
        found = pv.impute(pair.model, pair.guide, y, num_samples=20, num_imputations=2, seed=0)
    assert found.mean is not None
    assert (found.mean > 0).all()
    assert found.draws.shape == (2, 4, 3)
    model, guide = pv.elbo.with_missing(pair.model, pair.guide)
    loss = pv.elbo.make("trace").loss_and_grads(model, guide, y, ~y.isnan())
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pair.parameters())


def test_labels_have_no_mean() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            logits = torch.stack([z, -z], -1)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    x, mask = torch.zeros(2, 3).long(), torch.tensor([[True, False, True], [False, True, True]])
    with pytest.raises(ValueError, match=r"site 'x' has a distribution without a mean, .*: use mean=False"):
        pv.impute(model, guide, x, mask=mask, num_samples=5)
    found = pv.impute(model, guide, x, mask=mask, num_samples=5, num_imputations=4, mean=False, seed=0)
    assert found.mean is None
    assert found.draws.dtype == torch.int64


def test_bad_calls(oracle: LinearGaussian) -> None:
    x, holed, mask = incomplete(oracle)
    model, guide = pv.elbo.with_missing(oracle.model, oracle.guide)
    with pytest.raises(ValueError, match="no value of x is missing"):
        pv.impute(oracle.model, oracle.guide, x)
    with pytest.raises(ValueError, match=r"got a mask of shape \(6, 4\) and type torch.float64"):
        pv.bound(model, guide, x, mask.double())
    with pytest.raises(ValueError, match=r"a mask of shape \(6, 1\)"):
        pv.bound(model, guide, x, mask[:, :1])
    with pytest.raises(ValueError, match=r"observes no site called 'y'; observed are \{'x'"):
        pv.impute(oracle.model, oracle.guide, holed, site="y")
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        pv.impute(oracle.model, oracle.guide, holed, num_samples=0)

    def together(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", oracle.prior())
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()), obs=x)

    with pytest.raises(ValueError, match="site 'x' has one density for 1 event dimension"):
        pv.impute(together, oracle.guide, holed)


def test_the_result_prints_saves_and_plots(tmp_path: Path) -> None:
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(4,))
    x = torch.rand(3, 1, 4, 4).round()
    mask = torch.rand(3, 1, 4, 4) < 0.5
    found = pv.impute(vae.model, vae.guide, x, mask=mask, num_samples=20, num_imputations=2, seed=0)
    assert isinstance(found, Imputation)
    assert "effective samples of 20" in repr(found)
    assert found.save(tmp_path / "imputation.json").is_file()
    labels = [text.get_text() for text in found.plot().axes[0].texts]
    assert labels == ["known", "mean", "draw 1", "draw 2"]
    again = pv.impute(vae.model, vae.guide, x, mask=mask, num_samples=20, num_imputations=2, seed=0)
    assert torch.equal(found.draws, again.draws)


def test_a_pair_with_a_mask_of_its_own_gets_it(oracle: LinearGaussian) -> None:
    """The result of `with_missing` is such a pair: it gives what the pair for complete data gives."""
    _, holed, mask = incomplete(oracle)
    guide = wide(oracle)
    options: dict[str, Any] = {"num_samples": 50, "num_imputations": 2, "seed": 0}
    first = pv.impute(oracle.model, guide, holed, mask=mask, **options)
    masked = pv.elbo.with_missing(oracle.model, guide)
    for found in (pv.impute(*masked, holed, mask=mask, **options), pv.impute(*masked, holed, mask, **options)):
        torch.testing.assert_close(found.mean, first.mean)
        torch.testing.assert_close(found.draws, first.draws)

    with pytest.raises(
        ValueError, match=r"a mask of booleans of the shape of x, \(6, 4\).* got a mask of shape \(6,\)"
    ):
        pv.impute(*masked, holed, torch.ones(6))

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("sum", dist.Normal(z, 1.0), obs=x.sum(-1))

    def of_one(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"no site of the shape of x, \(6, 4\), that is observed; it observes sum"):
        pv.impute(model, of_one, holed, mask=mask, num_samples=3)
