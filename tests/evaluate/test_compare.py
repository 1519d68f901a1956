"""The comparison of estimators, where the truth is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import Coefficients, SurrogateELBO, make
from pyro_vae.evaluate import ElboComparison, bound, compare_elbos
from pyro_vae.evaluate.estimators import compare, shared_runs
from pyro_vae.evaluate.estimators.gradients import Gradients
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain

KEYS = [
    "estimator", "num_particles", "value", "value_error", "gap", "model_bias", "guide_bias", "model_variance",
    "guide_variance", "model_snr", "guide_snr", "seconds", "memory", "model_bias_error", "guide_bias_error",
    "model_variance_error", "guide_variance_error", "seconds_error", "bound",
]  # fmt: skip


class Apart(LinearGaussian):
    """The same pair with the model's parameters registered by the model alone, and the guide's by the guide."""

    def model(self, x: Tensor) -> None:
        weight, bias = pyro.param("weight", self.weight), pyro.param("bias", self.bias)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z @ weight.T + bias, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        for name in ("encoder", "offset", "log_scale"):
            pyro.param(name, getattr(self, name))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


@pytest.fixture(scope="module")
def compared() -> tuple[LinearGaussian, Tensor, ElboComparison]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = Apart(data_dim=3, latent_dim=1)
    x = pair.simulate(20)
    names = ["trace", "mean_field", "stl", "iwae", "dreg", "vimco", "rws"]
    result = compare_elbos(
        pair.model, pair.guide, x, estimators=names, num_particles=[1, 8], repeats=60, num_samples=2000, seed=0
    )
    return pair, x, result


def row(result: ElboComparison, name: str, particles: int) -> Any:
    return next(r for r in result.rows if (r.estimator, r.num_particles) == (name, particles))


def test_estimators_that_share_their_runs_have_the_gradients_that_they_have_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In all figures but the times."""
    taken: list[list[str]] = []
    repeat = shared_runs.SharedRuns.repeat

    def counted(runs: Any, *args: Any) -> Any:
        taken.append([type(each.objective).__name__ for each in runs.every])
        return repeat(runs, *args)

    monkeypatch.setattr(shared_runs.SharedRuns, "repeat", counted)
    names = ["trace", "mean_field", "stl", "dreg", "rws", "vimco"]
    options: dict[str, Any] = {"num_particles": [1, 3], "repeats": 4, "num_samples": 20, "by_site": False, "seed": 0}
    for pair in (TopDownChain(), Tied()):
        x = pair.simulate(6)
        taken.clear()
        shared = compare_elbos(pair.model, pair.guide, x, estimators=names, **options)
        assert [len(group) for group in taken] == [4, 6]
        with monkeypatch.context() as patch:
            patch.setattr(compare, "may_share", lambda objective: False)
            alone = compare_elbos(pair.model, pair.guide, x, estimators=names, **options)
        assert len(taken) == 2
        for a, b in zip(shared.rows, alone.rows, strict=True):
            for key in set(KEYS) - {"estimator", "bound", "seconds", "seconds_error", "memory"}:
                assert getattr(a, key) == pytest.approx(getattr(b, key), rel=1e-7, abs=1e-9, nan_ok=True), (a, key)


