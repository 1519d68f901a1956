"""Local posteriors: one distribution per datum, as good as its family can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import conditionals
from pyro_vae.conditionals import Conditional
from pyro_vae.evaluate.local import descent
from pyro_vae.evaluate.local.fitting import fit_local
from pyro_vae.evaluate.local.rows import LinearPerDatum, per_datum
from pyro_vae.oracles import Discrete, LinearGaussian


def correlated() -> LinearGaussian:
    """A pair whose posterior has a correlation, which its diagonal guide cannot have."""
    pair = LinearGaussian()
    with torch.no_grad():
        pair.weight[:, 1] = 0.8 * pair.weight[:, 0] + 0.5 * pair.weight[:, 1]
    return pair


@pytest.fixture(autouse=True)
def _checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems with many particles are soon done."""
    monkeypatch.setattr(descent, "CHECK_EVERY", 50)


QUICK: dict[str, Any] = {"seed": 0, "num_particles": 16}


@torch.no_grad()
def diagonal_gap(pair: LinearGaussian) -> float:
    """KL of the best diagonal normal from the posterior: its precision is the posterior precision's diagonal."""
    precision = torch.eye(2).to(pair.weight) + pair.weight.T @ pair.weight / pair.scale**2
    return float(precision.diagonal().log().sum() - precision.logdet()) / 2


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_best_diagonal_normal(start: str) -> None:
    pair = correlated()
    x = pair.simulate(5)
    local = fit_local(pair.model, pair.guide if start == "guide" else None, x, family="diagonal_normal", **QUICK)
    gap = pair.log_prob(x).detach() - local.elbo
    assert diagonal_gap(pair) > 0.3
    assert float(((gap - diagonal_gap(pair)) / local.elbo_error).abs().max()) < 4
    assert local.converged.all()
    with torch.no_grad():
        q, posterior = local.posterior.sites[0](), pair.posterior(x)
        full = dist.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        excess = torch.distributions.kl_divergence(full, posterior) - diagonal_gap(pair)
    assert float(excess.min()) > -1e-9  # nothing diagonal is better
    assert float(excess.max()) < 0.01


@pytest.mark.parametrize("family", ["full_normal", "iaf"])
def test_a_family_with_correlations_reaches_log_p(family: str) -> None:
    pair = correlated()
    x = pair.simulate(3)

    def small(size: int) -> Conditional:
        if family == "iaf":
            return conditionals.posterior(family, size, num_flows=1, hidden=(8,))
        return conditionals.posterior(family, size)

    local = fit_local(pair.model, None, x, family=small, **QUICK)
    assert float((pair.log_prob(x).detach() - local.elbo).abs().max()) < 0.03  # 0.4 for the best diagonal normal
    # weights that are p(x) or nearly so
    assert float(pv.log_marginal(pair.model, local.guide, x, num_samples=200, seed=0).ess.min()) > 190


