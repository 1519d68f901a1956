"""Importance sampling's proposals, adaptive sampling, and what a result says of itself."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.compilation import gradients as compiled
from pyro_vae.evaluate import AIS, BDMC, Importance, log_marginal
from pyro_vae.evaluate.marginal import importance_sampling as importance
from pyro_vae.evaluate.marginal.likelihood import LogMarginal
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain
from tests.helpers.counts_pair import counts_guide, counts_log_prob, counts_model

CALLS = torch.tensor([0.0, 1.0, 3.0, 10.0], dtype=torch.float64)
EXPOSURE = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)


def z_scores(result: LogMarginal, exact: Tensor) -> Tensor:
    return (result.log_prob.double() - exact.detach()) / result.std_error.double()


def narrow_guide(pair: LinearGaussian) -> Callable[[Tensor], None]:
    """The posterior's means with a quarter of its widths."""

    def guide(x: Tensor) -> None:
        p = pair.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p.mean, p.variance.sqrt() / 4).to_event(1))

    return guide


# Proposals


def test_the_prior_needs_no_guide() -> None:
    pair = LinearGaussian()
    x = pair.simulate(30)
    result = log_marginal(pair.model, None, x, method="prior", num_samples=2000, seed=0)
    assert result.method == "prior"
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4


def test_the_prior_of_several_sites_and_of_discrete_ones() -> None:
    chain, x = TopDownChain(), torch.randn(10, dtype=torch.float64)
    result = log_marginal(chain.model, None, x, method="prior", num_samples=5000, seed=0)
    assert float(z_scores(result, chain.log_prob(x)).abs().max()) < 4
    pair, b = Discrete(), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    result = log_marginal(pair.model, None, b, method="prior", num_samples=3000, seed=0)
    assert float(z_scores(result, pair.log_prob(b)).abs().max()) < 4


@pytest.mark.parametrize("method", ["importance", Importance(defensive=0.3), "prior"])
def test_counts_of_two_latents_against_quadrature(method: str | Importance) -> None:
    result = log_marginal(counts_model, counts_guide, CALLS, EXPOSURE, method=method, num_samples=20_000, seed=0)
    scores = z_scores(result, counts_log_prob(CALLS, EXPOSURE))
    assert float(scores.abs().max()) < 4
    assert float(result.std_error.max()) < 0.05


@pytest.mark.parametrize("num_samples", [2, 5])
def test_the_mixture_is_unbiased_for_few_samples(num_samples: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(1).expand(20_000, 4)  # as many repeats
    ratio = log_marginal(
        pair.model, narrow_guide(pair), x, method=Importance(defensive=0.4), num_samples=num_samples, seed=0
    ).log_prob
    ratio = (ratio - pair.log_prob(x).detach()).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / math.sqrt(len(x)))


def test_the_mixture_cures_a_guide_that_is_too_narrow() -> None:
    pair = LinearGaussian()
    x = pair.simulate(40)
    guide = narrow_guide(pair)
    plain = log_marginal(pair.model, guide, x, num_samples=1000, seed=0)
    mixed = log_marginal(pair.model, guide, x, method=Importance(defensive=0.5), num_samples=1000, seed=0)
    assert plain.khat is not None
    assert float(plain.khat.median()) > 0.7
    assert len(plain.unreliable) > 30
    assert len(mixed.unreliable) < 4
    assert float(z_scores(mixed, pair.log_prob(x)).abs().max()) < 4
    # no weight is above p(x|z) / a, so none is above the largest likelihood over a
    most = -4 * math.log(pair.scale * math.sqrt(2 * math.pi)) - math.log(0.5)
    one = log_marginal(pair.model, guide, x, method=Importance(defensive=0.5), num_samples=2, seed=0)
    assert float(one.log_prob.max()) < most


def test_a_mixture_runs_where_particles_do_not_vectorize() -> None:
    pair = LinearGaussian()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            assert z.dim() == 2
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    x = pair.simulate(20)
    with pytest.warns(UserWarning, match="one at a time"):
        result = log_marginal(model, narrow_guide(pair), x, method=Importance(defensive=0.5), num_samples=300, seed=0)
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4
    with pytest.warns(UserWarning, match="one at a time"):
        result = log_marginal(model, None, x, method="prior", num_samples=300, seed=0)
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4.5


