"""What minibatches would train wrongly is refused, and what they train rightly is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.training.fitting import fit

N = 40
X = torch.randn(N, generator=torch.Generator().manual_seed(0)) + 0.7
EXACT = (N + 1) ** -0.5  # the posterior's standard deviation


def pair_of(plate: Callable[[Tensor], Any], scale: Callable[[Tensor], float] = lambda x: 1.0) -> tuple[Any, Any]:
    """The mean of a normal: one latent that all data share."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with plate(x), poutine.scale(scale=scale(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        sd = pyro.param("sd", torch.tensor(EXACT), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.7)), sd))

    return model, guide


def plain(x: Tensor) -> Any:
    return pyro.plate("data", len(x))


@pytest.mark.parametrize("data", [X, DataLoader(TensorDataset(X), batch_size=10)], ids=["tensor", "loader"])
def test_a_latent_of_all_data_is_refused_in_minibatches(data: Any) -> None:
    said = r"'mu'.*`with pyro.plate\('data', 40, subsample_size=len\(x\)\):`.*batch_size=40"
    with pytest.raises(ValueError, match=said):
        fit(*pair_of(plain), data, epochs=1, batch_size=10, progress=False)
    assert "sd" not in pyro.get_param_store()  # before any step


RIGHT: dict[str, Any] = {
    "all at once": (plain, {"batch_size": N}),
    "subsampled plate": (lambda x: pyro.plate("data", N, subsample_size=len(x)), {"batch_size": 10}),
    "subsample": (lambda x: pyro.plate("data", N, subsample=x), {"batch_size": 10}),
}


@pytest.mark.parametrize("how", RIGHT)
def test_what_is_advised_gives_the_exact_posterior(how: str) -> None:
    plate, options = RIGHT[how]
    model, guide = pair_of(plate)
    fit(model, guide, X, steps=600, lr=0.02, lr_schedule="linear", seed=0, progress=False, **options)
    assert float(pyro.param("sd").detach()) == pytest.approx(EXACT, rel=0.1)
    assert float(pyro.param("loc").detach()) == pytest.approx(float(X.sum()) / (N + 1), abs=0.05)


def test_data_that_are_scaled_up_by_hand_are_let_alone() -> None:
    history = fit(*pair_of(plain, lambda x: N / len(x)), X, epochs=1, batch_size=10, progress=False)
    assert len(history) == 1


@pytest.mark.parametrize("auto", [AutoNormal, AutoDelta, AutoDiagonalNormal])
@pytest.mark.parametrize(("num_data", "size"), [(23, 10), (64, 8)])
def test_autoguides_with_rows_are_refused_in_minibatches(auto: Any, num_data: int, size: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def run(batch_size: int) -> Any:
        return fit(model, auto(model), torch.randn(num_data), epochs=1, batch_size=batch_size, progress=False)

    with pytest.raises(ValueError, match=rf"{auto.__name__} has parameters for each datum .*batch_size={num_data}, "):
        run(size)
    pyro.clear_param_store()
    assert math.isfinite(run(num_data)[-1].train_elbo)


def test_an_autoguide_of_another_number_of_data() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    guide(X[:8])
    with pytest.raises(ValueError, match=r"AutoNormal has parameters for each datum \(it was set up on 8 data"):
        fit(model, guide, X, epochs=1, batch_size=8, progress=False)


def test_rows_that_a_program_makes_are_refused_in_minibatches() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("rows", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    for options in ({"batch_size": 10}, {"batch_size": N, "accumulate": 2}):
        with pytest.raises(ValueError, match=r"the pair has parameters for each datum \(rows\)"):
            fit(model, guide, X, epochs=1, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("auto", [AutoNormal, AutoDelta, AutoDiagonalNormal])
def test_autoguides_of_shared_latents_are_let_alone(auto: Any) -> None:
    model, _ = pair_of(lambda x: pyro.plate("data", N, subsample_size=len(x)))
    assert math.isfinite(fit(model, auto(model), X, epochs=2, batch_size=10, progress=False)[-1].loss)


def test_groups_and_loops_are_told_apart() -> None:
    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[int(i)])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))

    assert len(fit(model, guide, X, elbo="trace", steps=1, batch_size=10, progress=False, preflight=False)) == 1

    def grouped(x: Tensor) -> None:
        with pyro.plate("groups", 8):  # as many as the data that fit looks at
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu.mean(), 1.0), obs=x)

    def of_groups(x: Tensor) -> None:
        with pyro.plate("groups", 8):
            pyro.sample("mu", dist.Normal(pyro.param("locs", torch.zeros(8)), 1.0))

    with pytest.raises(ValueError, match="all data share the latent site 'mu'"):
        fit(grouped, of_groups, X, elbo="trace", steps=1, batch_size=10, progress=False, preflight=False)


def normalizing() -> tuple[nn.Module, Any, Any]:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + x.new_zeros(3), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), 0.5))

    return encoder, model, guide


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (torch.randn(21, 3), {"batch_size": 10}),
        (torch.randn(22, 3), {"batch_size": 10, "accumulate": 2}),
        (DataLoader(TensorDataset(torch.randn(21, 3)), batch_size=10), {}),
    ],
    ids=["last batch", "last part", "loader"],
)
def test_batch_normalization_and_a_single_datum(data: Any, options: dict[str, Any]) -> None:
    encoder, model, guide = normalizing()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"the guide normalizes over the batch.*choose a batch_size"):
        fit(model, guide, data, epochs=1, progress=False, **options)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("evaluates", [False, True])
def test_batch_normalization_where_it_can_be(evaluates: bool) -> None:
    encoder, model, guide = normalizing()
    encoder.train(not evaluates)
    fit(model, guide, torch.randn(21 if evaluates else 22, 3), epochs=1, batch_size=10, progress=False)


@pytest.mark.parametrize("kind", [torch.tensor, float])
def test_a_list_of_numbers_is_one_tensor(kind: Callable[[float], Any]) -> None:
    data = [kind(v) for v in (1.0,) * 6 + (0.0,) * 4]

    def model(x: Tensor) -> None:
        fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        for i in range(len(x)):
            pyro.sample(f"x_{i}", dist.Bernoulli(fairness), obs=x[i])

    def guide(x: Tensor) -> None:  # the exact posterior
        pyro.sample("fairness", dist.Beta(pyro.param("a", torch.tensor(16.0)), pyro.param("b", torch.tensor(14.0))))

    history = fit(model, guide, data, steps=1, lr=1e-8, preflight=False, progress=False, seed=0)
    beta = torch.lgamma(torch.tensor([16.0, 14.0])).sum() - torch.lgamma(torch.tensor(30.0))
    prior = 2 * torch.lgamma(torch.tensor(10.0)) - torch.lgamma(torch.tensor(20.0))
    assert history[-1].train_elbo == pytest.approx(float(beta - prior) / 10, abs=1e-4)


def test_a_loader_of_single_numbers() -> None:
    model, guide = pair_of(plain)
    with pytest.raises(TypeError, match="the loader must yield batches, tensors with one row per datum"):
        fit(model, guide, DataLoader(TensorDataset(X), batch_size=None), epochs=1, progress=False)
