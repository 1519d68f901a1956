"""What a guide observes, or adds by `pyro.factor`, is a term of the loss: its parameters have their gradient."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae import elbo as elbos

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
T = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
Q = 0.6


def model(x: Tensor, t: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("t", dist.Bernoulli(0.4), obs=t)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def observes(x: Tensor, t: Tensor) -> None:
    q = pyro.param("q", torch.tensor(Q))
    with pyro.plate("data", len(x)):
        pyro.sample("t", dist.Bernoulli(q), obs=t, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(0.4 * x, 0.8))


def adds(x: Tensor, t: Tensor) -> None:
    q = pyro.param("q", torch.tensor(Q))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 0.8))
        pyro.factor("t", dist.Bernoulli(q).log_prob(t), has_rsample=True)


NAMES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("trace", "mean_field", "trace_graph")},
    **{name: {"num_particles": 2} for name in ("stl", "rws")},
    **{name: {"num_particles": 3} for name in ("iwae", "dreg", "ciwae", "renyi", "vimco", "tail_adaptive")},
    **{name: {"num_particles": 4, "groups": 2} for name in ("miwae", "piwae")},
    "reinforce": {"every_site": True},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("guide", [observes, adds])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_term_that_reads_no_latent_is_exact(name: str, guide: Any) -> None:
    """Of all particles it is the same, so that their weights, which add up to one, leave it as it is."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    loss = elbos.make(name, **NAMES[name]).differentiable_loss(model, guide, X, T)
    (grad,) = torch.autograd.grad(loss, [pyro.get_param_store()._params["q"]])
    assert float(grad) == pytest.approx(float((T / Q - (1 - T) / (1 - Q)).sum()), rel=1e-4)
