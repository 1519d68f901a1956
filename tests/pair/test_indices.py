"""Plates whose indices a model is given, and a guide draws: other data's parameters are never used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyro_vae as pv

N = 40
X = torch.arange(float(N)) / 10


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


def model(x: Tensor, index: Tensor) -> None:
    with pyro.plate("data", N, subsample=index):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x)


def draws(x: Tensor, index: Tensor) -> None:
    loc = pyro.param("loc", X.clone())
    with pyro.plate("data", N, subsample_size=len(x)) as chosen:
        pyro.sample("z", dist.Normal(loc[chosen], 0.1))


def is_given(x: Tensor, index: Tensor) -> None:
    loc = pyro.param("loc", X.clone())
    with pyro.plate("data", N, subsample=index):
        pyro.sample("z", dist.Normal(loc[index], 0.1))


def given_in_reverse(x: Tensor, index: Tensor) -> None:
    is_given(x, index.flip(0))


def plates(x: Tensor, index: Tensor) -> Any:
    return pyro.plate("data", N, subsample=index)


INDEX = torch.tensor([3, 17, 25, 30, 8])


@pytest.mark.parametrize("elbo", ["mean_field", "trace", "stl", "iwae", "dreg"])
@pytest.mark.parametrize("guide", [draws, AutoNormal(model)], ids=["draws", "autoguide"])
def test_other_indices_are_refused(guide: Any, elbo: str) -> None:
    with pytest.raises(ValueError, match="plate 'data' is given indices, `subsample=`, and the guide's has others"):
        pv.SVI(model, guide, loss=pv.elbo.make(elbo)).step(X[INDEX], INDEX)


@pytest.mark.parametrize("elbo", ["mean_field", "iwae"])
def test_the_same_indices_are_right(elbo: str) -> None:
    """The guide is nearly the posterior, so that both bounds are nearly N times log p(x) of a datum."""
    svi = pv.SVI(model, is_given, lambda p: torch.optim.SGD(p, lr=0.0), pv.elbo.make(elbo))
    losses = [float(svi.step(X[INDEX], INDEX)) for _ in range(100)]
    exact = dist.Normal(0.0, (100 + 0.1**2) ** 0.5).log_prob(X[INDEX]).mean()
    assert sum(losses) / 100 == pytest.approx(-N * float(exact), rel=0.01)
    assert pv.preflight(model, is_given, X[INDEX], INDEX).ok


def test_preflight_says_so() -> None:
    for guide in (draws, given_in_reverse, AutoNormal(model)):
        with pytest.raises(ValueError, match=r"plate 'data' is given indices(.|\n)*create_plates=") as info:
            pv.preflight(model, guide, X[INDEX], INDEX)
        assert "the model raised" in str(info.value)
    report = pv.preflight(model, AutoNormal(model, create_plates=plates), X[INDEX], INDEX)
    assert report.issues == []


def test_a_guide_may_draw_what_the_model_follows() -> None:
    """A model that draws its own indices has those of the guide, and looks its data up."""

    def follows(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x[index])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", X.clone())
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("z", dist.Normal(loc[index], 0.1))

    assert pv.preflight(follows, guide, X).ok
    assert float(pv.SVI(follows, guide, loss=pv.elbo.make("trace")).step(X)) < 1000


@pytest.mark.usefixtures("recorded")
def test_indices_that_are_made_anew_compile() -> None:
    """No value is looked at where both are given."""

    def again(x: Tensor, index: Tensor) -> None:
        is_given(x, index.clone())

    svi = pv.SVI(model, again, loss=pv.elbo.make("trace"), compile=True)
    for _ in range(3):
        svi.step(X[INDEX], INDEX)
    assert str(svi.compilation).startswith("compiled")
