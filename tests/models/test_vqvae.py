"""The VQ-VAE: a two-part code, straight-through gradients, a codebook that follows, a prior that generates."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.elbo import VQ
from pyro_vae.models import VQVAE
from pyro_vae.models.codebooks import Codebook
from pyro_vae.models.codes import AutoregressiveCodes
from pyro_vae.pair.particles import particles_agree
from pyro_vae.pair.tracing import trace_pair

IMAGE = (1, 7, 8)


def small(data_shape: Any = IMAGE, **options: Any) -> VQVAE:
    torch.manual_seed(0)
    # without units that are dead from the start, as so few rectified ones would be
    chosen: dict[str, Any] = {
        "activation": "elu",
        "codes": 8,
        "embedding_dim": 3,
        "channels": (4, 4),
        "hidden": (8,),
        "positions": 3,
    }
    return VQVAE(data_shape, **{**chosen, **options})


def images(n: int = 10) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(n, *IMAGE) < 0.5).float()


KINDS = list(itertools.product([IMAGE, 6], ["uniform", "autoregressive"], [0.9, None]))


@pytest.mark.parametrize(("shape", "prior", "decay"), KINDS)
def test_it_trains(shape: Any, prior: str, decay: float | None) -> None:
    vae = small(shape, prior=prior, decay=decay)
    x = (torch.rand(20, *vae.data_shape) < 0.5).float()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae.model, vae.guide, x, elbo="vq", epochs=3, batch_size=10, lr=1e-2, seed=0)
    assert history.loss[-1] < history.loss[0]
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    assert vae.sample(3).shape == (3, *vae.data_shape)
    assert vae.reconstruct(x).shape == x.shape
    assert 1.0 <= vae.perplexity(x) <= 8.0


@pytest.mark.parametrize("prior", ["uniform", "autoregressive"])
def test_the_bound_is_the_length_of_a_two_part_code(prior: Any) -> None:
    vae = small(prior=prior).double().eval()
    x = images().double()
    k = vae.codes(x)
    log_k = vae.prior.log_prob(k) if prior == "autoregressive" else torch.full((10,), -4 * math.log(8)).double()
    expected = vae.decode(vae.posterior.codebook.vectors[k]).log_prob(x) + log_k
    found = pv.bound(vae.model, vae.guide, x)
    torch.testing.assert_close(found.elbo, expected.detach())
    torch.testing.assert_close(found.kl, -log_k.detach())
    marginal = pv.log_marginal(vae.model, vae.guide, x, num_samples=3)
    torch.testing.assert_close(marginal.log_prob, found.elbo)


def test_log_prob_by_a_sum_over_all_codes() -> None:
    """The bound is below log p(x), which draws from the prior reach."""
    vae = small(6, codes=3, positions=2, prior="autoregressive").double().eval()
    x = (torch.rand(5, 6) < 0.5).double()
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    with torch.no_grad():
        z = vae.posterior.codebook.vectors[every].unsqueeze(1)
        log_prob = (vae.prior.log_prob(every).unsqueeze(1) + vae.decode(z).log_prob(x)).logsumexp(0)
    assert bool((pv.bound(vae.model, vae.guide, x).elbo < log_prob).all())
    found = pv.log_marginal(vae.model, None, x, method="prior", num_samples=400, seed=0)
    assert bool(((found.log_prob - log_prob).abs() < 5 * found.std_error).all())


def test_gradients_pass_straight_through() -> None:
    """The encoder's gradient under "vq" is that of the decoder at the codes, plus the commitment's."""
    vae = small().double()
    x = images().double()
    vae.guide(x)  # the codebook moves onto encodings
    vae.posterior.eval()
    loss = VQ(commitment=0.7).differentiable_loss(vae.model, vae.guide, x)
    encoding = vae.encoder(x)
    nearest = vae.posterior.codebook.vectors[vae.codes(x)]
    z = nearest.clone().requires_grad_()
    (slope,) = torch.autograd.grad(-vae.decode(z).log_prob(x).sum(), z)
    surrogate = (slope * encoding).sum() + 0.7 * (encoding - nearest).square().sum()
    parameters = list(vae.encoder.parameters())
    for found, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(surrogate, parameters), strict=True
    ):
        torch.testing.assert_close(found, expected)
    value = -pv.bound(vae.model, vae.guide, x).elbo.sum() + 1.7 * (encoding - nearest).square().sum()
    torch.testing.assert_close(loss, value)


def test_a_codebook_with_a_gradient_gets_the_bounds_and_the_distances() -> None:
    vae = small(decay=None).double()
    x = images().double()
    vae.guide(x)
    vae.posterior.eval()
    codebook = vae.posterior.codebook.vectors
    loss = VQ(commitment=0.7).differentiable_loss(vae.model, vae.guide, x)
    e = codebook[vae.codes(x)]
    expected = -vae.decode(e).log_prob(x).sum() + (vae.encoder(x).detach() - e).square().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, codebook), torch.autograd.grad(expected, codebook))


def test_the_value_is_exactly_the_code() -> None:
    vae = small()
    vae.posterior.codebook.vectors.mul_(1e3)
    z = trace_pair(vae.model, vae.guide, (images(),)).guide.nodes["z"]["value"]
    rows = vae.posterior.codebook.vectors
    assert bool((z.reshape(-1, 1, 3) == rows).all(-1).any(-1).all())
    off = vae.prior_distribution().log_prob(torch.stack([z[0], z[0] + 1.0]))
    assert off.tolist() == [pytest.approx(-4 * math.log(8)), -math.inf]


def test_codes_next_to_each_other_are_told_apart() -> None:
    """Each code is its own nearest, however close others are."""
    torch.manual_seed(0)
    codebook = Codebook(64, 3)
    codebook.vectors.copy_(torch.tensor([3.0, -2.0, 5.0]) + 1e-5 * torch.randn(64, 3))
    codes = codebook.nearest(codebook.vectors)
    assert bool((codebook.vectors[codes] == codebook.vectors).all())


def test_equal_data_train() -> None:
    vae = small()
    svi = pv.SVI(vae.model, vae.guide, loss=VQ())
    assert all(bool(svi.step(torch.ones(4, *IMAGE)).isfinite()) for _ in range(30))


def test_the_codebook_follows_the_means_of_its_encodings() -> None:
    """K-means: with no memory each code is the mean of what it stood for, and at last of its group."""
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    codebook = Codebook(3, 2, decay=1e-6, revive=0.0)
    codebook.vectors.copy_(centers + 1.0)
    x = centers.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    codebook.update(x)
    torch.testing.assert_close(codebook.vectors, centers + 1.0)  # nothing was counted before
    codebook.update(x)
    torch.testing.assert_close(codebook.vectors, x.reshape(3, 50, 2).mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(codebook.uses, torch.full((3,), 50.0), atol=1e-3, rtol=0)


def test_averages_decay() -> None:
    codebook = Codebook(1, 1, decay=0.75, revive=0.0)
    codebook.update(torch.full((4, 1), 2.0))
    codebook.update(torch.full((8, 1), 5.0))
    codebook.update(torch.zeros(1, 1))  # brings the averages of the two before into the vectors
    weights = torch.tensor([0.25 * 0.75 * 4, 0.25 * 8])
    expected = (weights * torch.tensor([2.0, 5.0])).sum() / weights.sum()
    torch.testing.assert_close(codebook.vectors.squeeze(), expected)


def test_dead_codes_are_placed_anew() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 2)
    codebook = Codebook(4, 2, decay=0.5, revive=1.0)
    codebook.uses.fill_(100.0)
    codebook.sums.copy_(100 * torch.tensor([[0.0, 0.0], [1e3, 1e3], [2e3, 1e3], [3e3, 0.0]]))
    for _ in range(12):
        codebook.update(x)
    assert int((codebook.vectors.norm(dim=-1) < 10).sum()) == 4
    assert len(codebook.nearest(x).unique()) == 4
    never = Codebook(4, 2, decay=0.5, revive=0.0)
    never.uses.fill_(100.0)
    never.sums.copy_(100 * torch.tensor([[0.0, 0.0], [1e3, 1e3], [2e3, 1e3], [3e3, 0.0]]))
    for _ in range(12):
        never.update(x)
    assert len(never.nearest(x).unique()) == 1


def test_only_training_moves_the_codebook() -> None:
    vae, x = small(), images()
    start = vae.posterior.codebook.vectors.clone()
    vae.eval()
    vae.guide(x)
    vae.train()
    with torch.no_grad():
        vae.guide(x)
    pv.preflight(vae.model, vae.guide, x)
    pv.bound(vae.model, vae.guide, x)
    assert torch.equal(vae.posterior.codebook.vectors, start)
    vae.guide(x)
    assert not torch.equal(vae.posterior.codebook.vectors, start)


@pytest.mark.parametrize("grid", [(5,), (3, 2)])
def test_the_autoregressive_prior_is_a_distribution_in_reading_order(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = AutoregressiveCodes(Codebook(2, 1), grid, width=4, blocks=2).double()
    size = math.prod(grid)
    every = torch.tensor(list(itertools.product((0, 1), repeat=size))).reshape(-1, *grid)
    log_prob = prior.log_prob(every)
    assert float(log_prob.logsumexp(0).detach()) == pytest.approx(0.0, abs=1e-9)
    logits = prior.logits(every).reshape(len(every), size, 2)
    for i in range(size):  # the logits of a code say nothing of it or of what follows
        groups: dict[tuple[int, ...], Tensor] = {}
        for code, row in zip(every.reshape(-1, size).tolist(), logits[:, i], strict=True):
            torch.testing.assert_close(groups.setdefault(tuple(code[:i]), row), row)
    drawn = (prior.draw(4000).reshape(-1, size) * 2 ** torch.arange(size - 1, -1, -1)).sum(-1)
    frequency = torch.bincount(drawn, minlength=len(every)) / 4000
    torch.testing.assert_close(frequency.double(), log_prob.exp().detach(), atol=0.03, rtol=0)


def test_a_prior_of_its_own_learns_the_codes_and_generates() -> None:
    """Codes that are all equal within a datum: a uniform prior pays for each of them, a learned one for one."""
    vae = small(prior="autoregressive")
    prior: Any = vae.prior
    codes = torch.arange(8).repeat(20).reshape(-1, 1, 1).expand(-1, 2, 2)
    svi = pv.SVI(prior.model, prior.guide, lambda p: torch.optim.Adam(p, 0.02), pv.elbo.make("trace"))
    for _ in range(60):
        svi.step(codes)
    assert float(vae.prior.log_prob(codes).detach().mean()) == pytest.approx(-math.log(8), abs=0.1)
    drawn = vae.prior.draw(50).flatten(1)
    assert float((drawn == drawn[:, :1]).all(-1).float().mean()) > 0.9


def test_particles_copies_and_weights() -> None:
    vae, x = small(prior="autoregressive").eval(), images()
    assert particles_agree(vae.model, vae.guide, (x,))
    twin = copy.deepcopy(vae)
    assert twin.name != vae.name
    assert twin.prior.name != vae.prior.name
    assert twin.prior._codebook[0] is twin.posterior.codebook
    other = small(prior="autoregressive").eval()
    vae.train()
    vae.guide(x)
    vae.eval()
    other.load_state_dict(vae.state_dict())
    torch.testing.assert_close(*(pv.bound(v.model, v.guide, x).elbo for v in (vae, other)), rtol=0, atol=0)


def test_bits_per_dimension_of_colour_images() -> None:
    vae = small((3, 8, 8), likelihood="discretized_logistic").start_at_mean(torch.full((3, 8, 8), 0.5))
    x = torch.randint(256, (4, 3, 8, 8)).float() / 255
    bits = -pv.bound(vae.model, vae.guide, x).elbo / (192 * math.log(2))
    assert 7.5 < float(bits.mean()) < 12  # eight bits would be the uniform distribution's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay must lie between 0 and 1"),
        ({"revive": -1.0}, "revive must be a number of uses per batch >= 0"),
        ({"prior": "normal"}, "unknown prior 'normal'"),
        ({"codes": 0}, "codes and embedding_dim must hold positive sizes"),
        ({"channels": ()}, "channels must hold positive sizes"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_other_pairs_are_refused() -> None:
    vae = pv.VAE(6, latent_dim=2)
    with pytest.raises(ValueError, match=r"no latent of the guide is quantized \(it draws \{'z': 'Normal'\}\)"):
        VQ().loss(vae.model, vae.guide, torch.zeros(3, 6))
    with pytest.raises(ValueError, match="commitment must be a number >= 0"):
        VQ(commitment=-1.0)
    with pytest.raises(ValueError, match=r"expected data of shape .* got \(3, 5\)"):
        small().guide(torch.zeros(3, 5))


@pytest.mark.slow
def test_its_convolutions_compile() -> None:
    """With the compiler's choice of strides a compiled convolution stops at an assertion, and a warning says so."""
    losses = []
    for compiled in (True, False):
        vae = small((1, 4, 4), codes=4, embedding_dim=2, channels=(2,), blocks=0, decay=None, revive=0)
        x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
        options: dict[str, Any] = {"epochs": 3, "seed": 0, "batch_size": 20, "preflight": False, "compile": compiled}
        losses.append([epoch.train_elbo for epoch in pv.fit(vae.model, vae.guide, x, elbo="vq", **options).epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
