"""Runs from many seeds: the figures of single runs, however they are trained."""

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
from pyro_vae.compilation.recordable import Recordable
from pyro_vae.compilation.stacked import CannotStack, StackedGraph
from pyro_vae.elbo import Reinforce, Warmup
from pyro_vae.training.together.jobs import Fitted, Job, one_after_another, stacked

X = (torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
TABLE = pv.data.table(
    {"a": [None, 1.5, -2.0] * 10, "b": [0.1, 2.0, 30.0] * 10, "c": [3, 0, 1] * 10, "d": ["x", "y", "z"] * 10}, test=0
)
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 20, "lr": 0.02, "valid": X[:20], "preflight": False}
OPTIONS |= {"compile": False}  # graphs run as recorded


def small(**parts: Any) -> Callable[[int], Any]:
    return lambda seed: pv.VAE(8, latent_dim=2, hidden=(5,), **parts)


def with_layer(layer: Callable[[], nn.Module]) -> Callable[[int], Any]:
    def build(seed: int) -> pv.VAE:
        encoder = nn.Sequential(nn.Linear(8, 5, bias=False), layer(), nn.Tanh(), nn.Linear(5, 4))
        return pv.VAE(8, latent_dim=2, hidden=(5,), encoder=encoder)

    return build


class Bits(nn.Module):
    """Two binary latents and a class, which no gradient passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 5), nn.Linear(5, 8)

    def model(self, x: Tensor) -> None:
        pyro.module("bits", self)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=torch.zeros(2)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(torch.cat([b, y], -1))).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("bits", self)
        of_bits, of_class = self.encoder(x).split([2, 3], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=of_bits).to_event(1))
            pyro.sample("y", dist.OneHotCategorical(logits=of_class))


def functions(seed: int) -> tuple[Any, Any]:
    """Plain functions, one of whose parameters is drawn in the first step, with a plate that draws indices."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(8))
        with pyro.plate("data", 50, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=loc + z[:, None]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", 50, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(a * x.mean(-1), scale))

    return model, guide


def weights_of(fitted: Fitted) -> dict[str, Tensor]:
    """The state of the networks, and parameters that no network has."""
    owner = getattr(fitted.pair[0], "__self__", None)
    nets = owner.state_dict() if isinstance(owner, nn.Module) else {}
    return {**nets, **{name: p for name, p in fitted.store["params"].items() if "$$$" not in name}}


def assert_same(ours: list[Fitted], theirs: list[Fitted]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.history.best, one.history.stopped) == (other.history.best, other.history.stopped)
        assert len(one.history) == len(other.history)
        for a, b in zip(one.history, other.history, strict=True):
            for name in ("loss", "train_elbo", "valid_elbo", "log_likelihood", "kl", "kl_weight", "lr"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=2e-5), name
            assert (a.epoch, a.step) == (b.epoch, b.step)
        mine, yours = weights_of(one), weights_of(other)
        assert list(mine) == list(yours)
        for name in mine:
            assert torch.allclose(mine[name], yours[name], atol=1e-5), name
            assert (
                mine[name].untyped_storage().nbytes() == yours[name].untyped_storage().nbytes()
            )  # no longer in a stack


CASES: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "iwae": (small(), {"elbo": "iwae", "num_particles": 3, "epochs": 1}),
    "stl, warm-up, cosine, clipping": (
        small(),
        {"elbo": "stl", "kl_weight": Warmup(1), "lr_schedule": "cosine", "clip_norm": 0.1},
    ),
    "a baseline that runs": (lambda seed: Bits(), {"elbo": Reinforce(baseline="running", num_particles=2)}),
    "dropout": (with_layer(lambda: nn.Dropout(0.5)), {}),
    "batch normalization": (with_layer(lambda: nn.BatchNorm1d(5)), {}),
    "functions": (functions, {"elbo": "trace"}),
    "a table": (lambda seed: pv.TabularVAE(TABLE.columns, latent_dim=2, hidden=(5,)), {"valid": None, "data": TABLE}),
    "gray values": (small(), {"valid": None, "data": pv.data.load(X * 0.8, binarize="dynamic", valid=0.2, test=0.0)}),
}


@pytest.mark.parametrize("case", CASES)
def test_stacked_runs_are_single_runs(case: str) -> None:
    build, more = CASES[case]
    options = {**OPTIONS, **more}
    data = options.pop("data", X)
    jobs = [Job(build, data, seed, options, f"seed {seed}") for seed in (3, 4)]
    state = torch.get_rng_state()
    with Recordable():  # dropout and Bernoulli draws take their noise as a recorded step does in eager ones, too
        alone = list(one_after_another(jobs))
        assert_same(stacked(jobs), alone)
    assert alone[0].history[-1].loss != alone[1].history[-1].loss
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


def test_runs_of_other_rates_and_lengths_do_not_touch_each_other() -> None:
    options = {**OPTIONS, "epochs": 4, "early_stopping": 1}
    jobs = [
        Job(small(), X, 0, {**options, "lr": 0.5}, "the first"),  # too fast, so that it stops early
        Job(small(), X, 1, {**options, "callbacks": [lambda state: state.epoch.epoch == 2]}, "the second"),
        Job(small(), X, 2, {**options, "lr": 0.003}, "the third"),
    ]
    alone = list(one_after_another(jobs))
    assert len({(len(fitted.history), fitted.history.stopped) for fitted in alone}) == 3
    found = stacked(jobs)
    assert_same(found[1:], alone[1:])
    assert found[0].history.stopped == "early stopping"
    # the same alone as among others
    assert_same(stacked(jobs[2:]), found[2:])


