"""The check of an estimator: it passes what is right, and finds what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.elbo import IWAE, Coefficients, MeanField, SurrogateELBO, Trace
from pyro_vae.evaluate import EstimatorCheck, check_estimator
from pyro_vae.evaluate.estimators.expectations import expected
from pyro_vae.oracles import BitsAndClasses, Discrete, LinearGaussian, Oracle, TopDownChain

MODEL, GUIDE = "gradient of the model", "gradient of the guide"


def failed(check: EstimatorCheck) -> set[str]:
    assert check.passed == all(line.passed is not False for line in check.lines)
    return {line.check for line in check.lines if line.passed is False}


def changed(base: type, change: Callable[[Coefficients], Coefficients], **attributes: Any) -> Any:
    """An estimator with other coefficients."""

    def coefficients(self: Any, log_w: Tensor, *args: Any) -> Coefficients:
        return change(base.coefficients(self, log_w, *args))  # type: ignore[attr-defined]

    return type("Changed", (base,), {"coefficients": coefficients, "follows_value": False, **attributes})


def test_a_right_estimator_passes_every_line() -> None:
    check = check_estimator("stl", num_particles=5, seed=0)
    assert check.passed
    assert [line.check for line in check.lines] == [
        "value",
        "value <= log p(x)",
        "value >= ELBO",
        "gradient of the model",
        "gradient of the guide",
        "loss_and_grads = loss",
        "value at posterior",
        "guide's gradient there, s.d.",
    ]
    assert check["guide's gradient there, s.d."].found < 1e-12


def test_what_is_exact_is_the_oracles() -> None:
    pair = LinearGaussian(seed=4)
    check = check_estimator("iwae", pair, num_particles=3, repeats=30, seed=7)
    torch.manual_seed(7)
    x = pair.simulate(4)
    assert check["value"].exact == pytest.approx(pair.iwae(x, 3).mean().item())
    assert check["value <= log p(x)"].exact == pytest.approx(pair.log_prob(x).mean().item())
    assert check["value >= ELBO"].exact == pytest.approx(pair.elbo(x).mean().item())
    names = [n for n, _ in pair.named_parameters()]
    slopes = dict(zip(names, torch.autograd.grad(pair.iwae(x, 3).mean(), list(pair.parameters())), strict=True))
    norm = torch.cat([slopes[n].flatten() for n in pair.guide_parameters]).norm()
    assert check["gradient of the guide"].exact == pytest.approx(norm.item())


NAIVE = changed(IWAE, lambda c: c._replace(guide=0.0), needs_path=True)
FAULTS: dict[str, tuple[Any, set[str]]] = {
    "no score term in the importance-weighted bound": (NAIVE, {"gradient of the guide"}),
    "the guide's gradient a twentieth too small": (
        changed(elbos.StickingTheLanding, lambda c: c._replace(path=0.95 * c.path)),
        {"gradient of the guide"},
    ),
    "no gradient for the model": (
        changed(elbos.StickingTheLanding, lambda c: c._replace(model=0 * c.model)),
        {"gradient of the model"},
    ),
    "the sum of the weights, not their mean": (
        changed(IWAE, lambda c: c._replace(value=c.value + math.log(5))),
        {"value", "value <= log p(x)", "value at posterior"},
    ),
    "too low by a few hundredths of a nat": (
        changed(elbos.StickingTheLanding, lambda c: c._replace(value=c.value - 0.06)),
        {"value", "value >= ELBO", "value at posterior"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(fault: str) -> None:
    make, lines = FAULTS[fault]
    assert failed(check_estimator(make(num_particles=5), seed=0)) == lines


class Half(Trace):
    """Half the gradient in `loss_and_grads`, where `differentiable_loss` is right."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        (loss / 2).backward()
        return loss.detach()


class Unlike(Trace):
    """`loss` draws something before."""

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        torch.randn(1)
        return super().loss(*args, **kwargs)


def test_faults_of_the_methods() -> None:
    assert failed(check_estimator(Half(), seed=0)) == {"gradient of the model", "gradient of the guide"}
    assert failed(check_estimator(Unlike(num_particles=2), seed=0)) == {"loss_and_grads = loss"}