class Tied(LinearGaussian):
    """The guide has the weights of the likelihood, and the prior a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(data_dim=3, latent_dim=1)
        self.center = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def prior(self) -> Any:
        return dist.Normal(self.center, 1.0).to_event(1)

    def q(self, x: Tensor) -> Any:
        return dist.Normal(x @ self.weight + self.offset, self.log_scale.exp()).to_event(1)


def test_pairs_with_terms_of_their_own_are_not_shared() -> None:
    """Nor is an estimator whose gradient is put together in another way."""
    assert not any(shared_runs.may_share(make(name, num_particles=2)) for name in ("vargrad", "ovis", "disarm", "enum"))
    pair = LinearGaussian(data_dim=3)
    x = pair.simulate(4)

    class Half(SurrogateELBO):
        def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
            self.calls = getattr(self, "calls", 0) + 1
            even = torch.full_like(log_w, 1 / len(log_w))
            return Coefficients(log_w.mean(0), model=even, path=even / self.calls)

    params: dict[str, list[Tensor]] = {"model": [pair.weight], "guide": [pair.encoder]}
    every = [Gradients(pair.model, pair.guide, ((x,), {}), objective, params, 4) for objective in (Half(), Half())]
    assert not shared_runs.SharedRuns(every).agree(0)


def test_the_bound_and_its_gap_are_the_exact_ones(compared: tuple[LinearGaussian, Tensor, ElboComparison]) -> None:
    pair, x, result = compared
    exact, truth = float(pair.elbo(x).detach().mean()), float(pair.log_prob(x).detach().mean())
    for name in ("trace", "mean_field", "stl"):
        r = row(result, name, 8)
        assert abs(r.value - exact) < 4.5 * r.value_error
        assert r.gap == pytest.approx(truth - exact, abs=4.5 * r.value_error + 0.02)
    assert result.reference.mean == pytest.approx(truth, abs=0.02)


def test_the_known_orders(compared: tuple[LinearGaussian, Tensor, ElboComparison]) -> None:
    result = compared[2]
    assert row(result, "dreg", 8).guide_variance < row(result, "iwae", 8).guide_variance
    assert row(result, "iwae", 8).guide_snr < row(result, "iwae", 1).guide_snr
    assert row(result, "trace", 8).guide_variance < row(result, "trace", 1).guide_variance
    assert row(result, "trace", 1).gap > row(result, "iwae", 8).gap > 0


def test_unbiased_estimators_show_little_bias_and_another_objective_shows(
    compared: tuple[LinearGaussian, Tensor, ElboComparison],
) -> None:
    result = compared[2]
    for name in ("trace", "mean_field", "stl"):
        assert row(result, name, 8).guide_bias < 0.15
        assert row(result, name, 8).model_bias < 0.15
    assert row(result, "rws", 8).guide_bias > 0.5  # climbs another objective on purpose


def test_rows_that_need_more_particles_are_left_out(compared: tuple[LinearGaussian, Tensor, ElboComparison]) -> None:
    found = {(r.estimator, r.num_particles) for r in compared[2].rows}
    assert ("vimco", 8) in found
    assert ("vimco", 1) not in found


def test_forms(compared: tuple[LinearGaussian, Tensor, ElboComparison], tmp_path: Path) -> None:
    result = compared[2]
    assert list(result.to_dicts()[0]) == KEYS
    assert "mean_field" in str(result)
    with result.save(tmp_path / "c.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.rows)
    assert len(json.loads(result.save(tmp_path / "c.json").read_text())["rows"]) == len(result.rows)
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html"):
        result.save(tmp_path / "c.txt")
    assert len(result.plot().axes) == 3


class TwiceTheModel(SurrogateELBO):
    """An ELBO whose model gradient is wrong."""

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        even = torch.full_like(log_w, 1 / len(log_w))
        return Coefficients(log_w.mean(0), model=2 * even, path=even)


def test_a_wrong_gradient_is_seen() -> None:
    pair = Apart(data_dim=3, latent_dim=1)
    x = pair.simulate(20)
    result = compare_elbos(
        pair.model, pair.guide, x, estimators=[TwiceTheModel(num_particles=8)], repeats=60, num_samples=100, seed=0
    )
    assert result.rows[0].model_bias == pytest.approx(1, abs=0.3)
    assert result.rows[0].guide_bias < 0.2


def test_nothing_is_touched() -> None:
    pair = LinearGaussian(data_dim=3, latent_dim=1)
    x = pair.simulate(5)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    pair.bias.grad = torch.ones_like(pair.bias)
    state = torch.get_rng_state()
    only_backward = pyro.infer.RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    compare_elbos(
        pair.model,
        pair.guide,
        x,
        estimators=["trace", only_backward],
        num_particles=[2],
        repeats=2,
        num_samples=10,
        seed=0,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pair.bias.grad, torch.ones_like(pair.bias))
    assert pair.weight.grad is None
    assert all(torch.equal(p, before[n]) for n, p in pair.named_parameters())


def test_the_same_seed_gives_the_same_rows() -> None:
    pair = LinearGaussian(data_dim=3, latent_dim=1)
    x = pair.simulate(5)
    runs = [
        compare_elbos(
            pair.model, pair.guide, x, estimators=["iwae"], num_particles=[2], repeats=3, num_samples=10, seed=3
        )
        for _ in range(2)
    ]
    a, b = (r.rows[0] for r in runs)
    assert (a.value, a.guide_variance) == (b.value, b.guide_variance)


def test_discrete_latents_and_extra_arguments() -> None:
    pair = Discrete()
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)

    def model(x: Tensor, logits: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Bernoulli(logits=pair.logits[c]).to_event(1), obs=x)

    def guide(x: Tensor, logits: Tensor) -> None:
        pair.guide(x)

    logits = pair.prior_logits.detach()
    result = compare_elbos(
        model,
        guide,
        x,
        logits,
        estimators=["reinforce", "vimco"],
        num_particles=[2],
        repeats=40,
        num_samples=500,
        seed=0,
    )
    r = row(result, "reinforce", 2)
    assert abs(r.value - float(pair.elbo(x).detach().mean())) < 4.5 * r.value_error
    assert r.model_variance == 0  # the model registers no parameter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ["iwea"]}, "did you mean 'iwae'"),
        ({"estimators": ["iwae"], "repeats": 1}, "at least 2"),
        ({"estimators": ["iwae"], "num_particles": []}, "positive"),
        ({"estimators": ["vimco"], "num_particles": [1]}, "no estimator"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    pair = LinearGaussian()
    with pytest.raises(ValueError, match=message):
        compare_elbos(pair.model, pair.guide, pair.simulate(2), **options)


def test_labels_of_ones_own() -> None:
    pair = LinearGaussian()
    objectives = {"mine": make("stl", num_particles=3), "DReG": "dreg"}
    comparison = compare_elbos(
        pair.model,
        pair.guide,
        pair.simulate(4),
        estimators=objectives,
        num_particles=[1, 2],
        repeats=3,
        num_samples=10,
        seed=0,
    )
    assert [(r.estimator, r.num_particles) for r in comparison.rows] == [("mine", 3), ("DReG", 1), ("DReG", 2)]


SLOPES = torch.tensor([1.0, -0.5], dtype=torch.float64)


def scaled(x: Tensor, program: str, way: str) -> None:
    """x_d = slope_d z + noise, with q(z|x) off its posterior; the data stand for ten times as many, in two ways."""
    size, rows = (10 * len(x), torch.arange(len(x))) if way == "subsampled plate" else (len(x), None)
    with pyro.poutine.scale(scale=10.0 if way == "poutine.scale" else 1.0), pyro.plate("data", size, subsample=rows):
        if program == "guide":
            shift = pyro.param("shift", torch.tensor(0.3, dtype=x.dtype))
            pyro.sample("z", dist.Normal(0.4 * x @ SLOPES + shift, 0.7))
        else:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            slopes = pyro.param("slopes", SLOPES.clone())
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * slopes, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("way", ["subsampled plate", "poutine.scale"])
def test_scales_enter_neither_the_bound_nor_the_gap(way: str) -> None:
    """Bound, gap and gradients against those of the pair without a scale, whose log p(x) is a normal's."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(way: str, names: list[Any]) -> ElboComparison:
        return compare_elbos(
            lambda x: scaled(x, "model", way), lambda x: scaled(x, "guide", way), x,
            estimators=names, num_particles=[2], repeats=20, num_samples=2000, seed=0,
        )  # fmt: skip

    names = ["mean_field", "stl", "iwae", pyro.infer.Trace_ELBO(num_particles=2)]
    covariance = torch.eye(2, dtype=x.dtype) + torch.outer(SLOPES, SLOPES)
    exact = float(dist.MultivariateNormal(x.new_zeros(2), covariance).log_prob(x).mean())
    found, plain = run(way, names), run("none", names)
    for a, b in zip(found.rows, plain.rows, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-9), a.estimator
        assert a.guide_variance == pytest.approx(b.guide_variance, rel=1e-6), a.estimator
        assert a.gap == pytest.approx(exact - b.value, abs=0.02), a.estimator
        assert a.gap > 0.05


