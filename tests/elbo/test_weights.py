"""A weight on the KL: under any ELBO, and nowhere else."""

from __future__ import annotations

import math

import pyro.infer
import pytest
import torch
from pyro import poutine

from pyro_vae.elbo import Cyclical, MeanField, TensorELBO, Trace, Warmup, WeightedKL
from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.oracles import Discrete, LinearGaussian
from pyro_vae.training.svi import SVI
from tests.helpers.linear_gaussian import check_mean, exact_gradient, gradient


@pytest.mark.parametrize("weight", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("estimator", [Trace, MeanField, pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO])
def test_the_kl_counts_weight_times(estimator: type[TensorELBO], weight: float) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = WeightedKL(estimator(), weight)
    draws = torch.stack([gradient(elbo, pair, x) for _ in range(200)])
    check_mean(draws, exact_gradient(-pair.elbo(x, weight).sum(), pair))


def test_the_score_function_knows_the_weight() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    draws = torch.stack([gradient(WeightedKL(Trace(), 2.5), pair, x) for _ in range(500)])
    check_mean(draws, exact_gradient(-pair.elbo(x, 2.5).sum(), pair))


@pytest.mark.parametrize(
    "wrapped", [pyro.infer.TraceGraph_ELBO, lambda: pyro.infer.RenyiELBO(alpha=0, num_particles=2)]
)
def test_an_elbo_without_a_differentiable_loss_can_be_wrapped(wrapped: type) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    losses = []
    for elbo in (wrapped(), WeightedKL(wrapped(), 1.0)):
        torch.manual_seed(1)
        losses.append(float(SVI(pair.model, pair.guide, loss=elbo).evaluate_loss(x)))
        torch.manual_seed(1)
        assert float(SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.0), elbo).step(x)) < math.inf
    assert losses[0] == pytest.approx(losses[1])


def test_a_multi_sample_bound_weights_each_particle() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = WeightedKL(
        pyro.infer.RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1), 0.0
    )
    torch.manual_seed(1)
    loss = elbo.loss(pair.model, pair.guide, x)
    torch.manual_seed(1)
    z = pair.q(x).rsample((5,))  # (K, N, L)
    given = torch.distributions.Normal(z @ pair.weight.T + pair.bias, pair.scale).log_prob(x).sum(-1)
    expected = -(given.logsumexp(0) - math.log(5)).sum()
    assert loss == pytest.approx(expected.item())


def test_the_weight_can_change_between_steps() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = WeightedKL(MeanField(), 0.0)
    losses = []
    for weight in (0.0, 1.0, 3.0):
        elbo.weight = weight
        torch.manual_seed(1)
        losses.append(elbo.loss(pair.model, pair.guide, x))
    kl = pair.kl(x).detach().sum()
    torch.testing.assert_close(torch.stack(losses) - losses[0], kl * torch.tensor([0.0, 1.0, 3.0]).double())


def test_particles_are_tried_once_for_a_weighted_pair() -> None:
    pair, calls = LinearGaussian(), []
    x = pair.simulate(3)

    def guide(x: torch.Tensor) -> None:
        calls.append(len(x))
        pair.guide(x)

    elbo = WeightedKL(Trace(num_particles=4))
    elbo.loss(pair.model, guide, x)
    calls.clear()
    elbo.loss(pair.model, guide, x)
    assert len(calls) == 1


def test_scales_never_reach_an_evaluation() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    programs = [poutine.scale(p, scale=0.1) for p in (pair.model, pair.guide)]
    for measure in (bound, log_marginal):
        plain, scaled = measure(pair.model, pair.guide, x, seed=1), measure(*programs, x, seed=1)
        assert scaled.mean == plain.mean


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_the_weight_is_a_number_from_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be a"):
        WeightedKL(MeanField(), weight)


def test_only_an_elbo_can_be_wrapped() -> None:
    with pytest.raises(TypeError, match=r"elbo must be a pyro.infer.ELBO object, got 'trace': use pv.elbo.make"):
        WeightedKL("trace")  # type: ignore[arg-type]


def test_warm_up_rises_then_stays() -> None:
    schedule = Warmup(4, start=0.2, end=2.0)
    assert [schedule(e) for e in (0, 2, 4, 9)] == pytest.approx([0.2, 1.1, 2.0, 2.0])
    assert schedule(schedule.settles) == schedule(schedule.settles + 100)


def test_cycles_rise_again_then_stay() -> None:
    schedule = Cyclical(period=4, cycles=3, rise=0.5, end=2.0)
    assert [schedule(e) for e in (0, 1, 2, 3, 4, 5, 6)] == pytest.approx([0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0])
    after = [schedule(schedule.settles + e) for e in (0, 1, 1.9, 2, 50)]
    assert after == [2.0] * 5
    assert schedule(schedule.settles - 0.1) < 2.0


@pytest.mark.parametrize(
    "make", [lambda: Warmup(0), lambda: Warmup(3, end=-1), lambda: Cyclical(0), lambda: Cyclical(3, rise=0)]
)
def test_schedules_refuse_what_they_cannot_run(make: type) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()