def test_a_mixture_needs_the_density_of_the_guide() -> None:
    pair = LinearGaussian()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", pair.q(x), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, event_dim=1))

    with pytest.raises(ValueError, match=r"auxiliary site 'u' .* use defensive=0"):
        log_marginal(pair.model, guide, pair.simulate(3), method=Importance(defensive=0.1), num_samples=5)


def test_values_are_checked_in_every_datum() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    x = torch.zeros(50)
    x[37] = 0.5
    with pytest.raises(ValueError, match="site 'x'"):
        log_marginal(model, None, x, method="prior", num_samples=10)


# Adaptive


@pytest.mark.parametrize("memory", [None, 100_000])
def test_sampling_goes_on_until_the_error_is_reached(memory: int | None) -> None:
    pair = LinearGaussian()
    x = pair.simulate(30)
    options: dict[str, Any] = {"num_samples": 100, "seed": 0, "memory": memory}
    first = log_marginal(pair.model, pair.wide_guide, x, **options)
    target = float(first.std_error.median())
    result = log_marginal(
        pair.model, pair.wide_guide, x, method=Importance(target_error=target, max_samples=300), **options
    )
    assert isinstance(result.num_samples, Tensor)
    reached = result.std_error <= target
    assert bool((reached | (result.num_samples == 300)).all())
    assert int(reached.sum()) > 25
    assert {100, 200} <= set(result.num_samples.tolist()) <= {100, 200, 300}
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4
    assert "100 to" in repr(result)
    assert int(max(result.convergence)) == 64  # the largest block that all have


def test_adaptive_sampling_of_parameters_of_each_datum() -> None:
    x = torch.randn(9, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    guide(x)
    result = log_marginal(model, guide, x, method=Importance(target_error=0.02), num_samples=100, seed=0)
    assert float(result.std_error.max()) <= 0.02
    assert float(z_scores(result, dist.Normal(torch.zeros(9).double(), 2**0.5).log_prob(x)).abs().max()) < 4


def test_an_exact_guide_needs_no_second_look() -> None:
    pair = LinearGaussian()
    result = log_marginal(
        pair.model, pair.exact_guide, pair.simulate(5), method=Importance(target_error=1e-6), num_samples=50
    )
    assert result.num_samples == 50


# What is kept of the weights


def test_running_sums_are_those_of_all_weights() -> None:
    torch.manual_seed(0)
    log_w = 3 * torch.randn(103, 4, dtype=torch.float64)
    whole, pieces = Weights(4, 103), Weights(4, 103)
    whole.add(log_w)
    for part in log_w.split([1, 2, 30, 5, 64, 1]):
        pieces.add(part)
    torch.testing.assert_close(pieces.log_mean, log_w.logsumexp(0) - math.log(103))
    torch.testing.assert_close(1 / pieces.inverse_ess, log_w.softmax(0).square().sum(0).reciprocal())
    torch.testing.assert_close(pieces.largest, log_w.topk(len(pieces.largest), dim=0).values)
    torch.testing.assert_close(pieces.bounds(), whole.bounds())
    blocks = log_w[:102].reshape(51, 2, 4).logsumexp(1) - math.log(2)
    torch.testing.assert_close(pieces.bounds()[1], blocks.mean(0))
    assert len(pieces.bounds()) == 7  # 1, 2, ..., 64


def test_merging_is_adding() -> None:
    torch.manual_seed(0)
    log_w, more = torch.randn(64, 4, dtype=torch.float64), torch.randn(128, 2, dtype=torch.float64)
    merged, part, plain = Weights(4, 200), Weights(2, 200), Weights(2, 200)
    merged.add(log_w)
    part.add(more)
    rows = torch.tensor([1, 3])
    merged.merge(rows, part)
    plain.add(torch.cat([log_w[:, rows], more]))
    for name in ("count", "log_sum", "log_sum_sq", "largest"):
        torch.testing.assert_close(getattr(merged, name)[..., rows], getattr(plain, name))
    torch.testing.assert_close(merged.bounds()[:7, rows], plain.bounds()[:7])
    assert merged.bounds()[7, 0].isnan()


def test_bounds_converge_to_log_p_from_below() -> None:
    pair = LinearGaussian()
    x = pair.simulate(200)
    curve = log_marginal(pair.model, pair.wide_guide, x, num_samples=1000, seed=0).convergence
    assert list(curve) == [*(2**j for j in range(10)), 1000]
    values, exact = list(curve.values()), float(pair.log_prob(x).detach().mean())
    assert all(later > earlier - 1e-3 for earlier, later in pairwise(values))
    assert values[-1] == pytest.approx(exact, abs=0.01)
    p = pair.posterior(x)
    q = dist.Normal(p.mean, 1.2 * p.variance.sqrt()).to_event(1)
    z = q.sample((4000,))
    elbo = (
        pair.prior().log_prob(z) + dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1).log_prob(x)
    ) - (q.log_prob(z))
    assert curve[1] == pytest.approx(float(elbo.detach().mean()), abs=0.01)


