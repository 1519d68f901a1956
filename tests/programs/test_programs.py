"""Every program is put to every question: the right number, or the refusal that its entry states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compilation import gradients as compiled_gradients
from tests.programs.entry import QUESTIONS, Entry, Pair, collection
from tests.programs.table import PAGE, page

ENTRIES = collection()
ELBOS = {
    "Trace_ELBO": {},
    "TraceMeanField_ELBO": {},
    "TraceEnum_ELBO": {},
    "TraceGraph_ELBO": {},
    "RenyiELBO": {"num_particles": 2},
    "ReweightedWakeSleep": {"num_particles": 2},
}
DRAWS = 60
ADAM: Any = vars(pyro.optim)["Adam"]


def parameters() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}


def steps(svi: Any, pair: Pair, count: int = 2) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(1)
    losses = [svi.step(*pair.args, **pair.kwargs) for _ in range(count)]
    flat = [float(torch.as_tensor(part)) for loss in losses for part in (loss if isinstance(loss, tuple) else (loss,))]
    return flat, parameters()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_steps_are_those_of_pyro(entry: Entry, elbo: str) -> None:
    """Losses and parameters of two steps of SVI are Pyro's, for the same seed, with each of Pyro's ELBOs."""

    def run(svi: Callable[..., Any], optim: Any) -> tuple[list[float], dict[str, Tensor]]:
        pair = entry.build()
        return steps(svi(pair.model, pair.guide, optim, getattr(pyro.infer, elbo)(**ELBOS[elbo])), pair)

    if elbo not in entry.elbos:
        for svi, optim in ((pyro.infer.SVI, ADAM({"lr": 0.01})), (pv.SVI, None)):
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever Pyro raises
                run(svi, optim)
        return
    theirs, there = run(pyro.infer.SVI, ADAM({"lr": 0.01}))
    ours, here = run(pv.SVI, lambda params: torch.optim.Adam(params, lr=0.01))
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert set(here) == set(there)
    for name, value in there.items():
        assert torch.allclose(here[name], value, rtol=1e-3, atol=1e-4), name


class Questions:
    """What each question must answer; a method raises if the question refuses."""

    def __init__(self, entry: Entry, pair: Pair) -> None:
        self.entry, self.pair = entry, pair
        self.call: tuple[Any, ...] = pair.call
        self.options = pair.kwargs

    def compiled(self) -> None:
        def run(compile: bool) -> tuple[list[float], dict[str, Tensor], Any]:
            pair = self.entry.build()
            objective = pv.elbo.make(self.entry.estimator)
            svi = pv.SVI(pair.model, pair.guide, loss=objective, compile=compile)
            return *steps(svi, pair, 3), svi.compilation

        eager, there, _ = run(False)
        compiled, here, state = run(True)
        if not state:
            raise ValueError(state.reason)
        assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-3)
        assert all(torch.allclose(here[name], value, rtol=1e-2, atol=1e-3) for name, value in there.items())

    def fit(self) -> None:
        args = self.pair.args
        data = args if len(args) != 1 or isinstance(args[0], tuple) else args[0]
        model, guide = self.pair.model, self.pair.guide
        if self.options:
            data = {"x": data, **self.options}
        history = pv.fit(model, guide, data, elbo=self.entry.estimator, epochs=2, preflight=False, progress=False)
        assert all(math.isfinite(value) for value in history.train_elbo)

    def preflight(self) -> None:
        report = pv.preflight(*self.call, elbo=self.entry.estimator, **self.options)
        assert {issue.code for issue in report.issues} == set(self.entry.warns)

    def bound(self) -> None:
        results = [pv.bound(*self.call, num_samples=10, seed=seed, **self.options).elbo.sum() for seed in range(6)]
        ours = torch.stack(results).double()
        with torch.no_grad():
            draws = torch.tensor([float(log_weight(self.pair).sum()) for _ in range(DRAWS)]).double()
        error = math.hypot(float(ours.std()) / math.sqrt(len(ours)), float(draws.std()) / math.sqrt(DRAWS))
        assert abs(float(ours.mean() - draws.mean())) < 5 * error + 1e-3 * abs(float(draws.mean())) + 1e-3

    def log_marginal(self) -> None:
        result = pv.log_marginal(*self.call, num_samples=2000, seed=0, **self.options)
        exact, spread = self.pair.exact, torch.zeros(())
        if exact is None:  # by importance sampling
            with torch.no_grad():
                weights = torch.stack([log_weight(self.pair) for _ in range(5 * DRAWS)])
            exact = weights.logsumexp(0) - math.log(len(weights))
            spread = (weights - exact).exp().std(0) / math.sqrt(len(weights))
        assert result.log_prob.shape == exact.shape
        assert bool(((result.log_prob - exact).abs() < 5 * (result.std_error + spread) + 2e-3).all())

    def compare_elbos(self) -> None:
        names = [self.entry.estimator]
        table = pv.compare_elbos(
            *self.call, estimators=names, num_particles=[2], repeats=8, num_samples=200, seed=0, **self.options
        )
        [row] = table.rows
        value = pv.bound(*self.call, num_samples=DRAWS, seed=1, **self.options)
        per_datum = value.elbo.double()
        assert abs(row.value - float(per_datum.mean())) < 6 * row.value_error + 0.3
        assert math.isfinite(row.guide_variance)

    def latent_report(self) -> None:
        report = pv.latent_report(*self.call, num_samples=4, seed=0, **self.options)
        value = pv.bound(*self.call, num_samples=DRAWS, seed=1, **self.options)
        assert abs(report.kl - float(value.kl.mean())) < 5 * report.kl_error + 0.3

    def fit_local(self) -> None:
        local = pv.fit_local(*self.call, max_steps=60, num_particles=2, seed=0, **self.options)
        reference = pv.log_marginal(self.pair.model, local, *self.pair.args, num_samples=500, seed=0, **self.options)
        exact = reference.log_prob if self.pair.exact is None else self.pair.exact
        assert bool((local.elbo < reference.log_prob + 5 * local.elbo_error + 0.05).all())
        assert abs(float(reference.log_prob.sum() - exact.sum())) < 0.3 + 5 * float(reference.std_error.sum())
        start = pv.bound(*self.call, num_samples=DRAWS, seed=1, **self.options)
        assert start.point_masses or local.mean > start.mean - 0.3

    def posterior_samples(self) -> None:
        first = self.pair.args[0] if self.pair.args else None
        n = len(first) if isinstance(first, Tensor) and first.dim() and self.has_rows else 0

        def one(a: Any) -> Any:
            return a[:1] if n and isinstance(a, Tensor) and a.dim() and len(a) == n else a

        options = {name: one(a) for name, a in self.options.items()}
        found = pv.posterior_samples(
            self.pair.model, *map(one, self.pair.args), num_samples=4, warmup_steps=4, seed=0, **options
        )
        assert found
        count = 1 if n else len(self.pair.exact) if self.pair.exact is not None else 0
        assert all(bool(value.isfinite().all()) and value.shape[:2] == (4, count) for value in found.values())

    @property
    def has_rows(self) -> bool:
        """Whether the first argument has a row for each datum, of which one is enough to be drawn from."""
        exact = self.pair.exact
        return exact is None or len(exact) in (1, len(self.pair.args[0]))  # one, for all data together


def log_weight(pair: Pair) -> Tensor:
    """log p(x, z) - log q(z|x) at a draw, `(N,)`; what stands outside of a plate over the data is shared among them."""
    if pair.plain is not None:
        pair = pair.plain
    drawn: Any = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
    run: Any = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(*pair.args, **pair.kwargs)
    total: Any = 0.0
    n = 1 if pair.exact is None and not pair.args else (len(pair.args[0]) if pair.exact is None else len(pair.exact))
    for trace, sign in ((run, 1), (drawn, -1)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            if sign < 0 and site["is_observed"] and "_density" not in site["infer"]:
                continue
            value = sign * site["fn"].log_prob(site["value"])
            masks = [s["mask"] for s in (site, run.nodes.get(name)) if s is not None and s["mask"] is not None]
            for mask in masks:  # the model's holds for both
                value = value * torch.as_tensor(mask)
            dim = next((f.dim for f in site["cond_indep_stack"] if f.vectorized and f.size == n and n > 1), None)
            if dim is None:
                total = total + value.sum() / n * torch.ones(n)
            else:
                value = value.expand(torch.broadcast_shapes(value.shape, (n,) + (1,) * (-dim - 1)))
                total = total + value.movedim(dim, 0).reshape(n, -1).sum(1)
    return torch.as_tensor(total).reshape(-1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_question(entry: Entry, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_gradients, "compile_graph", lambda module, inputs: module)
    ask = getattr(Questions(entry, entry.build()), question)
    said = entry.refuses.get(question)
    if said is None:
        ask()
        return
    with pytest.raises((ValueError, TypeError)) as refusal:
        ask()
    assert said in str(refusal.value)


def test_the_table_of_the_documentation_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tests.programs.table"


def test_the_collection_is_large() -> None:
    assert len(ENTRIES) >= 40
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.text for entry in ENTRIES)
