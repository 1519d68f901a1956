"""Plates whose size or whose indices a pair leaves open."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import easy_guide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoDiscreteParallel, AutoNormal
from torch import Tensor

import pyro_vae as pv
from pyro_vae.pair.tracing import trace_pair

X = torch.linspace(-2, 2, 30)
LOG_P = dist.Normal(0.0, 2**0.5).log_prob(X)  # z ~ N(0, 1), x ~ N(z, 1)


def minibatch_model(x: Tensor) -> None:
    with pyro.plate("data", 30, subsample_size=10) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def minibatch_guide(x: Tensor) -> None:
    with pyro.plate("data", 30, subsample_size=10) as index:
        pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))


def test_questions_look_at_all_data_of_a_plate_that_draws_some() -> None:
    pair = minibatch_model, minibatch_guide
    assert torch.allclose(pv.log_marginal(*pair, X, num_samples=3).log_prob, LOG_P, atol=1e-5)
    assert torch.allclose(pv.bound(*pair, X, num_samples=2000, seed=0).elbo, LOG_P, atol=0.1)
    assert pv.latent_report(*pair, X).num_data == 30
    assert abs(pv.fit_local(minibatch_model, None, X, max_steps=300, seed=0).mean - float(LOG_P.mean())) < 0.02
    assert pv.reconstruct(*pair, X).shape == (30,)


def test_minibatches_of_elements_count_whole() -> None:
    x = torch.linspace(-1, 1, 40).reshape(4, 10)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 4, dim=-2), pyro.plate("elements", 10, subsample_size=2, dim=-1) as drawn:
            index = torch.as_tensor(drawn)
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([4, 2] if len(index) == 2 else [4, 10]), obs=x[:, index])

    exact = dist.Normal(0.0, 1.0).log_prob(x).sum(1)
    assert torch.allclose(pv.log_marginal(model, lambda x: None, x, num_samples=2).log_prob, exact, atol=1e-5)


def test_a_weighed_minibatch_is_not_drawn_again() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    bound = pv.bound(model, lambda x: None, X)
    assert torch.allclose(bound.elbo, dist.Normal(0.0, 1.0).log_prob(X))


def test_training_draws_its_minibatches() -> None:
    torch.manual_seed(0)
    losses = {round(float(pv.SVI(minibatch_model, trained, loss=Trace_ELBO()).step(X))) for _ in range(5)}
    assert len(losses) > 1


def trained(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", 30, subsample_size=10) as index:
        pyro.sample("z", dist.Normal(loc * x[index], 0.5**0.5))


def test_particles_of_a_subsampled_plate_run_together(recwarn: pytest.WarningsRecorder) -> None:
    pv.SVI(minibatch_model, trained, loss=pv.elbo.make("mean_field", num_particles=4)).step(X)
    assert not [w for w in recwarn if "particle" in str(w.message)]


def test_plates_without_a_size() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    frames = trace_pair(model, guide, (X,)).guide.nodes["z"]["cond_indep_stack"]
    assert [(f.name, f.size, f.full_size) for f in frames] == [("data", 30, 30)]
    assert torch.allclose(pv.log_marginal(model, guide, X, num_samples=3).log_prob, LOG_P, atol=1e-5)
    torch.manual_seed(0)
    ours = pv.elbo.make("trace").loss(model, guide, X)
    torch.manual_seed(0)
    assert abs(float(ours) - Trace_ELBO().loss(model, guide, X)) < 1e-3


def test_an_easy_guide_opens_the_plates_of_its_model() -> None:
    x = torch.randn(8, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("w_plate", 3):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("v_plate", 2):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + v.sum(), 1.0).expand([len(x), 3]).to_event(1), obs=x)

    @easy_guide(model)
    def guide(self: Any, x: Tensor) -> None:
        group = self.group(match="[vw]")
        loc = pyro.param("loc", lambda: torch.zeros(group.event_shape))
        group.sample("ws", dist.Normal(loc, 1.0).to_event(1))

    guide(x)
    frames = trace_pair(model, guide, (x,)).guide.nodes["w"]["cond_indep_stack"]
    assert [(f.name, f.size) for f in frames] == [("w_plate", 3)]
    assert not [issue for issue in pv.preflight(model, guide, x, elbo="trace").issues if issue.level == "error"]


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoDiscreteParallel, AutoNormal])
def test_autoguides_of_subsampled_plates(kind: type) -> None:
    centers = torch.tensor([0.0, 5.0])

    def plate(x: Tensor, index: Tensor) -> pyro.plate:
        return pyro.plate("data", 20, subsample=index)

    def model(x: Tensor, index: Tensor) -> None:
        with plate(x, index):
            if kind is AutoDiscreteParallel:
                loc = centers[pyro.sample("c", dist.Categorical(torch.ones(2) / 2))]
            else:
                loc = pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = kind(model, create_plates=plate) if kind is not AutoDiagonalNormal else kind(model)
    svi = pv.SVI(model, guide, loss=pv.elbo.make("enum" if kind is AutoDiscreteParallel else "trace"))
    if kind is AutoNormal:
        svi.step(X[:3], torch.tensor([4, 1, 7]))
        assert guide.locs.c.shape == (20,)
        return
    with pytest.raises(ValueError, match=r"parameters for 3 elements of the plate|'data' is given indices"):
        svi.step(X[:3], torch.tensor([4, 1, 7]))