def test_the_bound_is_of_evaluation_mode_and_nothing_moves() -> None:
    """Under dropout, batch normalization and a decaying baseline: the mean row is `bound`, and all is as it was."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = torch.randn(12, 4) + 2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((3,), 0.3)).to_event(1))
            mean = (z @ pyro.param("weight", torch.ones(3))).unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean.expand(*mean.shape[:-1], 4), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        baseline: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=baseline)

    def state() -> dict[str, Tensor]:
        values = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
        return {**values, **{name: b.clone() for name, b in encoder.named_buffers()}}

    pyro.clear_param_store()
    options: dict[str, Any] = {"num_particles": [1], "repeats": 200, "num_samples": 50, "seed": 0}
    compare_elbos(model, guide, x, estimators=["trace_graph"], **options)
    assert not list(pyro.get_param_store().keys())
    pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, x)
    before = state()
    row = compare_elbos(model, guide, x, estimators=["trace_graph"], **options).rows[0]
    assert encoder.training
    after = state()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert row.value == pytest.approx(bound(model, guide, x, num_samples=500, seed=1).mean, abs=5 * row.value_error)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
    loss.backward()  # the parameters that the store has are the networks' own
    assert encoder[0].weight.grad is not None


def test_a_bias_is_reported_where_it_exceeds_its_error() -> None:
    """Of 2 x 48 biases of unbiased estimators at small budgets none; each has an error."""
    pair = Apart(data_dim=3, latent_dim=2)
    x = pair.simulate(5)
    rows = []
    for seed in range(12):
        names = ["trace", "mean_field", "stl", "reinforce"]
        found = compare_elbos(
            pair.model, pair.guide, x, estimators=names, num_particles=[2], repeats=8, num_samples=10, seed=seed
        )
        rows += found.rows
    assert [(r.model_bias, r.guide_bias) for r in rows if r.model_bias or r.guide_bias] == []
    assert all(0 < error < 20 for r in rows for error in (r.model_bias_error, r.guide_bias_error))


def test_neighboring_seeds_share_no_draw() -> None:
    pair = LinearGaussian(data_dim=3, latent_dim=1)
    x = pair.simulate(5)
    values: list[set[float]] = []

    class Noted(SurrogateELBO):
        def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
            values[-1].add(float(log_w.sum()))
            even = torch.full_like(log_w, 1 / len(log_w))
            return Coefficients(log_w.mean(0), model=even, path=even)

    for seed in (0, 1):
        values.append(set())
        compare_elbos(
            pair.model, pair.guide, x, estimators=[Noted(num_particles=2)], repeats=20, num_samples=10, seed=seed
        )
    assert len(values[0]) >= 20
    assert len(values[0] & values[1]) <= 1  # the first run, which is not counted, has a seed of its own


def test_a_pair_without_parameters_has_a_bound_all_the_same() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.tensor([0.0, 1.0])
    r = compare_elbos(model, guide, x, estimators=["stl"], num_particles=[1], repeats=3, num_samples=10).rows[0]
    assert r.value == pytest.approx(float(dist.Normal(0.0, 2**0.5).log_prob(x).mean()), abs=1e-4)
    assert (r.model_bias, r.guide_bias, r.model_variance) == (0, 0, 0)


def test_a_baseline_network_is_no_bias() -> None:
    """Its gradient is that of its own loss, and of no bound."""
    torch.manual_seed(0)
    encoder, baseline, x = nn.Linear(3, 2), nn.Linear(3, 1), torch.randn(12, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            mean = z.sum(-1, keepdim=True) * pyro.param("s", torch.ones(3))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("baseline", baseline)
        infer: Any = {"baseline": {"baseline_value": baseline(x).squeeze(-1)}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=infer)

    estimators = {"of Pyro": pyro.infer.TraceGraph_ELBO(), "ours": make("trace_graph")}
    result = compare_elbos(model, guide, x, estimators=estimators, repeats=60, num_samples=50, seed=0)
    for found in result.rows:
        assert found.guide_bias == 0
        assert 0 < found.guide_variance < 100
        assert found.model_variance > 0
    assert all(p.grad is None for p in baseline.parameters())
