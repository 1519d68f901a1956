"""Samples and reconstructions from pairs of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluate import reconstruct, sample


def model(x: Tensor, scale: float = 0.1) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        label = pyro.sample("label", dist.Categorical(logits=torch.zeros(len(x), 3)), obs=torch.zeros(len(x)))
        mean = (z + 10.0 * label).unsqueeze(-1).expand(-1, 4)
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def guide(x: Tensor, scale: float = 0.1) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(x[:, 0]))


X = torch.arange(3.0).unsqueeze(-1).expand(-1, 4)


def test_reconstruction_is_the_mean_of_the_site_shaped_like_the_data() -> None:
    assert torch.equal(reconstruct(model, guide, X), X)


def test_reconstruction_draws() -> None:
    drawn = reconstruct(model, guide, X, mean=False, scale=0.01)
    assert not torch.equal(drawn, X)
    assert (drawn - X).abs().max() < 0.1
    assert reconstruct(model, guide, X, 100.0, mean=False).std() > 10  # further arguments reach the pair


def test_sites_by_name() -> None:
    assert reconstruct(model, guide, X, site="label", mean=False).shape == (3,)
    with pytest.raises(ValueError, match=r"site 'y' is not observed by the model; observed are label, x"):
        reconstruct(model, guide, X, site="y")
    with pytest.raises(
        ValueError, match=r"site 'label' has a distribution without a mean, Categorical: use mean=False"
    ):
        reconstruct(model, guide, X, site="label")


def test_samples_do_not_look_at_the_values() -> None:
    x = X.clone().fill_(1e6)
    assert sample(model, x, mean=True).shape == x.shape
    assert sample(model, x, mean=True).max() < 100


def test_full_draws_are_consistent_across_sites() -> None:
    """The sites of one draw belong together: x is drawn around the label that was drawn, not around the one given."""
    x = torch.zeros(200, 4)
    torch.manual_seed(0)
    drawn = sample(model, x)
    torch.manual_seed(0)
    label = sample(model, x, site="label")
    assert label.unique().tolist() == [0, 1, 2]
    assert ((drawn.mean(-1) - 10 * label).abs() < 5).all()


def test_the_first_site_where_none_is_like_the_data() -> None:
    def labels(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5), obs=x[:, 0])

    def nothing(x: Tensor) -> None:
        pass

    assert sample(labels, torch.zeros(5, 4), mean=True).tolist() == [0.5] * 5
    assert reconstruct(labels, nothing, torch.zeros(5, 4)).tolist() == [0.5] * 5


def test_a_model_without_observations() -> None:
    def silent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="observes no site"):
        sample(silent, X)
    with pytest.raises(ValueError, match="observes no site"):
        reconstruct(silent, lambda x: silent(x), X)


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.tensor(1.0)])
def test_no_data(x: Tensor) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        sample(model, x)


def test_networks_are_in_evaluation_mode_and_weights_get_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))

    def noisy(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def still(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x).to_event(1))

    again = [reconstruct(noisy, still, X) for _ in range(2)]
    assert torch.equal(*again)
    assert not again[0].requires_grad
    assert net.training


def test_shipped_pair() -> None:
    vae = pv.VAE((1, 3, 3), 2, hidden=(4,))
    x = torch.ones(5, 1, 3, 3)
    assert reconstruct(vae.model, vae.guide, x).shape == x.shape
    assert sample(vae.model, x).unique().tolist() == [0, 1]


# How many, in place of data


def test_a_number_for_a_model_that_takes_only_the_length() -> None:
    drawn = sample(model, 200, seed=0)
    assert torch.equal(drawn, sample(model, 200, seed=0, site="label"))  # the first site: no data tell another shape
    assert sample(model, 200, site="x", scale=0.01).shape == (200, 4)
    assert torch.equal(sample(model, X, seed=0), sample(model, 3, seed=0, site="x"))


@pytest.mark.parametrize("length", [len, lambda x: x.shape[0], lambda x: x.size(0), lambda x: x.shape[:1].numel()])
def test_ways_to_ask_for_the_length(length: Callable[[Tensor], int]) -> None:
    def noise(x: Tensor) -> None:
        with pyro.plate("data", length(x)):
            pyro.sample("x", dist.Normal(torch.zeros((), device=x.device), 1.0), obs=x)

    assert sample(noise, 5).shape == (5,)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: torch.zeros_like(x),
        lambda x: 0 * x,
        lambda x: x.sum(),
        lambda x: torch.zeros(x.shape),
        lambda x: torch.zeros(x.shape[1]),
        lambda x: torch.zeros(*x.shape),
        lambda x: torch.zeros(x.size()),
        lambda x: torch.zeros(x.size(-1)),
        lambda x: torch.zeros(x.dim()),
        lambda x: x[0],
        lambda x: x.new_zeros(3),
        lambda x: x.tolist(),
        lambda x: nn.Linear(1, 1)(x),
    ],
)
def test_a_number_is_not_enough_for_a_model_that_looks_at_its_data(look: Callable[[Tensor], Any]) -> None:
    def nosy(x: Tensor) -> None:
        look(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"uses more of the data than their number .*: pass a tensor"):
        sample(nosy, 5)


def test_a_number_for_a_shipped_pair_with_labels() -> None:
    vae = pv.models.ConditionalVAE((1, 3, 3), 4, 2, hidden=(4,))
    y = torch.tensor([0, 1, 3])
    assert sample(vae.model, 3, y).shape == (3, 1, 3, 3)
    assert torch.equal(sample(poutine.scale(vae.model, 2.0), 3, y, seed=1), sample(vae.model, 3, y, seed=1))


def test_samples_are_draws_and_reconstructions_are_means() -> None:
    vae = pv.VAE(9, 2, hidden=(4,))
    assert sample(vae.model, 50).unique().tolist() == [0, 1]
    assert 0 < sample(vae.model, 50, mean=True).min() < sample(vae.model, 50, mean=True).max() < 1
    assert 0 < reconstruct(vae.model, vae.guide, torch.ones(50, 9)).max() < 1


def test_a_number_below_one() -> None:
    with pytest.raises(ValueError, match="number of samples must be at least 1, got 0"):
        sample(model, 0)


def test_a_seed_makes_draws_reproducible_and_none_moves_on() -> None:
    vae = pv.VAE(9, 2, hidden=(4,))
    x, codes = torch.ones(5, 9), torch.zeros(5, 2)
    calls: list[Callable[[int | None], Tensor]] = [
        lambda seed: sample(vae.model, 5, seed=seed),
        lambda seed: reconstruct(vae.model, vae.guide, x, mean=False, seed=seed),
        lambda seed: pv.decode(vae.model, codes, x, mean=False, seed=seed),
        lambda seed: pv.encode(vae.guide, x, mean=False, seed=seed),
    ]
    for call in calls:
        state = torch.get_rng_state()
        assert torch.equal(call(3), call(3))
        assert torch.equal(torch.get_rng_state(), state)
        first = call(None)
        assert not torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(state)
        assert torch.equal(call(None), first)