# Interruption


class Interrupting(nn.Module):
    """Raises what Ctrl-C raises when it has been called some times."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, z: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return z


CHAINS: dict[str, Any] = {"num_temperatures": 4, "num_chains": 2, "leapfrog_steps": 1}


@pytest.mark.parametrize("method", ["importance", AIS(**CHAINS), BDMC(**CHAINS)])
def test_ctrl_c_leaves_what_is_finished(method: str | AIS) -> None:
    pair = LinearGaussian()
    net = Interrupting(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(net(z) @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    options: dict[str, Any] = {"memory": 6000}
    if method == "importance":
        options["num_samples"] = 64
    x = pair.simulate(12)
    whole = log_marginal(model, pair.guide, x, method=method, seed=0, **options)
    calls = -1 - net.calls
    assert not whole.interrupted
    net.calls = round(0.7 * calls)
    with pytest.warns(UserWarning, match="interrupted: the result holds only the data that were finished"):
        part = log_marginal(model, pair.guide, x, method=method, seed=0, **options)
    assert part.interrupted
    assert 0 < len(part) < 12
    assert torch.equal(part.log_prob, whole.log_prob[: len(part)])
    assert "interrupted" in repr(part)
    if hasattr(part, "args"):
        assert len(part.args[0]) == len(part)
    net.calls = 2
    with pytest.raises(KeyboardInterrupt):
        log_marginal(model, pair.guide, x, method=method, **options)


# The result


def test_a_result_prints_saves_and_draws_itself(tmp_path: Path) -> None:
    pair = LinearGaussian()
    x = pair.simulate(30)
    result = log_marginal(pair.model, pair.guide, x, num_samples=200, seed=0)
    bad = len(result.unreliable)
    assert f"{bad} of 30 estimates unreliable" in repr(result)
    figures = json.loads(result.save(tmp_path / "p.json").read_text())
    assert figures["num_unreliable"] == bad
    assert figures["convergence"]["128"] == pytest.approx(result.convergence[128])
    assert len(figures["data"]) == 30
    rows = list(csv.DictReader(result.save(tmp_path / "p.csv").read_text().splitlines()))
    assert float(rows[7]["log_prob"]) == pytest.approx(float(result.log_prob[7]))
    assert [i for i, row in enumerate(rows) if row["unreliable"] == "True"] == result.unreliable.tolist()
    assert len(result.plot().axes) == 2
    with pytest.raises(ValueError, match=r"saved as \.json, \.csv, \.png or \.html"):
        result.save(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "harmonic"}, "infinite variance"),
        ({"method": "harmonic_mean"}, "infinite variance"),
        ({"method": "magic"}, "method must be one of 'importance', 'prior', 'ais', 'bdmc', 'smc', got 'magic'"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"memory": 0}, "memory must be a positive number of bytes, got 0"),
        ({"method": Importance(max_samples=10, target_error=0.1)}, "max_samples must be at least num_samples, 5000"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    pair = LinearGaussian()
    with pytest.raises(ValueError, match=message):
        log_marginal(pair.model, pair.guide, pair.simulate(2), **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Importance, {"target_error": 0.0}, "target_error must be a positive number"),
        (Importance, {"max_samples": 0}, "max_samples must be at least 1, got 0"),
        (Importance, {"defensive": 1.0}, r"defensive must be in \[0, 1\), got 1.0: .* proposal='prior'"),
        (Importance, {"defensive": 0.1, "proposal": "prior"}, "defensive is for proposal='guide'"),
        (Importance, {"proposal": "posterior"}, "proposal must be 'guide' or 'prior', got 'posterior'"),
        (AIS, {"start": "here"}, "start must be 'prior' or 'guide', got 'here'"),
        (AIS, {"schedule": "steep"}, "schedule must be 'sigmoid' or 'linear', got 'steep'"),
        (AIS, {"num_chains": 0}, "num_chains must be at least 1, got 0"),
        (BDMC, {"num_temperatures": 0}, "num_temperatures must be at least 1, got 0"),
    ],
)
def test_bad_options_of_a_method(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 7, "method": "ais"}, r"num_samples=7 is for importance .*pv\.AIS\(num_chains=\.\.\.\)"),
        ({"num_chains": 4}, r"keyword 'num_chains'.*method=pv\.AIS\(num_chains=\.\.\.\)"),
        (
            {"target_error": 0.1, "method": "ais"},
            r"keyword 'target_error'.*method=pv\.Importance\(target_error=\.\.\.\)",
        ),
        ({"num_sample": 5}, "keyword 'num_sample'.*the pair does not take: did you mean 'num_samples'"),
        ({"method": 3}, "method must be .*got 3"),
    ],
)
def test_options_that_a_method_has_no_use_for(options: dict[str, Any], message: str) -> None:
    pair = LinearGaussian()
    with pytest.raises(TypeError, match=message):
        log_marginal(pair.model, pair.guide, pair.simulate(2), **options)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'defensive'"):
        AIS(defensive=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", ["importance", AIS(start="guide"), BDMC(start="guide")])
def test_no_guide_where_one_is_needed(method: str | AIS) -> None:
    pair = LinearGaussian()
    with pytest.raises(ValueError, match="needs a guide, got None"):
        log_marginal(pair.model, None, pair.simulate(2), method=method)


@pytest.mark.parametrize(("name", "method"), [("prior", Importance(proposal="prior")), ("importance", Importance())])
def test_a_name_stands_for_a_method_with_its_defaults(name: str, method: Importance) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    one, two = (log_marginal(pair.model, pair.guide, x, method=m, num_samples=50, seed=0) for m in (name, method))
    assert torch.equal(one.log_prob, two.log_prob)
    assert one.method == two.method == name


@pytest.mark.parametrize("method", ["importance", "prior"])
def test_compiled_weights_are_the_eager_ones(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)

    def estimate() -> Any:
        return log_marginal(pair.model, pair.wide_guide, x, method=method, num_samples=3000, memory=10**5, seed=0)

    eager = estimate()
    graphs = []

    def as_recorded(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module

    monkeypatch.setattr(compiled, "compile_graph", as_recorded)
    monkeypatch.setattr(importance, "COMPILED_SAMPLES", 1)
    found = estimate()
    assert graphs
    # chunks are cut otherwise, so the noise is other noise
    assert ((found.log_prob - pair.log_prob(x)).abs() < 5 * found.std_error).all()
    torch.testing.assert_close(found.std_error, eager.std_error, rtol=0.5, atol=0.0)

    def fails(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled, "compile_graph", fails)
    assert ((estimate().log_prob - pair.log_prob(x)).abs() < 5 * found.std_error).all()


def test_compiled_weights_on_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    eager = log_marginal(pair.model, pair.guide, x, num_samples=50, seed=0)
    monkeypatch.setattr(compiled, "compile_graph", lambda module, inputs: module)
    monkeypatch.setattr(importance, "COMPILED_SAMPLES", 1)
    found = log_marginal(pair.model, pair.guide, x, num_samples=50, seed=0)
    torch.testing.assert_close(found.log_prob, eager.log_prob)
