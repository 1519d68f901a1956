"""Unreliable estimates of log p(x) are found and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import AIS, log_marginal, repair
from pyro_vae.oracles import LinearGaussian

PAIR = LinearGaussian()


def partly_narrow(x: Tensor) -> None:
    """A guide that is good where the first coordinate is negative, and far too narrow elsewhere."""
    p = PAIR.posterior(x)
    width = torch.where(x[:, :1] < 0, 1.2, 0.15)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(p.mean, width * p.variance.sqrt()).to_event(1))


def better(*rows: Tensor) -> Callable[..., Any]:
    assert (rows[0][:, 0] >= 0).all(), "rows that need no repair"
    return PAIR.wide_guide


@pytest.mark.parametrize("how", [AIS(num_temperatures=20, leapfrog_steps=3), better])
def test_bad_points_move_to_the_truth(how: Any) -> None:
    x = PAIR.simulate(20)
    bad = (x[:, 0] >= 0).nonzero().squeeze(-1)
    result = log_marginal(PAIR.model, partly_narrow, x, num_samples=1000, seed=0)
    assert result.unreliable.tolist() == bad.tolist()
    mended = repair(PAIR.model, partly_narrow, x, result=result, how=how, seed=0)
    exact = PAIR.log_prob(x).detach()
    assert mended.index.tolist() == bad.tolist()
    assert mended.after is not None
    assert float((mended.before.log_prob - exact[bad]).abs().mean()) > 0.3
    assert float((mended.after.log_prob - exact[bad]).abs().mean()) < 0.15
    assert torch.equal(mended.result.log_prob[bad], mended.after.log_prob)
    good = (x[:, 0] < 0).nonzero().squeeze(-1)
    assert torch.equal(mended.result.log_prob[good], result.log_prob[good])
    assert len(mended.result.unreliable) == 0
    rows = mended.to_dicts()
    assert [row["index"] for row in rows] == bad.tolist()
    assert f"{len(bad)} of 20 estimates repaired, 0 still unreliable" in repr(mended)


def test_more_samples() -> None:
    x = PAIR.simulate(10)
    result = log_marginal(PAIR.model, partly_narrow, x, num_samples=100, seed=0)
    mended = repair(PAIR.model, partly_narrow, x, result=result, seed=1)
    assert mended.after is not None
    assert mended.after.num_samples == 1000
    assert set(mended.result.counts.tolist()) == {100, 1000}


def test_nothing_to_repair() -> None:
    x = PAIR.simulate(3)
    result = log_marginal(PAIR.model, PAIR.exact_guide, x, num_samples=100)
    mended = repair(PAIR.model, PAIR.exact_guide, x, result=result)
    assert mended.after is None
    assert mended.result is result
    assert "0 of 3 estimates repaired" in repr(mended)


def test_what_is_refused() -> None:
    x = PAIR.simulate(3)
    result = log_marginal(PAIR.model, PAIR.guide, x, num_samples=10)
    with pytest.raises(ValueError, match="the result is of 3 data, got 2 data"):
        repair(PAIR.model, PAIR.guide, x[:2], result=result)
    with pytest.raises(ValueError, match="how must be 'samples', 'ais' or a function"):
        repair(PAIR.model, PAIR.guide, x, result=result, how="prayer")
    with pytest.raises(ValueError, match="for given data, got 'bdmc'"):
        repair(PAIR.model, PAIR.guide, x, result=result, how="bdmc")
    with pytest.raises(TypeError, match=r"repair\(\) got the keyword 'num_sample'.*did you mean 'num_samples'"):
        repair(PAIR.model, PAIR.guide, x, result=result, num_sample=3)
