"""A PixelCNN likelihood: its probabilities sum to one, each pixel sees earlier ones alone, draws follow the density."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.conditionals import PixelCNN
from pyro_vae.nets import ConvDecoder, ConvEncoder


def likelihood(*shape: int, channels: int = 4, kernel: int = 3, blocks: int = 1) -> PixelCNN:
    torch.manual_seed(0)
    made = PixelCNN((1, *shape), channels, kernel, blocks).double()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.6)
    return made


def features(made: PixelCNN, *lead: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*lead, *made.param_shape, dtype=torch.double)


def all_images(height: int, width: int) -> Tensor:
    return (
        torch.tensor(list(itertools.product((0.0, 1.0), repeat=height * width))).double().reshape(-1, 1, height, width)
    )


def test_probabilities_of_all_images_sum_to_one() -> None:
    made = likelihood(3, 3)
    log_p = made(features(made, 2)).log_prob(all_images(3, 3).unsqueeze(1))
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(2).double(), atol=1e-10, rtol=0)
    assert log_p.std() > 1


def test_each_pixel_sees_the_earlier_ones_that_are_near() -> None:
    made = likelihood(6, 7, kernel=5, blocks=1)
    x = torch.rand(1, 6, 7, dtype=torch.double, requires_grad=True)
    logits = made.net(x, features(made)).flatten()
    for i, j in ((0, 0), (2, 3), (5, 6)):
        (seen,) = torch.autograd.grad(logits[7 * i + j], x, retain_graph=True)
        rows, columns = torch.arange(6).unsqueeze(1), torch.arange(7)
        earlier = 7 * rows + columns < 7 * i + j
        near = (i - rows <= made.reach) & ((j - columns).abs() <= made.reach)
        closest = (i - rows <= 2) & ((j - columns).abs() <= 2)  # those of the first convolution
        assert not (seen[0] != 0)[~(earlier & near)].any()
        assert (seen[0] != 0)[earlier & closest].all()


def test_draws_are_those_of_the_whole_network_and_follow_the_density() -> None:
    made = likelihood(7, 4)
    p = made(features(made, 2))
    torch.manual_seed(3)
    x = p.sample((3,))
    torch.manual_seed(3)
    again = torch.zeros_like(x)
    for row, column in itertools.product(range(7), range(4)):  # without leaving out what is far away
        again[..., row, column] = dist.Bernoulli(logits=made.net(again, p.h)[..., row, column]).sample()
    assert torch.equal(x, again)
    small = likelihood(2, 2)(features(likelihood(2, 2)))
    torch.manual_seed(0)
    drawn = (small.sample((20_000,)).flatten(1) @ torch.tensor([8.0, 4, 2, 1]).double()).long()
    expected = small.log_prob(all_images(2, 2)).exp() * 20_000
    chi_squared = ((drawn.bincount(minlength=16) - expected).square() / expected).sum()
    assert 3 < chi_squared < 38  # 15 degrees of freedom


def test_leading_dimensions() -> None:
    made = likelihood(3, 4)
    p = made(features(made, 2, 3))
    x = p.sample((5,))
    assert x.shape == (5, 2, 3, 1, 3, 4)
    expected = torch.stack([made(h).log_prob(v) for h, v in zip(p.h.flatten(0, 1), x[0].flatten(0, 1), strict=True)])
    torch.testing.assert_close(p.log_prob(x)[0].flatten(), expected)
    wide = p.expand([4, 2, 3])
    assert wide.sample().shape == (4, 2, 3, 1, 3, 4)
    torch.testing.assert_close(wide.log_prob(x[0]), p.log_prob(x[0]).expand(4, 2, 3))


def test_it_is_a_likelihood_of_a_vae() -> None:
    torch.manual_seed(0)
    vae = pv.VAE((1, 4, 4), 1, encoder=ConvEncoder, decoder=ConvDecoder, likelihood=PixelCNN((1, 4, 4), 8, 3, 1))
    x = all_images(2, 2)[:6].float().repeat(1, 1, 2, 2)
    pv.elbo.make("mean_field").loss_and_grads(vae.model, vae.guide, x)
    assert not [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert vae.start_at_mean(x.mean(0)) is vae  # it has no features with a given mean
    assert set(pv.sample(vae.model, 5).unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(NotImplementedError, match="have no mean: use mean=False"):
        vae.sample(2, mean=True)
    with pytest.raises(ValueError, match="has a distribution without a mean, CausalBernoulli: use mean=False"):
        pv.reconstruct(vae.model, vae.guide, x)


def test_bad_arguments_and_gray_pixels() -> None:
    for shape, message in (((3, 4, 4), "for images of one channel"), ((4, 4), "shape must have 3 sizes")):
        with pytest.raises(ValueError, match=message):
            PixelCNN(shape)
    with pytest.raises(ValueError, match="kernel must be odd and at least 3, got 4"):
        PixelCNN((1, 4, 4), kernel=4)
    with pytest.raises(ValueError, match="blocks must be at least 0, got -1"):
        PixelCNN((1, 4, 4), blocks=-1)
    with pytest.raises(ValueError, match=r"expects a tensor of shape \(\*, 4, 3, 3\), got \(4, 3, 2\)"):
        likelihood(3, 3)(torch.zeros(4, 3, 2))
    made = likelihood(3, 3)
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="within the support"):
        made(features(made)).log_prob(torch.full((1, 3, 3), 0.5).double())
