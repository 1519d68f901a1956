"""What is planned once for a pair and its data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair.planning import default_memory, plan_for, rows_that_fit


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_each_datum(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: x / 2)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


@pytest.mark.parametrize("n", [1, 3, 5, 40])
def test_data_that_can_be_taken_apart(n: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(n)
    state = torch.get_rng_state()
    plan = plan_for(pair.model, pair.guide, ((x,), {}))
    assert torch.equal(torch.get_rng_state(), state)
    assert (plan.whole, plan.num_data, len(plan.example_data[0][0])) == (False, n, min(n, 5))
    assert plan.particles.vectorize
    assert (plan.particles.nesting, plan.plate.dim, plan.plate.size) == (1, -1, min(n, 5))
    assert plan.data_at_once(100, 30) == 3
    assert plan.data_at_once(10, 30) == 1
    pieces = list(plan.pieces(6, 2))
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(n))
    assert max(stop - start for start, stop in pieces) <= 3


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_parameters_for_each_datum_need_all_data_at_once(n: int) -> None:
    x = torch.randn(n)
    guide_of_each_datum(x)
    plan = plan_for(model, guide_of_each_datum, ((x,), {}))
    assert plan.whole
    assert len(plan.example_data[0][0]) == n
    assert list(plan.pieces(1, 100)) == [(0, n)]


@pytest.mark.parametrize("n", [3, 1200])
def test_questions_to_a_pair_with_parameters_for_each_datum(n: int) -> None:
    x = torch.randn(n, dtype=torch.float64)
    exact = dist.Normal(torch.zeros(n).double(), 2**0.5).log_prob(x)
    guide_of_each_datum(x)
    kl = pv.bound(model, guide_of_each_datum, x, memory=None if n > 1000 else 1).kl
    assert kl.shape == (n,)
    # as many samples as do not fit beside each other with all data in the least memory
    result = pv.log_marginal(model, guide_of_each_datum, x, num_samples=30, memory=1)
    torch.testing.assert_close(result.log_prob, exact)
    summary = pv.summarize(model, guide_of_each_datum, x, num_samples=3)
    assert summary.num_dims == 1
    assert summary.log_prob == pytest.approx(float(exact.mean()))


def test_a_pair_that_takes_no_leading_dimension_is_warned_of_once() -> None:
    net = torch.nn.Linear(2, 4)

    def flat(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z.reshape(len(x), 2)), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    data = (torch.randn(9, 4),), dict[str, object]()
    with pytest.warns(UserWarning, match="one at a time") as caught:
        plan = plan_for(flat, guide, data)
    assert len(caught) == 1
    assert not plan.particles.vectorize
    assert not plan_for(flat, guide, data, vectorize=False).particles.vectorize  # no warning: it was asked for


def test_a_site_outside_the_plate() -> None:
    def outside(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        model(x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="'mu' of the model is not inside a plate over the 7 data"):
        plan_for(outside, guide, ((torch.zeros(7),), {}))


def test_rows_that_fit() -> None:
    cpu = torch.device("cpu")

    def run() -> Tensor:
        return torch.ones(10, 1000) * 2  # 4000 bytes a row

    assert rows_that_fit(run, 10, cpu, 8 * 4000 * 7) == 7
    assert rows_that_fit(run, 10, cpu, 8 * 4000 * 7, copies=2) == 3
    assert rows_that_fit(run, 10, cpu, 8 * 4000 * 7, cpu_rows=5) == 5
    assert rows_that_fit(run, 10, cpu, 8 * 4000 * 7, cpu_memory=8 * 4000 * 2) == 2
    assert rows_that_fit(run, 10, cpu, 1) == 1
    assert rows_that_fit(run, 10, cpu) == default_memory(cpu) // (8 * 4000)
