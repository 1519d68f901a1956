"""The inference gaps, where they are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate.local import descent, gaps
from pyro_vae.evaluate.local.gaps import inference_gaps
from pyro_vae.evaluate.local.generalizing import generalization
from pyro_vae.evaluate.local.result import InferenceGaps
from pyro_vae.oracles import LinearGaussian


@pytest.fixture(autouse=True)
def _checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "CHECK_EVERY", 50)


def correlated(seed: int = 0) -> LinearGaussian:
    """A pair whose posterior has a correlation, which its diagonal guide cannot have."""
    pair = LinearGaussian(seed=seed)
    with torch.no_grad():
        pair.weight[:, 1] = 0.8 * pair.weight[:, 0] + 0.5 * pair.weight[:, 1]
    return pair


@pytest.fixture(scope="module")
def known() -> tuple[LinearGaussian, Tensor, InferenceGaps]:
    torch.manual_seed(0)
    pair = correlated()
    x = pair.simulate(20)
    families = ("diagonal_normal", "full_normal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "CHECK_EVERY", 50)
        return pair, x, inference_gaps(pair.model, pair.guide, x, families=families, num_samples=2000, seed=0)


def test_every_figure_against_its_closed_form(known: tuple[LinearGaussian, Tensor, InferenceGaps]) -> None:
    pair, x, found = known
    with torch.no_grad():
        log_p, elbo = pair.log_prob(x), pair.elbo(x)
        precision = torch.eye(2).to(x) + pair.weight.T @ pair.weight / pair.scale**2
    approximation = float(precision.diagonal().log().sum() - precision.logdet()) / 2
    assert approximation > 0.3
    # with full covariance the proposal is the posterior itself
    assert found.best == "full_normal"
    assert float((found.log_prob - log_p).abs().max()) < 0.005
    assert float((found.local["full_normal"] - log_p).abs().max()) < 0.02
    assert found.approximation == pytest.approx(approximation, abs=0.02)
    assert found.amortization == pytest.approx(float((log_p - elbo).mean()) - approximation, rel=0.02)
    assert found.inference == pytest.approx(float((log_p - elbo).mean()), rel=0.02)
    assert found.inference == pytest.approx(found.approximation + found.amortization)


def test_errors_are_those_of_differences_by_datum(known: tuple[LinearGaussian, Tensor, InferenceGaps]) -> None:
    pair, x, found = known
    with torch.no_grad():
        exact = float((pair.log_prob(x) - pair.elbo(x)).std()) / math.sqrt(20)
    assert found.inference_error == pytest.approx(exact, rel=0.05)
    # the approximation gap is the same for all data, so its error is that of the draws: about (2 * 0.4 / 2000 / 20)^0.5
    assert 0.0 < found.approximation_error < 0.02
    assert found.amortization_error == pytest.approx(found.inference_error, rel=0.05)


def test_what_the_result_shows(known: tuple[LinearGaussian, Tensor, InferenceGaps], tmp_path: Path) -> None:
    found = known[2]
    text = repr(found)
    for number in (found.approximation, found.amortization, found.inference, float(found.elbo.mean())):
        assert f"{number:.3f}" in text
    assert "from full_normal" in text
    assert "L[q*], diagonal_normal " in text
    assert "not converged" not in text
    figures = json.loads(found.save(tmp_path / "a.json").read_text())
    assert figures["approximation"] == found.approximation
    assert figures["data"][3]["elbo"] == float(found.elbo[3])
    header, *rows = found.save(tmp_path / "a.csv").read_text().splitlines()
    assert header == "index,log_prob,elbo_diagonal_normal,elbo_full_normal,elbo"
    assert len(rows) == len(found) == 20
    ax: Any = found.plot().axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    assert heights[0] == pytest.approx(found.approximation)
    assert heights[0] + heights[1] == pytest.approx(heights[2] + heights[3]) == pytest.approx(found.inference)
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html"):
        found.save(tmp_path / "a.txt")


def test_an_exact_guide_has_no_gap() -> None:
    pair = LinearGaussian(seed=1).at_posterior()
    found = inference_gaps(pair.model, pair.guide, pair.simulate(4), num_samples=100, seed=0)
    for gap in (found.approximation, found.amortization, found.inference):
        assert abs(gap) < 0.01


def two_latents(x: Tensor, exposure: Tensor) -> None:
    with pyro.plate("items", len(x)):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        excess = pyro.sample("excess", dist.Exponential(torch.ones((), dtype=x.dtype)))
        pyro.sample("x", dist.Poisson(exposure * (level.exp() + excess)), obs=x)


def crude(x: Tensor, exposure: Tensor) -> None:
    with pyro.plate("items", len(x)):
        pyro.sample("level", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("excess", dist.LogNormal(torch.zeros_like(x), 1.0))


def test_counts_of_two_latents_with_a_crude_guide() -> None:
    x = torch.tensor([0.0, 2.0, 6.0, 1.0], dtype=torch.float64)
    exposure = torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    found = inference_gaps(two_latents, crude, x, exposure, num_samples=4000, method="ais", seed=0)
    level = torch.linspace(-6, 6, 801, dtype=torch.float64)[:, None]
    log_excess = torch.linspace(-12, 4, 801, dtype=torch.float64)
    prior = dist.Normal(0.0, 1.0).log_prob(level) + log_excess - log_excess.exp()
    rate = level.exp() + log_excess.exp()
    area = math.log(12 / 800 * 16 / 800)
    exact = torch.stack(
        [
            (prior + dist.Poisson(e * rate).log_prob(count)).flatten().logsumexp(0) + area
            for count, e in zip(x, exposure, strict=True)
        ]
    )
    for estimate in found.estimates.values():
        assert float(((estimate.log_prob - exact) / estimate.std_error).abs().max()) < 4.5
    assert set(found.estimates) == {"guide", "diagonal_normal", "ais"}
    assert found.amortization > 3 * found.amortization_error
    assert found.approximation == pytest.approx(float((exact - found.local["diagonal_normal"]).mean()), abs=0.03)
    assert 0 < found.approximation < 0.3


def test_families_under_names_of_ones_own() -> None:
    pair = correlated()
    families: dict[str, Any] = {"mine": lambda size: pv.conditionals.FullNormal(size)}
    found = inference_gaps(pair.model, pair.guide, pair.simulate(3), families=families, num_samples=50, seed=0)
    assert found.family == "mine"
    assert abs(found.approximation) < 0.02
    with pytest.raises(ValueError, match="no local family"):
        inference_gaps(pair.model, pair.guide, pair.simulate(3), families=())


def test_other_methods_and_starts() -> None:
    pair = correlated()
    x = pair.simulate(3)
    mixed = pv.Importance(defensive=0.3)
    found = inference_gaps(pair.model, pair.guide, x, num_samples=50, method=mixed, start="prior", seed=0)
    assert set(found.estimates) == {"guide", "diagonal_normal", "importance"}
    assert found.estimates["importance"].num_samples == 50
    assert list(found.local) == ["diagonal_normal"]
    with pytest.raises(ValueError, match=r"for data that it simulates: use method='ais'"):
        inference_gaps(pair.model, pair.guide, x, method="bdmc")
    with pytest.raises(ValueError, match="start must be 'guide', 'prior' or a guide, got 'here'"):
        inference_gaps(pair.model, pair.guide, x, start="here")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'num_chains'.*method=pv\.AIS\(num_chains"):
        inference_gaps(pair.model, pair.guide, x, num_chains=3)


def test_seeds_repeat_and_leave_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "CHECK_EVERY", 5)
    pair = correlated()
    x, state = pair.simulate(3), torch.get_rng_state()
    first, second = (inference_gaps(pair.model, pair.guide, x, num_samples=20, seed=3) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.to_dicts() == second.to_dicts()


def test_ctrl_c_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = correlated()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(descent, "_adam", stop)
    with pytest.warns(UserWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        inference_gaps(pair.model, pair.guide, pair.simulate(3), num_samples=20, seed=0)


def test_training_data_against_others(known: tuple[LinearGaussian, Tensor, InferenceGaps]) -> None:
    pair, _, test = known
    near = pair.bias.detach().expand(5, -1) + 0.01 * torch.randn(5, 4, dtype=torch.float64)
    families = ("diagonal_normal", "full_normal")
    train = inference_gaps(pair.model, pair.guide, near, families=families, num_samples=100, seed=0)
    both = generalization(train, test)
    assert both.gap == pytest.approx(train.to_dict()["log_prob"] - test.to_dict()["log_prob"])
    assert both.gap > 0
    expected = math.hypot(train.to_dict()["log_prob_error"], test.to_dict()["log_prob_error"])
    assert both.gap_error == pytest.approx(expected)
    rows = {row["figure"]: row for row in both.to_dicts()}
    assert rows["inference"]["difference"] == pytest.approx(train.inference - test.inference)
    assert f"{both.gap:.3f}" in repr(both)
    alone = gaps.InferenceGaps(test.elbo, {"mine": test.elbo}, test.estimates, test.best, {})
    with pytest.raises(ValueError, match="different families"):
        generalization(train, alone)