def noise_by_datum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all data share their noise, whatever their number."""
    plain = torch.distributions.normal._standard_normal

    def shared(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        return plain((*shape[:-2], 1, shape[-1]), dtype=dtype, device=device).expand(shape)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", shared)


@pytest.mark.parametrize("family", ["diagonal_normal", "iaf"])
def test_data_fitted_together_are_fitted_apart(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = correlated()
    x = pair.simulate(3)
    noise_by_datum(monkeypatch)
    torch.manual_seed(1)
    members = {"iaf": lambda d: conditionals.posterior("iaf", d, num_flows=1, hidden=(4,))}
    chosen = members.get(family, lambda d: conditionals.posterior(family, d))(2)
    settings: dict[str, Any] = {"seed": 0, "max_steps": 50, "num_particles": 3}
    together = fit_local(pair.model, pair.guide, x, family=chosen, **settings)
    for i in range(3):
        alone = fit_local(pair.model, pair.guide, x[i : i + 1], family=chosen, **settings)
        for a, b in zip(alone.posterior.parameters(), together.posterior.parameters(), strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("memory", [None, 3 * 10**4])
def test_data_stop_one_by_one_and_in_parts(monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    if memory is None:
        monkeypatch.setattr(descent, "CPU_ROWS", 4 * 16)
    pair = correlated()
    x = pair.simulate(10)
    sizes = []

    def model(x: Tensor) -> None:
        sizes.append(len(x))
        pair.model(x)

    local = fit_local(model, None, x, family="full_normal", memory=memory, **QUICK)
    assert sizes.count(10) < 50  # at the start and the end, in no step
    assert len(local.steps.unique()) > 1
    assert int(local.converged.sum()) == 10
    torch.testing.assert_close(local.elbo, pair.log_prob(x).detach(), atol=0.02, rtol=0)
    ends = 50 * (~local.elbo_history.isnan()).sum(0)
    assert ends.tolist() == local.steps.tolist()


def test_no_steps_but_one_leave_the_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    pair = correlated()
    x = pair.simulate(4)
    local = fit_local(pair.model, pair.guide, x, family="diagonal_normal", max_steps=1, lr=1e-12, seed=0)
    q = local.posterior.sites[0]()
    torch.testing.assert_close(q.mean, pair.q(x).mean.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(q.stddev, pair.q(x).stddev.detach(), atol=1e-6, rtol=0)
    assert float(((local.elbo - pair.elbo(x).detach()) / local.elbo_error).abs().max()) < 4
    assert local.steps.tolist() == [1] * 4
    assert not local.converged.any()
    more = fit_local(pair.model, pair.guide, x, family="diagonal_normal", max_steps=20, seed=0)
    assert (more.elbo > pair.elbo(x).detach()).all()


def test_wide_and_narrow_scales_survive_the_start() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor([3.0, -2.0]), torch.tensor([0.01, 100.0])).to_event(1))

    q = fit_local(model, None, torch.zeros(2), family="full_normal", max_steps=1, lr=1e-12).posterior.sites[0]()
    torch.testing.assert_close(q.mean, torch.tensor([[3.0, -2.0]] * 2))
    torch.testing.assert_close(q.stddev, torch.tensor([[0.01, 100.0]] * 2))


def log_quadrature(log_joint: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    grid = torch.linspace(low, high, 20001, dtype=torch.float64)
    return float(log_joint(grid).logsumexp(0)) + math.log(float(grid[1] - grid[0]))


def test_a_constrained_latent() -> None:
    prior = dist.LogNormal(torch.tensor(0.3, dtype=torch.float64), 0.8)

    def model(counts: Tensor) -> None:
        with pyro.plate("people", len(counts)):
            rate = pyro.sample("rate", prior)
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    counts = torch.tensor([0.0, 3.0, 9.0], dtype=torch.float64)
    local = fit_local(model, None, counts, family="diagonal_normal", **QUICK)
    exact = torch.tensor(
        [log_quadrature(lambda r, c=c: prior.log_prob(r) + dist.Poisson(r).log_prob(c), 1e-6, 60.0) for c in counts],  # type: ignore[misc]
        dtype=torch.float64,
    )
    # the posterior of the logarithm is nearly, but not quite, normal
    assert float((exact - local.elbo).max()) < 0.02
    estimate = pv.log_marginal(model, local.guide, counts, num_samples=2000, seed=0)
    assert float(((estimate.log_prob - exact) / estimate.std_error).abs().max()) < 4


def counts_model(x: Tensor, exposure: Tensor, *, spread: float) -> None:
    """Two latent sites of unlike shapes and supports, two plates, counts, extra arguments by position and keyword."""
    with pyro.plate("items", len(x), dim=-2):
        size = pyro.sample("size", dist.Gamma(torch.tensor(2.0, dtype=x.dtype), 1.0))
        with pyro.plate("parts", x.shape[1], dim=-1):
            tilt = pyro.sample("tilt", dist.Normal(torch.zeros(1, 1, dtype=x.dtype), spread).to_event(2))
            rate = exposure.unsqueeze(-1) * size * tilt[..., 0, 0].exp()
            pyro.sample("x", dist.Poisson(rate), obs=x)


def test_two_sites_two_plates_and_extra_arguments() -> None:
    x = torch.tensor([[1.0, 4.0], [0.0, 2.0], [7.0, 5.0]], dtype=torch.float64)
    exposure = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    local = fit_local(counts_model, None, x, exposure, family="diagonal_normal", spread=0.5, **QUICK)

    size = torch.linspace(1e-3, 30, 1500, dtype=torch.float64)
    tilt = torch.linspace(-4, 4, 801, dtype=torch.float64)
    exact = []
    for row, e in zip(x, exposure, strict=True):
        log_p = dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0).log_prob(size)
        for count in row:
            given = dist.Poisson(e * size[:, None] * tilt.exp()).log_prob(count) + dist.Normal(0.0, 0.5).log_prob(tilt)
            log_p = log_p + given.logsumexp(1) + (tilt[1] - tilt[0]).log()
        exact.append(log_p.logsumexp(0) + (size[1] - size[0]).log())
    log_p = torch.stack(exact)
    gap = log_p - local.elbo
    assert float(gap.min()) > -4 * float(local.elbo_error.max())
    assert float(gap.max()) < 0.4
    estimate = pv.log_marginal(counts_model, local.guide, x, exposure, spread=0.5, num_samples=4000, seed=0)
    assert float(((estimate.log_prob - log_p) / estimate.std_error).abs().max()) < 4


class Stubborn(nn.Module):
    """A decoder that takes no leading dimensions."""

    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 2:
            raise ValueError("batches of vectors only")
        return 2 * z


def test_a_network_without_leading_dimensions() -> None:
    decoder = Stubborn()

    def model(x: Tensor) -> None:
        pyro.module("stubborn", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("w", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    x = torch.tensor([[1.0], [-2.0]])
    with pytest.warns(UserWarning, match="one at a time"):
        local = fit_local(model, None, x, family="diagonal_normal", seed=0, num_particles=4, max_steps=400)
    log_p = dist.Normal(0.0, 5**0.5).log_prob(x[:, 0])
    torch.testing.assert_close(local.elbo, log_p, atol=0.01, rtol=0)


def test_a_model_made_for_just_these_data() -> None:
    loc = torch.tensor([1.0, -2.0, 0.5, 4.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.zeros(4)
    local = fit_local(model, None, x, family="diagonal_normal", **QUICK)
    assert local.converged.all()
    torch.testing.assert_close(local.elbo, dist.Normal(loc, 2**0.5).log_prob(x), atol=0.01, rtol=0)


def test_the_model_is_left_alone() -> None:
    vae = pv.VAE(6, 2, hidden=(4,))
    vae.train()
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    state = torch.get_rng_state()
    local = fit_local(vae.model, vae.guide, torch.ones(3, 6), family="planar", max_steps=5, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert vae.training
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert all(torch.equal(p, before[name]) for name, p in vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in local.posterior.parameters())
    again = fit_local(vae.model, vae.guide, torch.ones(3, 6), family="planar", max_steps=5, seed=0)
    assert torch.equal(local.elbo, again.elbo)


def test_the_result_is_a_guide_for_every_question() -> None:
    pair = correlated()
    x = pair.simulate(4)
    local = fit_local(pair.model, None, x, family="full_normal", **QUICK)
    exact = pair.log_prob(x).detach()
    found = pv.bound(pair.model, local, x, num_samples=200, seed=0).elbo
    torch.testing.assert_close(found, exact, atol=0.4, rtol=0)  # noisy: with the KL in closed form
    table = pv.compare_elbos(
        pair.model, local.guide, x, estimators=["trace", "stl"], num_particles=[1], repeats=3, num_samples=10, seed=0
    )
    rows = {row.estimator: row for row in table.rows}
    # the family holds the posterior: there stl has no variance, trace has
    assert rows["stl"].guide_variance < 0.01 * rows["trace"].guide_variance
    some = torch.tensor([2, 0])
    estimate = pv.log_marginal(pair.model, local.guide, x[some], num_samples=50, seed=0)
    torch.testing.assert_close(estimate.log_prob, exact[some], atol=0.01, rtol=0)
    with pytest.raises(ValueError, match=r"1 of the 2 data that came, first datum 1, are not among the 4"):
        local.guide(torch.stack([x[3], x[3] + 1]))


def test_families_by_site() -> None:
    x = torch.tensor([[1.0, 4.0]])
    families: dict[str, Any] = {"size": "diagonal_normal", "tilt": lambda d: conditionals.FullNormal(d)}
    settings: dict[str, Any] = {"spread": 0.5, "max_steps": 2, "seed": 0}
    local = fit_local(counts_model, None, x, torch.ones(1), family=families, **settings)
    assert [type(s.family).__name__ for s in local.posterior] == ["DiagonalNormal", "FullNormal"]
    with pytest.raises(ValueError, match=r"sites \['size'\]; the model's latents are \['size', 'tilt'\]"):
        fit_local(counts_model, None, x, torch.ones(1), family={"size": "diagonal_normal"}, **settings)


def test_an_event_that_is_no_vector_and_a_simplex() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(weights))
            pyro.sample("x", dist.Multinomial(int(x[0].sum()), p), obs=x)

    x = torch.tensor([[2.0, 5.0, 1.0], [0.0, 4.0, 4.0]], dtype=torch.float64)
    local = fit_local(model, None, x, family="full_normal", **QUICK)
    exact = dist.DirichletMultinomial(weights, 8).log_prob(x)
    assert float((exact - local.elbo).max()) < 0.1
    estimate = pv.log_marginal(model, local.guide, x, num_samples=2000, seed=0)
    assert float(((estimate.log_prob - exact) / estimate.std_error).abs().max()) < 4


def test_ctrl_c_gives_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = correlated()
    x = pair.simulate(3)
    calls: list[None] = []
    plain = descent._adam

    def stop(*args: Any) -> None:
        plain(*args)
        calls.append(None)
        if len(calls) == 150:
            raise KeyboardInterrupt

    monkeypatch.setattr(descent, "_adam", stop)
    with pytest.warns(UserWarning, match="interrupted: 0 of 3 local posteriors"):
        local = fit_local(pair.model, None, x, family="diagonal_normal", seed=0)
    assert local.interrupted
    assert local.steps.tolist() == [100] * 3
    assert float((pair.log_prob(x).detach() - local.elbo).max()) < diagonal_gap(pair) + 0.2


def test_what_the_result_shows(tmp_path: Any) -> None:
    pair = correlated()
    local = fit_local(pair.model, None, pair.simulate(3), family="diagonal_normal", seed=0, max_steps=250)
    assert "DiagonalNormal" in repr(local)
    assert f"{local.mean:.3f}" in repr(local)
    assert (tmp_path / "a.csv").with_suffix(".csv") == local.save(tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 4
    assert '"num_data": 3' in local.save(tmp_path / "a.json").read_text()
    assert len(local.plot().axes[0].lines) == 3 + 2
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html"):
        local.save(tmp_path / "a.txt")


class Scaled(Conditional):
    """A family with a weight outside linear layers."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def distribution(self, h: Tensor) -> Any:
        return dist.Normal(h, self.log_scale.exp()).to_event(1)