def test_nan_fails() -> None:
    make = changed(elbos.StickingTheLanding, lambda c: c._replace(value=c.value * math.nan))
    assert {"value", "value <= log p(x)", "loss_and_grads = loss"} <= failed(
        check_estimator(make(), repeats=10, seed=0)
    )


def test_a_closed_form_where_there_is_none_is_found() -> None:
    with pyro.validation_enabled(False):  # else it warns
        theirs = check_estimator(pyro.infer.TraceMeanField_ELBO(), TopDownChain(), seed=0)
    assert {"value", "gradient of the model", "gradient of the guide"} <= failed(theirs)
    assert check_estimator(MeanField(), TopDownChain(), seed=0).passed


def test_no_score_function_for_a_discrete_latent() -> None:
    make = changed(elbos.Reinforce, lambda c: c._replace(score=0.0))
    assert failed(check_estimator(make(num_particles=2), Discrete(), seed=0)) == {"gradient of the guide"}


class Tempered(Trace):
    """An objective of its own: half the ELBO; `slope` is how its gradient errs."""

    bound = "own"
    slope = 1.0

    def differentiable_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().differentiable_loss(*args, **kwargs) / 2
        return loss.detach() + self.slope * (loss - loss.detach())


def test_an_objective_of_its_own_must_have_the_gradient_of_its_value() -> None:
    right, wrong = Tempered(num_particles=2), Tempered(num_particles=2)
    wrong.slope = 0.9
    assert check_estimator(right, seed=0).passed
    assert failed(check_estimator(wrong, seed=0)) == {"gradient of the model", "gradient of the guide"}
    check = check_estimator(right, seed=0)
    assert check["value <= log p(x)"].passed is None
    assert "value" not in {line.check for line in check.lines}
    on_bits = check_estimator(right, BitsAndClasses(), repeats=10, seed=0)  # no path there to take differences along
    assert "gradient of the guide" not in {line.check for line in on_bits.lines}


def test_pyros_estimators_pass() -> None:
    assert check_estimator(pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True), seed=0).passed
    assert check_estimator(pyro.infer.TraceGraph_ELBO(), Discrete(), seed=0).passed


def test_nothing_is_touched() -> None:
    pair = LinearGaussian()
    before = [p.detach().clone() for p in pair.parameters()]
    pair.weight.grad = torch.ones_like(pair.weight)
    pyro.param("mine", torch.ones(2))
    state = torch.get_rng_state()
    first = check_estimator("free_bits", pair, repeats=10, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store()) == ["mine"]
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    assert torch.equal(pair.weight.grad, torch.ones_like(pair.weight))
    assert check_estimator("free_bits", pair, repeats=10, seed=0) == first
    assert check_estimator("free_bits", pair, repeats=10, seed=1) != first


def test_few_right_estimators_fail() -> None:
    """Over many seeds, a line's z exceeds its limit hardly ever, and is not small either."""
    checks = [check_estimator("trace", LinearGaussian(2, 1), repeats=20, seed=seed) for seed in range(40)]
    assert all(check.passed for check in checks)
    z = [check["value"].z or 0.0 for check in checks]
    assert sum(value > 1 for value in z) / len(z) == pytest.approx(0.33, abs=0.25)  # of Student's, two-sided


def test_forms(tmp_path: Path) -> None:
    check = check_estimator(NAIVE(num_particles=5), repeats=20, seed=0)
    assert "Changed(num_particles=5) on LinearGaussian: FAILED" in repr(check)
    assert max(map(len, repr(check).splitlines())) <= 100
    assert len(check.plot().axes[0].patches) == 6
    rows = json.loads(check.save(tmp_path / "check.json").read_text())["lines"]
    assert rows == check.to_dicts()
    assert len(check.save(tmp_path / "check.csv").read_text().splitlines()) == 1 + len(check.lines)
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html, got '\.txt'"):
        check.save(tmp_path / "check.txt")
    with pytest.raises(KeyError, match=r"no line .*bias.*; there are .*value"):
        check["bias"]


