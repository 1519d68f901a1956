"""One run of a pair: what is read off it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair.particles import joint_log_weight, log_weights, particles_agree
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.tracing import log_prob, trace_pair
from pyro_vae.support.random import fork_rng

Program = Callable[..., Any]
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


# Random numbers


def test_fork_rng_restores_the_generator() -> None:
    expected = torch.rand(3)
    torch.manual_seed(0)
    with fork_rng(7):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_fork_rng_seeds_the_inside() -> None:
    with fork_rng(7):
        inside = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), inside)


@pytest.mark.parametrize("probe", [particles_agree, lambda m, g, a: trace_pair(m, g, a, num_particles=2).latents])
def test_looking_at_a_pair_draws_no_noise_of_its_own(probe: Program) -> None:
    expected = trace_pair(model, guide, (X,), num_particles=2, nesting=1).guide.nodes["z"]["value"]
    torch.manual_seed(0)
    probe(model, guide, (X,))
    torch.manual_seed(0)
    after = trace_pair(model, guide, (X,), num_particles=2).guide.nodes["z"]["value"]
    assert torch.equal(after, expected)


# One run


def test_sites_are_told_apart() -> None:
    traces = trace_pair(model, guide, (X,))
    assert (traces.latents, traces.observed, traces.particle_dim) == (["z"], ["x"], None)


def test_exact_posterior_gives_the_marginal_for_every_draw() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    weights = log_weights(pair.model, pair.exact_guide, (x,), num_particles=4, vectorize=True)
    torch.testing.assert_close(weights, pair.log_prob(x).expand(4, 5))


@pytest.mark.parametrize("particles", [2, 3])
def test_as_many_particles_as_data_are_not_mixed_up(particles: int) -> None:
    weights = log_weights(model, guide, (X,), num_particles=particles, vectorize=True)
    expected = dist.Normal(torch.zeros_like(X), 2**0.5).log_prob(X)
    torch.testing.assert_close(weights, expected.expand(particles, 3))


def test_a_network_before_the_latents_runs_once_for_all_particles() -> None:
    calls = []

    def counted(x: Tensor) -> None:
        calls.append(x.shape)
        guide(x)

    trace_pair(model, counted, (X,), num_particles=50, nesting=1)
    assert calls == [X.shape]


def test_scale_is_left_out_of_log_densities() -> None:
    scaled = poutine.scale(model, scale=100.0)
    traces = trace_pair(scaled, guide, (X,))
    expected = dist.Normal(torch.zeros_like(X), 2**0.5).log_prob(X)
    torch.testing.assert_close(joint_log_weight(traces, data_plate(traces, 3)), expected)


def test_masked_data_count_nothing() -> None:
    keep: Any = torch.tensor([True, False, True])
    traces = trace_pair(poutine.mask(model, mask=keep), poutine.mask(guide, mask=keep), (X,))
    expected = dist.Normal(torch.zeros_like(X), 2**0.5).log_prob(X) * keep
    torch.testing.assert_close(joint_log_weight(traces, data_plate(traces, 3)), expected)


def test_deterministic_sites_are_no_sites() -> None:
    def noting(x: Tensor) -> None:
        pyro.deterministic("mean", x.mean())
        model(x)

    traces = trace_pair(noting, guide, (X,))
    assert traces.observed == ["x"]
    assert data_plate(traces, 3).name == "data"


def test_deterministic_sites_of_the_guide_need_no_partner() -> None:
    def noting(x: Tensor) -> None:
        pyro.deterministic("note", x.mean())
        guide(x)

    assert trace_pair(model, noting, (X,)).latents == ["z"]


def test_log_prob_error_names_the_site() -> None:
    def out_of_support(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("brightness", dist.Bernoulli(logits=z), obs=x)

    traces = trace_pair(out_of_support, guide, (X,))
    with pytest.raises(ValueError, match=r"site 'brightness': Expected value argument"):
        log_prob("brightness", traces.model.nodes["brightness"])


# What is refused


def test_latent_missing_in_the_guide() -> None:
    with pytest.raises(ValueError, match=r"latent site 'z', which the guide never samples.*pyro.sample\('z'"):
        trace_pair(model, lambda x: None, (X,))


def test_site_missing_in_the_model() -> None:
    def extra(x: Tensor) -> None:
        guide(x)
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"the guide samples the site 'w', which the model never samples"):
        trace_pair(model, extra, (X,))


def test_auxiliary_site_is_allowed() -> None:
    def auxiliary(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        guide(x)

    assert trace_pair(model, auxiliary, (X,)).latents == ["w", "z"]


def test_observed_site_in_the_guide() -> None:
    def observing(x: Tensor) -> None:
        guide(x)
        with pyro.plate("again", len(x)):
            pyro.sample("x", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"'x', which the model observes: remove it from the guide"):
        trace_pair(model, observing, (X,))


def test_event_shapes_must_match() -> None:
    def vector(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1), 1.0).to_event(1))

    def scalar(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    with pytest.raises(ValueError, match=r"site 'z' has event shape \(\) in the model and \(1,\) in the guide"):
        trace_pair(scalar, vector, (X,))


def test_batch_dimension_outside_every_plate() -> None:
    def undeclared(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    with pytest.raises(ValueError, match=r"batch shape \(5,\), of which dimension -1 \(size 5\) belongs to no plate"):
        trace_pair(undeclared, undeclared, (X,))


# The plate over the data


def test_data_plate_knows_its_size_before_subsampling() -> None:
    def subsampled(x: Tensor, program: Program = model) -> None:
        with pyro.plate("data", 60, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            if program is model:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    plate = data_plate(trace_pair(subsampled, lambda x: subsampled(x, guide), (X,)), 3)
    assert (plate.name, plate.dim, plate.size, plate.full_size) == ("data", -1, 3, 60)


def test_latents_shared_by_all_data_have_no_number_per_datum() -> None:
    def shared(x: Tensor, observe: bool = True) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        if observe:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    traces = trace_pair(shared, lambda x: shared(x, observe=False), (X,))
    with pytest.raises(
        ValueError, match=r"site 'mu' of the model is not inside a plate over the 3 data.*all data share"
    ):
        data_plate(traces, 3)


def square(x: Tensor, names: tuple[str, str], observe: bool) -> None:
    """Three features of three data, a latent for each: two plates of one size."""
    with pyro.plate(names[0], 3, dim=-1), pyro.plate(names[1], 3, dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        if observe:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_two_plates_of_the_size_of_the_data_are_not_guessed_between() -> None:
    x = torch.zeros(3, 3)
    traces = trace_pair(lambda x: square(x, ("a", "b"), True), lambda x: square(x, ("a", "b"), False), (x,))
    with pytest.raises(ValueError, match=r"'a' and 'b' have the size of the data, 3.*name that one 'data'"):
        data_plate(traces, 3)


def test_the_plate_called_data_is_the_one() -> None:
    x = torch.zeros(3, 3)
    traces = trace_pair(lambda x: square(x, ("a", "data"), True), lambda x: square(x, ("a", "data"), False), (x,))
    assert data_plate(traces, 3).dim == -2


def test_values_for_other_data_are_refused() -> None:
    everyone: Any = torch.ones(3, dtype=torch.bool)
    masked = poutine.mask(model, mask=everyone)
    traces = trace_pair(masked, guide, (X[:1],))
    with pytest.raises(ValueError, match=r"3 values along the plate 'data' over 1 data"):
        joint_log_weight(traces, data_plate(traces, 1))


# Leading particle dimensions


def pair_with(net: Program) -> tuple[Program, Program]:
    """A pair whose decoder is `net`, for data and latents of size 2."""

    def decoding(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def encoding(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

    return decoding, encoding


def only_matrices(z: Tensor) -> Tensor:
    assert z.dim() == 2
    return z


class _Boom(Exception):
    pass


def own_error(z: Tensor) -> Tensor:
    if z.dim() != 2:
        raise _Boom
    return z


def mixing(z: Tensor) -> Tensor:
    """Averages over particles; without them it is the identity."""
    return z.reshape(-1, 3, 2).mean(0)


def hardly_mixing(z: Tensor) -> Tensor:
    """As a decoder at initialization: a large constant, and little that depends on z."""
    return 30.0 + 0.01 * mixing(z)


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))])
def test_dense_networks_agree(net: nn.Module) -> None:
    assert particles_agree(*pair_with(net), (torch.randn(3, 2),))


@pytest.mark.parametrize("net", [only_matrices, own_error, mixing, hardly_mixing, nn.BatchNorm1d(2), nn.Dropout(0.5)])
def test_other_networks_do_not(net: Program) -> None:
    assert not particles_agree(*pair_with(net), (torch.randn(3, 2),))