def test_one_graph_in_place_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    call = StackedGraph.__call__

    def count(graph: StackedGraph, *args: Any) -> Any:
        losses, grads = call(graph, *args)
        numbers.append(len(losses))
        return losses, grads

    monkeypatch.setattr(StackedGraph, "__call__", count)
    monkeypatch.setattr(StackedGraph, "gain", lambda graph, number: 3.0)
    shorter = {**OPTIONS, "epochs": 1}
    runs = pv.fit_many(small(), X, seeds=(0, 1, 2), **shorter)
    assert runs.stacked
    assert numbers[-2:] == [3, 3]  # of three steps the first is eager
    monkeypatch.setattr(StackedGraph, "gain", lambda graph, number: 1.5)
    del numbers[:]
    runs = pv.fit_many(small(), X, seeds=(0, 1, 2), **shorter)
    assert numbers == [2]  # the first two, which were measured
    assert "3 steps at once are 1.5 times as fast" in runs.why_not


def test_intervals_and_pairs() -> None:
    runs = pv.fit_many(functions, X, seeds=(1, 5), stacked=False, **OPTIONS)
    finals = [float(h[h.best - 1].valid_elbo or 0.0) if h.best else math.nan for h in runs.histories]
    found = {i.measure: i for i in runs.intervals()}["valid_elbo"]
    mean, half = sum(finals) / 2, 12.7062 * abs(finals[0] - finals[1]) / 2  # the t-quantile of one degree of freedom
    assert (found.mean, found.high - found.mean) == (pytest.approx(mean), pytest.approx(half, rel=1e-4))
    assert not list(pyro.get_param_store())
    for seed, final in zip((1, 5), finals, strict=True):
        pair = runs.pair(seed)
        assert float(pv.bound(*pair, X[:20], seed=0).elbo.mean()) == pytest.approx(final, abs=1e-5)
    with pytest.raises(ValueError, match="no run from seed 2; there are 1, 5"):
        runs.pair(2)


def test_processes_give_the_same() -> None:
    shorter = {**OPTIONS, "epochs": 1}
    here = pv.fit_many(functions, X, seeds=(0, 1), stacked=False, **shorter)
    there = pv.fit_many(functions, X, seeds=(0, 1), stacked=False, processes=2, **shorter)
    assert_same(there.trained, here.trained)
    with pytest.raises(ValueError, match="num_particles must be at least 2") as caught:
        pv.fit_many(small(), X, seeds=(0, 1), stacked=False, processes=2, **{**shorter, "elbo": "vimco"})
    assert caught.value.__notes__ == ["while training seed 0"]


def choosy(seed: int) -> tuple[Any, Any]:
    vae = pv.VAE(8, latent_dim=2, hidden=(5,))

    def guide(x: Tensor) -> None:
        if float(x.sum()) >= 0:
            vae.guide(x)

    return vae.model, guide


def gamma(seed: int) -> tuple[Any, Any]:
    rate = nn.Linear(8, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None] - torch.ones(8)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("rate", rate)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2.0, rate(x).squeeze(-1).exp()))

    return model, guide


@pytest.mark.parametrize(
    ("build", "more", "reason"),
    [
        (choosy, {}, "control flow depends on the values"),
        (gamma, {}, "draws by _standard_gamma"),
        (small(), {"elbo": "info_vae", "optim": torch.optim.SGD}, "optim=.* is not for stacked steps"),
        (lambda seed: small(activation="elu" if seed else "tanh")(seed), {}, "depends on the seed"),
    ],
)
def test_what_cannot_be_stacked_says_why(build: Any, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"stacked=True, but .*{reason}.*: leave it at 'auto'"):
        pv.fit_many(build, X, seeds=(0, 1), stacked=True, **{**OPTIONS, **more})


def test_what_is_found_too_late_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: StackedGraph, *args: Any) -> None:
        raise CannotStack("one of them is another")

    monkeypatch.setattr(StackedGraph, "gain", lambda graph, number: 3.0)
    monkeypatch.setattr(StackedGraph, "__call__", fails)
    monkeypatch.setattr(StackedGraph, "losses", lambda graph, leaves, generators: torch.full((len(leaves),), math.nan))
    shorter = {**OPTIONS, "epochs": 1}
    runs = pv.fit_many(small(), X, seeds=(0, 1), **shorter)
    assert "the stacked loss is nan" in runs.why_not
    alone = pv.fit_many(small(), X, seeds=(0, 1), stacked=False, **shorter)
    assert_same(runs.trained, alone.trained)


def test_a_loss_that_is_not_finite_names_the_seed() -> None:
    def poison(state: Any) -> None:
        if state.history.seed == 1:
            next(iter(state.svi.params.values())).data.fill_(math.inf)

    with pytest.raises(pv.NonFiniteLoss, match="the loss is nan at step 4") as caught:
        pv.fit_many(small(), X, seeds=(0, 1), stacked=True, callbacks=[poison], **OPTIONS)
    assert caught.value.__notes__ == ["while training seed 1"]


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="seeds must be different whole numbers"):
        pv.fit_many(small(), X, seeds=(1, 1))
    with pytest.raises(ValueError, match="seed, resume cannot be given to fit_many"):
        pv.fit_many(small(), X, seed=1, resume=True)
    net = small()(0)
    with pytest.raises(ValueError, match="that an earlier run has trained"):
        pv.fit_many(lambda seed: net, X, stacked=False, **OPTIONS)
