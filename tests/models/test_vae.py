"""The VAE as a pair: the contract that every system keeps, and its numbers against the linear-Gaussian oracle."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import conditionals, nets, priors
from pyro_vae.elbo import MeanField, Trace
from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.models import VAE
from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair.particles import particles_agree
from pyro_vae.pair.protocol import Pair
from pyro_vae.training.svi import SVI

PYRO_OPTIM: Any = pyro.optim
PIXELS = ("bernoulli", "continuous_bernoulli", "normal", "laplace", "categorical", "discretized_logistic", "poisson")
PARTS = [
    *itertools.product(PIXELS, conditionals.POSTERIORS),
    *[(name, "diagonal_normal") for name in conditionals.LIKELIHOODS if name not in PIXELS],
    *[("multinomial", name) for name in conditionals.SHARE_POSTERIORS],
]


def small(data_shape: Any = 6, **options: Any) -> VAE:
    prior = "dirichlet" if options.get("posterior") in conditionals.SHARE_POSTERIORS else "standard_normal"
    return VAE(data_shape, **{"latent_dim": 3, "hidden": (8,), "prior": prior, **options})


def data_for(vae: VAE, n: int = 5) -> Tensor:
    """Data that every likelihood accepts: zeros and ones, or ones and twos where zeros are impossible."""
    return (torch.rand(n, *vae.data_shape) < 0.5).float() + isinstance(vae.likelihood, conditionals.LogNormal)


def conv(latent_dim: int = 3) -> VAE:
    shape = (1, 8, 8)
    encoder = nets.ConvEncoder(shape, 2 * latent_dim, channels=(2, 4), hidden=8)
    return VAE(
        shape, latent_dim, encoder=encoder, decoder=nets.ConvDecoder(latent_dim, shape, channels=(4, 2), hidden=8)
    )


# The contract


@pytest.mark.parametrize(("likelihood", "posterior"), PARTS)
def test_every_parameter_gets_a_gradient(likelihood: str, posterior: str) -> None:
    vae = small(likelihood=likelihood, posterior=posterior)
    Trace().loss_and_grads(vae.model, vae.guide, data_for(vae))
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("likelihood", "posterior"), PARTS)
def test_particles_vectorize(likelihood: str, posterior: str) -> None:
    vae = small(likelihood=likelihood, posterior=posterior).eval()
    assert particles_agree(vae.model, vae.guide, (data_for(vae),))


def test_convolutions_vectorize() -> None:
    vae = conv()
    assert particles_agree(vae.model, vae.guide, (data_for(vae),))


@pytest.mark.parametrize("elbo", [pyro.infer.Trace_ELBO, pyro.infer.TraceMeanField_ELBO, Trace, MeanField])
@pytest.mark.parametrize("svi", [pyro.infer.SVI, SVI])
def test_it_trains(svi: type, elbo: type) -> None:
    vae = small()
    x = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]).repeat(5, 1)
    trainer = svi(vae.model, vae.guide, PYRO_OPTIM.Adam({"lr": 0.05}), elbo())
    before = bound(vae.model, vae.guide, x, num_samples=20).mean
    for _ in range(60):
        trainer.step(x)
    assert bound(vae.model, vae.guide, x, num_samples=20).mean > before + 1.0


@pytest.mark.parametrize("clone", [lambda vae: small(), copy.deepcopy])
def test_two_instances_share_no_parameters(clone: Any) -> None:
    first = small()
    SVI(first.model, first.guide).step(data_for(first))
    second = clone(first)
    before = [p.detach().clone() for p in first.parameters()]
    svi = SVI(second.model, second.guide)
    svi.step(data_for(second))
    assert {id(p) for p in svi.params.values()} == {id(p) for p in second.parameters()}
    torch.testing.assert_close(before, [p.detach() for p in first.parameters()], rtol=0, atol=0)


def test_it_is_a_pair() -> None:
    assert isinstance(small(), Pair)


@pytest.mark.parametrize(("likelihood", "posterior"), PARTS)
def test_weights_survive_a_state_dict(likelihood: str, posterior: str) -> None:
    first, second = (small(likelihood=likelihood, posterior=posterior).eval() for _ in range(2))
    x = data_for(first)
    second.load_state_dict(first.state_dict())
    one, two = (bound(vae.model, vae.guide, x, seed=0).elbo for vae in (first, second))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


# Shapes


@pytest.mark.parametrize("shape", [6, (6,), (1, 4, 3), (2, 3, 3)])
def test_shapes(shape: Any) -> None:
    vae = small(shape)
    x = data_for(vae)
    full = torch.Size([5]) + vae.data_shape
    assert vae.encode(x).batch_shape == (5,)
    assert vae.encode(x).event_shape == (3,)
    assert vae.decode(torch.zeros(7, 5, 3)).batch_shape == (7, 5)
    assert vae.decode(torch.zeros(7, 5, 3)).event_shape == vae.data_shape
    for mean in (True, False):
        assert vae.sample(5, mean=mean).shape == full
        assert vae.reconstruct(x, mean=mean).shape == full


def test_draws_are_data_and_means_are_means() -> None:
    vae = small()
    assert set(vae.sample(50).unique().tolist()) == {0.0, 1.0}
    assert set(vae.reconstruct(data_for(vae), mean=False).unique().tolist()) <= {0.0, 1.0}
    assert 0.0 < float(vae.sample(50, mean=True).min()) <= float(vae.sample(50, mean=True).max()) < 1.0


@pytest.mark.parametrize("shape", [(5, 7), (6,), (5, 1, 6), (5, 3, 2), ()])
@pytest.mark.parametrize("program", ["model", "guide"])
def test_data_of_another_shape(program: str, shape: tuple[int, ...]) -> None:
    vae = small()
    with pytest.raises(ValueError, match=r"expected data of shape \(N, 6\), got \(.*\): build the VAE with"):
        getattr(vae, program)(torch.zeros(shape))


def test_encode_takes_leading_dimensions() -> None:
    assert small().encode(torch.zeros(4, 5, 6)).batch_shape == (4, 5)
    with pytest.raises(ValueError, match=r"expected data of shape \(\*, 6\), got \(4, 7\)"):
        small().encode(torch.zeros(4, 7))


# Parts


@pytest.mark.parametrize("likelihood", conditionals.LIKELIHOODS)
def test_start_at_mean(likelihood: str) -> None:
    vae, mean = small(likelihood=likelihood), torch.linspace(0.2, 0.8, 6)
    decoder: Any = vae.decoder
    with torch.no_grad():
        decoder.final.weight.zero_()
    assert vae.start_at_mean(mean) is vae
    found = vae.sample(1, mean=True)[0]
    if likelihood == "multinomial":  # of shares: the total is the document's
        found, mean = found / found.sum(), mean / mean.sum()
    torch.testing.assert_close(found, mean, rtol=0.02, atol=0.01)


def test_start_at_mean_needs_a_bias_to_set() -> None:
    vae = small(decoder=nn.Linear(3, 6))
    with pytest.raises(ValueError, match="Linear has no set_output_bias"):
        vae.start_at_mean(torch.zeros(6))


def test_networks_of_your_own_are_used_even_if_empty() -> None:
    identity = nn.Sequential()
    vae = VAE(6, latent_dim=3, encoder=identity)
    assert vae.encoder is identity
    torch.testing.assert_close(vae.encode(torch.ones(2, 6)).mean, torch.ones(2, 3))


def test_a_network_with_the_wrong_output() -> None:
    vae = VAE(6, latent_dim=3, encoder=nn.Linear(6, 5))
    with pytest.raises(ValueError, match=r"DiagonalNormal expects a tensor of shape \(\*, 6\), got \(2, 5\)"):
        vae.guide(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "gauss"}, "unknown likelihood 'gauss'"),
        ({"posterior": "normal"}, "unknown posterior 'normal'"),
        ({"prior": "normal"}, "unknown prior 'normal'"),
        ({"activation": "rely"}, "unknown activation 'rely'"),
        ({"latent_dim": 0}, "positive sizes"),
        ({"data_shape": 0}, "data_shape must hold positive sizes"),
        ({"hidden": (0,)}, "hidden must hold positive sizes"),
        ({"likelihood": conditionals.Bernoulli(5)}, r"the likelihood is over events of shape \(5,\), expected \(6,\)"),
        (
            {"posterior": conditionals.DiagonalNormal(2)},
            r"the posterior is over events of shape \(2,\), expected \(3,\)",
        ),
        ({"prior": priors.StandardNormal(2)}, r"the prior is over events of shape \(2,\), expected \(3,\)"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**{"data_shape": 6, **options})


# Numbers


def linear(oracle: LinearGaussian) -> VAE:
    """The oracle as a VAE with linear networks."""
    vae = VAE(4, latent_dim=2, hidden=(), likelihood=conditionals.Normal(4, scale=oracle.scale)).double()
    parts: Any = vae
    encoder, decoder = parts.encoder.final, parts.decoder.final
    with torch.no_grad():
        decoder.weight.copy_(oracle.weight)
        decoder.bias.copy_(oracle.bias)
        encoder.weight.zero_()
        encoder.weight[:2] = oracle.encoder
        encoder.bias.copy_(torch.cat([oracle.offset, oracle.log_scale]))
    return vae


def test_the_elbo_of_linear_networks_is_the_oracles() -> None:
    oracle = LinearGaussian()
    vae, x = linear(oracle), oracle.simulate(40)
    result = bound(vae.model, vae.guide, x)
    torch.testing.assert_close(result.kl, oracle.kl(x).detach())
    draws = torch.stack([bound(vae.model, vae.guide, x).elbo.mean() for _ in range(100)])
    error = float(draws.std()) / 10
    assert float(draws.mean()) == pytest.approx(oracle.elbo(x).mean().item(), abs=4 * error)


def test_the_likelihood_of_linear_networks_is_the_oracles() -> None:
    oracle = LinearGaussian()
    vae, x = linear(oracle), oracle.simulate(20)
    result = log_marginal(vae.model, oracle.wide_guide, x, num_samples=2000)
    assert float(((result.log_prob - oracle.log_prob(x).detach()) / result.std_error).abs().max()) < 4


def test_networks_are_made_from_a_class_for_the_shapes() -> None:
    vae = VAE((1, 6, 5), latent_dim=3, likelihood="normal", encoder=nets.ConvEncoder, decoder=nets.ConvDecoder)
    x = torch.rand(2, 1, 6, 5)
    assert vae.reconstruct(x).shape == x.shape
    assert isinstance(vae.encoder, nets.ConvEncoder)