OWN: dict[str, tuple[Any, Oracle, set[str]]] = {
    "miwae": (elbos.MIWAE(4, groups=2), Discrete(), {"value", MODEL, GUIDE}),
    "ciwae": (elbos.CIWAE(4, beta=0.3), Discrete(), {"value", MODEL, GUIDE}),
    "renyi": (elbos.Renyi(3, alpha=0.4), Discrete(), {"value", MODEL, GUIDE}),
    "rws": (elbos.RWS(3), Discrete(), {"value", MODEL, GUIDE}),
    "tail_adaptive": (elbos.TailAdaptive(3), TopDownChain(), {"value", MODEL}),
    "tvo": (elbos.TVO(3, betas=(0.0,)), Discrete(), {"value", MODEL, GUIDE}),
    "a KL weight": (elbos.WeightedKL(Trace(2), 0.3), Discrete(), {"value", MODEL, GUIDE}),
    "free bits": (elbos.FreeBits(2, bits=0.4), LinearGaussian(seed=3), {"value", MODEL, GUIDE}),
    "capacity": (elbos.Capacity(2, capacity=1.0, gamma=5.0), LinearGaussian(seed=3), {"value", MODEL, GUIDE}),
    "a relaxed bit": (elbos.Relaxed(2), BitsAndClasses(bits=1, classes=0), {"value", MODEL, GUIDE}),
    "Concrete": (
        elbos.Relaxed(2, prior="relaxed", prior_temperature=0.8),
        BitsAndClasses(bits=1, classes=0),
        {"value", MODEL, GUIDE},
    ),
    "relaxed bits and classes": (elbos.Relaxed(2), BitsAndClasses(), {MODEL, GUIDE}),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_known_of_the_librarys_own_bounds(name: str) -> None:
    objective, pair, lines = OWN[name]
    check = check_estimator(objective, pair, repeats=60, seed=0)
    assert check.passed, check
    assert lines <= {line.check for line in check.lines if line.passed is not None}


def test_the_exact_gradient_of_ranked_weights_is_that_of_quadrature() -> None:
    """Of two particles: the larger weight counts 2/3 and the smaller 1/3."""
    pair = TopDownChain()
    x = pair.simulate(1)
    found = expected(elbos.TailAdaptive(2), pair, x)
    assert found is not None
    assert found.model is not None
    log_w, log_mass = torch.broadcast_tensors(*pair.weights(x))
    mass = log_mass.exp()
    larger = (log_w.detach().unsqueeze(1) - log_w.detach().unsqueeze(0)).sign()
    share = 0.5 + larger / 6  # (M, M, 1): of the first of two
    plain = (2 * mass.unsqueeze(1) * mass.unsqueeze(0) * share * log_w.unsqueeze(1)).sum((0, 1)).mean()
    slopes = [torch.autograd.grad(value, pair.a, retain_graph=True)[0] for value in (found.model, plain)]
    torch.testing.assert_close(*slopes)


class Own(elbos.Reinforce):
    """A baseline that is the mean of the batch itself."""

    def baseline_of(self, log_w: Tensor, *args: Any) -> Tensor:
        return log_w.mean()


def test_a_baseline_that_is_the_batchs_own_mean_shows_in_a_small_batch() -> None:
    assert check_estimator(Own(), Discrete(), repeats=30, seed=0).passed
    assert failed(check_estimator(Own(), Discrete(), copies=1, repeats=600, seed=0)) == {GUIDE}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"copies must be at least 1, got 0"):
        check_estimator("trace", copies=0, seed=0)
    with pytest.raises(ValueError, match=r"at least 10 .* got 2"):
        check_estimator("trace", repeats=2, seed=0)
    with pytest.raises(ValueError, match="'c' is drawn from Categorical"):
        check_estimator("stl", Discrete(), seed=0)
    other = type("Other", (Trace,), {"bound": "evidence"})
    with pytest.raises(ValueError, match=r"Other\.bound must be 'elbo', 'iwae' or 'own', got 'evidence'"):
        check_estimator(other(), seed=0)
    with pytest.raises(NotImplementedError, match="Oracle must define simulate"):
        check_estimator("trace", Oracle(), seed=0)


def test_the_example_of_an_own_estimator() -> None:
    class Naive(SurrogateELBO):
        bound = "iwae"
        needs_path = True

        def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
            w = log_w.softmax(0)
            return Coefficients(log_w.logsumexp(0) - math.log(len(log_w)), model=w, path=w)

    assert failed(check_estimator(Naive(num_particles=10), seed=0)) == {"gradient of the guide"}
    assert check_estimator(Naive(num_particles=1), seed=0).passed  # which is stl
