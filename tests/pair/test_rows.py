"""Parameters with a row for each datum, met by other data."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.pair.rows import RowsOfOtherData, rows_of_others

X, OTHERS = torch.randn(64), torch.randn(30)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(64))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    "question",
    [
        lambda: pv.bound(model, guide, OTHERS),
        lambda: pv.log_marginal(model, guide, OTHERS, num_samples=2),
        lambda: pv.latent_report(model, guide, OTHERS),
        lambda: pv.reconstruct(model, guide, OTHERS),
        lambda: pv.compare_elbos(model, guide, OTHERS, repeats=2),
        lambda: pv.SVI(model, guide).step(OTHERS),
        lambda: pv.SVI(model, guide, loss=pyro.infer.Trace_ELBO()).step(OTHERS),
    ],
)
def test_the_parameter_is_named(question: Callable[[], object]) -> None:
    guide(X)
    with pytest.raises(RowsOfOtherData, match=r"'loc' of shape \(64,\), with a row for each datum of 64, and 30 data"):
        question()


def test_only_where_a_parameter_has_the_size() -> None:
    shapes = {"net$$$weight": (64, 2), "scale": (1, 30), "loc": (5, 64)}
    assert "'loc'" in rows_of_others(shapes, 30, {64, 30, 1})
    assert rows_of_others(shapes, 30, {30, 1, 7}) == ""

    def wrong(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(7), 1.0))

    with pytest.raises(ValueError, match="30 vs 7"):
        pv.elbo.make("trace").loss(model, wrong, OTHERS)
