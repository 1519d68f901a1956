"""Runs of a pair that leave no trace."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.pair.untouched import kept_buffers, kept_store


class Normalized(nn.Module):
    """A pair whose encoder has running averages."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("norm", self.norm)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.norm(x), 1.0).to_event(1))


def test_what_trains_nothing_moves_no_running_average() -> None:
    """`SVI.prepare` shows them no batch; a step of two particles, drawn together, one, whatever was tried before it."""
    pair, x = Normalized(), torch.randn(8, 3) + 5
    svi = pv.SVI(pair.model, pair.guide, loss=pv.elbo.make("mean_field", num_particles=2))
    svi.prepare(x)
    assert pair.norm.state_dict()["num_batches_tracked"] == 0
    assert pair.norm.running_mean is not None
    assert not pair.norm.running_mean.any()
    svi.step(x)
    torch.testing.assert_close(pair.norm.running_mean, 0.1 * x.mean(0))
    assert pair.norm.state_dict()["num_batches_tracked"] == 1


def test_buffers_come_back_after_an_error_too() -> None:
    net = nn.BatchNorm1d(2)

    def program(x: Tensor) -> None:
        net(x)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), kept_buffers(program):
        program(torch.randn(4, 2))
    assert net.state_dict()["num_batches_tracked"] == 0


def test_the_store_comes_back() -> None:
    """Values changed in place, parameters put in another's place, made and deleted; the tensors are the same."""
    pyro.clear_param_store()
    store = pyro.get_param_store()
    a: Any = pyro.param("a", torch.ones(2), constraint=constraints.positive)
    pyro.param("b", torch.zeros(1))
    kept = a.unconstrained()
    with kept_store():
        pyro.param("c", torch.ones(1))
        with torch.no_grad():
            a.unconstrained().fill_(5.0)
        del store["b"]
    assert list(store.keys()) == ["a", "b"]
    again: Any = pyro.param("a")
    assert again.unconstrained() is kept
    assert pyro.param("a").tolist() == [1.0, 1.0]
    with kept_store():
        pyro.get_param_store()["b"] = torch.full((1,), 3.0)
    assert pyro.param("b").tolist() == [0.0]
