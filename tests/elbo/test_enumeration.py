"""Sums over discrete latents: guides in another order than the model, and plates."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL, make
from pyro_vae.oracles import Grid
from tests.helpers.estimator_gradients import check, gradients

X = torch.tensor([0.7, 2.0], dtype=torch.float64)


class Backwards(nn.Module):
    """The model draws a level and then a gate of it; the guide sums over the gate and draws the level given it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor([0.4, -0.7], dtype=torch.float64))
        self.level = nn.Parameter(torch.tensor([0.3, 1.1], dtype=torch.float64))
        self.slope = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
            gate = pyro.sample("gate", dist.Bernoulli(logits=self.slope * level))
            pyro.sample("x", dist.Normal(level + gate, 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.gate[0] + self.gate[1] * x
            gate = pyro.sample("gate", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("level", dist.Normal(self.level[0] * x + self.level[1] * gate, 0.6))

    def exact(self, x: Tensor, weight: float) -> Tensor:
        """By quadrature over the level."""
        points, mass = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
        total, log_q = x.new_zeros(()), self.gate[0] + self.gate[1] * x
        for gate in (0.0, 1.0):
            turn = nn.functional.logsigmoid(log_q if gate else -log_q)
            level = self.level[0] * x + self.level[1] * gate + 0.6 * points.unsqueeze(-1)
            at = self.slope * level
            prior = nn.functional.logsigmoid(at if gate else -at) - 0.5 * level.square()
            guide = turn - 0.5 * points.square().unsqueeze(-1) - math.log(0.6)
            given = -0.5 * ((x - level - gate) / 0.7).square() - math.log(0.7) - 0.5 * math.log(2 * math.pi)
            value = turn.exp() * (given + weight * (prior - guide))
            total = total + (mass / mass.sum() @ value).sum()
        return total


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_a_guide_that_sums_first_what_the_model_draws_last(weight: float) -> None:
    pair = Backwards()
    exact = pair.exact(X, weight)
    check(WeightedKL(make("enum"), weight), pair, X, exact, gradients(exact, pair))


def test_a_conflict_of_the_guide_s_own_is_still_named() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            bit = torch.zeros_like(x)
            for step in pyro.markov(range(3), history=0):
                bit = pyro.sample(f"s{step}", dist.Bernoulli(logits=bit), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="Enumeration dim conflict at site"):
        make("enum", max_plate_nesting=1).loss(guide, guide, X)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_a_score_function_in_an_inner_plate_is_not_biased_in_silence() -> None:
    pair = Grid()
    text = r"'x' stands outside of the plate 'parts' in which 'bits' is drawn.*to_event"
    with pytest.warns(RuntimeWarning, match=text):
        make("enum", max_plate_nesting=2).loss(pair.model, pair.guide, pair.simulate(3))


def bits(x: Tensor, observe: bool) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        with pyro.plate("parts", 2, dim=-2):
            pyro.sample("b", dist.Bernoulli(logits=z.expand(2, len(x))))
            if observe:
                pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x.expand(2, len(x)))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_no_warning_where_nothing_stands_outside() -> None:
    loss = make("enum", max_plate_nesting=2).loss(lambda x: bits(x, True), lambda x: bits(x, False), X)
    assert loss == pytest.approx(2 * float((0.5 * X.square() + 0.5 * math.log(2 * math.pi)).sum()))