def masked(x: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > 0):  # type: ignore[call-overload]
        pyro.sample("z", dist.Normal(x, 1.0))


def observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def test_mistakes() -> None:
    pair = correlated()
    x = pair.simulate(3)
    discrete = Discrete()
    with pytest.raises(ValueError, match="'c' is discrete"):
        fit_local(discrete.model, None, torch.ones(2, 3, dtype=torch.float64), family="diagonal_normal")
    with pytest.raises(ValueError, match="'z' is masked"):
        fit_local(masked, None, torch.tensor([1.0, -1.0]), family="diagonal_normal")
    with pytest.raises(ValueError, match="no latent site"):
        fit_local(observed, None, torch.ones(2), family="diagonal_normal")
    with pytest.raises(ValueError, match="Scaled has the parameter 'log_scale'"):
        fit_local(pair.model, None, x, family=Scaled)
    with pytest.raises(ValueError, match=r"family of the site 'z' must give .* \(2,\), got \(3,\)"):
        fit_local(pair.model, None, x, family=conditionals.DiagonalNormal(3))
    with pytest.raises(ValueError, match="does not sample the site 'z'"):
        fit_local(pair.model, lambda x: None, x, family="diagonal_normal")
    with pytest.raises(TypeError, match="must be a Pyro program, or None for the prior, got 3"):
        fit_local(pair.model, 3, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"fit_local\(\) got the keyword 'max_step'.*did you mean 'max_steps'"):
        fit_local(pair.model, None, x, max_step=3)
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        fit_local(pair.model, None, x, family="diagonal_normal", num_particles=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        fit_local(pair.model, None, x, family="diagonal_normal", lr=0.0)
    x[1] = math.inf
    with pytest.raises(ValueError, match=r"first that of datum 1.*x\[1:2\]"), pyro.validation_enabled(False):
        fit_local(pair.model, None, x, family="diagonal_normal")


def test_a_linear_layer_per_datum() -> None:
    layer = nn.Linear(3, 2)
    batched = LinearPerDatum(layer, (4, 5))
    h = torch.randn(6, 4, 5, 3)
    torch.testing.assert_close(batched(h), layer(h))
    torch.testing.assert_close(batched(h[0]), layer(h[0]))
    with torch.no_grad():
        batched.weight[1, 2] *= 2
    changed = (batched(h) - layer(h)).abs().sum((0, -1)) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("name", sorted(conditionals.POSTERIORS))
def test_families_per_datum_begin_alike(name: str) -> None:
    family = conditionals.posterior(name, 3)
    h = torch.randn(4, *family.param_shape) / 3
    torch.manual_seed(0)
    plain = family(h).expand((5, 4)).sample()
    torch.manual_seed(0)
    local = per_datum(family, 4)
    torch.testing.assert_close(local(h).expand((5, 4)).sample(), plain)
    torch.testing.assert_close(local(h).log_prob(plain), family(h).log_prob(plain))
