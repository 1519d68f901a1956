"""Loss functions as objectives: as Pyro's SVI takes them."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7))


def by_hand(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
    drawn: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    run: Any = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    return drawn.log_prob_sum() - run.log_prob_sum()


def trained(elbo: Any, **options: Any) -> float:
    pyro.clear_param_store()
    pv.fit(model, guide, X, elbo=elbo, epochs=3, lr=0.05, seed=0, progress=False, **options)
    return float(pyro.param("slope").detach())


@pytest.mark.parametrize("options", [{}, {"kl_weight": 0.5}, {"accumulate": 2}])
def test_fit_trains_by_a_function_as_by_the_estimator_that_it_is(options: dict[str, Any]) -> None:
    plain = trained("trace", **options)
    assert trained(by_hand, **options) == pytest.approx(plain, abs=1e-6)
    assert trained(Trace_ELBO().differentiable_loss, **options) == pytest.approx(plain, abs=1e-6)


def test_a_method_of_an_elbo_stands_for_it() -> None:
    elbo = Trace_ELBO(num_particles=3)
    assert pv.elbo.make(elbo.loss_and_grads) is elbo
    assert pv.elbo.make(elbo) is elbo


def test_compare_elbos_takes_a_function_that_says_which_bound_it_is() -> None:
    pyro.clear_param_store()
    guide(X)
    options: dict[str, Any] = {"num_particles": [1], "repeats": 20, "num_samples": 100, "seed": 0}
    with pytest.raises(ValueError, match=r"function\.bound = 'elbo'"):
        pv.compare_elbos(model, guide, X, estimators=[by_hand], **options)

    def elbo(*args: Any) -> Any:
        return by_hand(*args)

    elbo.bound = "elbo"  # type: ignore[attr-defined]
    ours, theirs = pv.compare_elbos(model, guide, X, estimators=[elbo, "trace"], **options).rows
    assert (ours.estimator, theirs.estimator) == ("elbo", "trace")
    assert ours.value == pytest.approx(theirs.value)
    assert ours.guide_variance == pytest.approx(theirs.guide_variance)


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="must return a tensor that can be differentiated, got float"):
        trained(lambda *args: by_hand(*args).item(), preflight=False)
    with pytest.raises(ValueError, match="early_stopping compares ELBOs"):
        trained(by_hand, early_stopping=2)
    with pytest.raises(TypeError, match=r"a loss function, got ABCMeta"):
        pv.elbo.make(Trace_ELBO)
    with pytest.raises(ValueError, match="elbo is an object, FunctionLoss"):
        trained(by_hand, num_particles=2)
    assert pv.preflight(model, guide, X, elbo=by_hand).ok
